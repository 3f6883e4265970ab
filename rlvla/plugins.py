"""Resolve `"module:function"` or `"path/to/file.py:function"` from a config to the object it names."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


class PluginError(ValueError):
    """A plugin string that names nothing usable; the message says which part and what to do."""


def _load_file(path: Path, spec: str) -> ModuleType:
    if not path.is_file():
        raise PluginError(f"plugin {spec!r}: there is no file {path}")
    # One module object per file, however often it is named, so that its state is shared.
    name = f"rlvla_plugin_{path.resolve().as_posix().replace('/', '_').removesuffix('.py')}"
    if name in sys.modules:
        return sys.modules[name]
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None or module_spec.loader is None:
        raise PluginError(f"plugin {spec!r}: {path} is not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    try:
        module_spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def import_named(name: str) -> ModuleType:
    """Import a module that a config names; the folder that one stands in counts, behind all others.

    Python searches the folder of the script instead. What is added to `sys.path` reaches env processes, too
    (`env_process`); actors get the driver's folder from Ray.

    Raises:
        ModuleNotFoundError: there is no such module; its `name` is the module, or what that imports and is missing.
    """
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    return importlib.import_module(name)


def resolve(spec: str) -> Any:
    """Return the object that `spec` names.

    Args:
        spec: `"package.module:attribute"`, or `"path/to/file.py:attribute"` for a file outside any package.

    Raises:
        PluginError: the spec has no colon, or its module, file or attribute does not exist. An error
            inside the plugin's own code propagates as it is.
    """
    target, colon, attribute = spec.rpartition(":")
    if not colon or not target or not attribute:
        raise PluginError(f"plugin {spec!r}: write it as 'module:function' or 'path/to/file.py:function'")
    if target.endswith(".py"):
        module = _load_file(Path(target), spec)
    else:
        try:
            module = import_named(target)
        except ModuleNotFoundError as error:
            if error.name is None or not (target + ".").startswith(error.name + "."):
                raise  # a missing dependency of the plugin, not a missing plugin
            raise PluginError(
                f"plugin {spec!r}: no module named {error.name!r}; install it, add its folder to PYTHONPATH, "
                f"or name the file as 'path/to/file.py:{attribute}'"
            ) from error
    if not hasattr(module, attribute):
        names = ", ".join(n for n in vars(module) if not n.startswith("_"))
        raise PluginError(f"plugin {spec!r}: {target} has no {attribute!r}; it has: {names}")
    return getattr(module, attribute)
