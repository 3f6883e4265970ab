"""Off-screen GL contexts, of the back-end that MUJOCO_GL names."""

from __future__ import annotations

import importlib
import os
from typing import Any


def gl_context(size: int) -> Any:
    """A context of `size` x `size` pixels, whenever mujoco itself was imported.

    Raises:
        RuntimeError: MUJOCO_GL names a back-end that does not render off screen.
    """
    backend = os.environ["MUJOCO_GL"]
    if backend not in ("egl", "osmesa"):
        raise RuntimeError(f"MUJOCO_GL is {backend!r}: rendering off screen needs egl or osmesa; unset it")
    return importlib.import_module(f"mujoco.{backend}").GLContext(size, size)


def free(gl: Any, context: Any) -> None:
    """Free MuJoCo's context of a GL context, then that."""
    gl.make_current()
    context.free()
    gl.free()
