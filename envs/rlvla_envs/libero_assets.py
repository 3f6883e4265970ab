"""LIBERO's packages and assets: imported without a question, a download or a file in the home folder.

Plain `import libero.libero` asks where to put its data sets when `~/.libero/config.yaml` is missing, makes `~/.libero`
and `~/.config/matplotlib`, and its first env downloads the assets (meshes, textures, scenes), which no wheel contains.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import hashlib
import importlib
import importlib.util
import json
import logging
import os
import shutil
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

ASSETS_VARIABLE = "RLVLA_LIBERO_ASSETS"
_MISSING = f"""LIBERO's assets (meshes, textures, scenes) are not part of its package. Two ways to get them:
1. download them once and name the folder, or a .tar.xz of it:
     hf download lerobot/libero-assets --repo-type dataset --local-dir libero-assets
     export {ASSETS_VARIABLE}=$PWD/libero-assets
2. copy the folder libero/libero/assets of a clone of https://github.com/Lifelong-Robot-Learning/LIBERO to
     {{package}}"""
_IMPORTING = threading.Lock()
_MARKER = "scenes"
"""Folder that LIBERO's assets contain, by which they are recognised."""


def find_assets(assets: str | os.PathLike[str] | None = None) -> Path:
    """The folder of LIBERO's assets.

    Args:
        assets: a folder or a .tar.xz; else the environment variable RLVLA_LIBERO_ASSETS, else LIBERO's own package
            folder. An archive is unpacked once (see `unpack_assets`).

    Raises:
        FileNotFoundError: nothing there, with the two ways to get them; or the place that was named holds no assets.
        ModuleNotFoundError: LIBERO is not installed.
    """
    named = assets or os.environ.get(ASSETS_VARIABLE)
    package = package_folder() / "assets"
    if not named:
        if (package / _MARKER).is_dir():
            return package
        raise FileNotFoundError(_MISSING.format(package=package))
    source = "assets" if assets else ASSETS_VARIABLE
    path = Path(named).expanduser().absolute()
    if path.is_file():
        path = unpack_assets(path)
    for folder in (path, path / "assets", path / "libero-assets"):
        if (folder / _MARKER).is_dir():
            return folder
    what = f"has no folder {_MARKER!r}" if path.exists() else "does not exist"
    raise FileNotFoundError(f"{source}: {named} {what}.\n{_MISSING.format(package=package)}")


def unpack_assets(archive: Path) -> Path:
    """Unpacks an archive of assets below the temporary folder, once for this user and this file.

    Returns:
        The folder that holds what the archive holds.

    Raises:
        FileNotFoundError: the file is no archive, or one that writes elsewhere.
        PermissionError: the folder to unpack to belongs to someone else.
    """
    stat = archive.stat()
    name = hashlib.sha256(f"{archive} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:16]
    root = Path(tempfile.gettempdir()) / f"rlvla-libero-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    # The name can be guessed, and other users of the machine write to the temporary folder too.
    if root.is_symlink() or root.stat().st_uid != os.getuid() or root.stat().st_mode & 0o022:
        raise PermissionError(f"{root} is not this user's own: remove it, or unpack {archive} and name the folder")
    folder = root / name
    with open(root / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one of the workers that start together unpacks, the others wait
        if not folder.exists():
            part = Path(tempfile.mkdtemp(dir=root))
            try:
                with tarfile.open(archive) as tar:
                    tar.extractall(part, filter="data")
            except tarfile.TarError as error:
                shutil.rmtree(part)
                raise FileNotFoundError(f"{archive} is neither a folder nor an archive of assets: {error}") from None
            part.rename(folder)
    return folder


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
        is_configured = "libero.libero" in sys.modules
        with contextlib.nullcontext() if is_configured else _private_settings(package), _without_hint():
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
    if "matplotlib" not in sys.modules and not (_config_home() / "matplotlib").exists():
        variables["MPLCONFIGDIR"] = os.environ.get("MPLCONFIGDIR", str(folder))
    robosuite = importlib.util.find_spec("robosuite")
    if robosuite and robosuite.origin and not os.access(Path(robosuite.origin).parent / "utils", os.W_OK):
        # Numba keeps what it compiled beside the sources, or where that fails in the home folder.
        variables["NUMBA_CACHE_DIR"] = os.environ.get("NUMBA_CACHE_DIR", str(folder))
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _config_home() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")


@contextlib.contextmanager
def _without_hint() -> Iterator[None]:
    """Drops robosuite's three lines about a file of private macros; all other messages pass."""
    logger = logging.getLogger("robosuite_logs")

    def keep(record: logging.LogRecord) -> bool:
        return "macro" not in record.getMessage()

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
