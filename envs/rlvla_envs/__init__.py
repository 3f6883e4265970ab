"""rlvla_envs: simulators for vision-language-action models, and the contract they keep.

Importing this package registers the `rlvla/*` Gymnasium ids and loads no simulator.
"""

import ctypes
import os

import gymnasium

from rlvla_envs.spec import EnvContractError, VLAEnv, check_env

__all__ = ["EnvContractError", "VLAEnv", "check_env"]


def _gl_backend() -> str:
    """The off-screen MuJoCo backend that loads here: "egl" (GPU or Mesa), else "osmesa"."""
    try:
        ctypes.CDLL("libEGL.so.1")
    except OSError:
        return "osmesa"
    return "egl"


# MuJoCo reads it once, at import; every simulator of this package is imported after this line.
if "MUJOCO_GL" not in os.environ:
    os.environ["MUJOCO_GL"] = _gl_backend()
# Mesa's software renderer starts a thread per core in every env otherwise, which only slows the neighbours.
os.environ.setdefault("LP_NUM_THREADS", "1")

# No wrappers, which would hide `step_chunk` and `zoom`: `gymnasium.make` returns the env itself.
gymnasium.register(
    id="rlvla/Tabletop-v0",
    entry_point="rlvla_envs.tabletop.env:TabletopEnv",
    disable_env_checker=True,
    order_enforce=False,
)
gymnasium.register(
    id="rlvla/Libero-v0",
    entry_point="rlvla_envs.libero.env:LiberoEnv",
    disable_env_checker=True,
    order_enforce=False,
)
