"""Finding LIBERO's assets, and an import that asks nothing and leaves no trace."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest

pytest.importorskip("libero")

from rlvla_envs.libero_assets import ASSETS_VARIABLE, find_assets, unpack_assets

IMPORT = """
import os, sys
from pathlib import Path
from rlvla_envs.libero_assets import import_libero
libero = import_libero(Path("anywhere"))
assert "libero.libero.envs" in sys.modules
assert libero._assets_path_cache == "anywhere"
print(os.environ.get("LIBERO_CONFIG_PATH"), libero.libero_config_path, sorted(libero.get_default_path_dict()))
"""


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small archive of assets, and a temporary folder of its own to unpack to."""
    (tmp_path / "libero-assets" / "scenes").mkdir(parents=True)
    (tmp_path / "libero-assets" / "scenes" / "floor.xml").write_text("<mujoco/>")
    path = tmp_path / "assets.tar.xz"
    with tarfile.open(path, "w:xz") as tar:
        tar.add(tmp_path / "libero-assets", "libero-assets")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return path


def test_an_archive_is_unpacked_once(archive: Path) -> None:
    folder = find_assets(archive)
    assert (folder / "scenes" / "floor.xml").read_text() == "<mujoco/>"
    (folder / "scenes" / "floor.xml").write_text("kept")
    again = find_assets(str(archive))
    assert again == folder
    assert (again / "scenes" / "floor.xml").read_text() == "kept"
    assert Path(tempfile.gettempdir()) in folder.parents
    os.utime(archive, ns=(0, 0))  # another file under the same name
    assert find_assets(archive) != folder


def test_the_environment_names_the_assets(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = archive.parent / "libero-assets"
    monkeypatch.setenv(ASSETS_VARIABLE, str(folder))
    assert find_assets() == folder
    assert find_assets(archive) != folder, "the argument comes first"
    monkeypatch.setenv(ASSETS_VARIABLE, str(archive.parent))  # the folder that an archive of ours unpacks to
    assert find_assets() == folder


def test_missing_assets_name_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ASSETS_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="nowhere does not exist") as error:
        find_assets()
    assert "hf download lerobot/libero-assets" in str(error.value)
    assert "Lifelong-Robot-Learning/LIBERO" in str(error.value)
    with pytest.raises(FileNotFoundError, match="has no folder 'scenes'"):
        find_assets(tmp_path)


def test_a_file_that_is_no_archive(archive: Path) -> None:
    archive.write_text("not a tar file")
    with pytest.raises(FileNotFoundError, match=r"assets\.tar\.xz .* nor an archive of assets"):
        unpack_assets(archive)
    assert not [path for path in (Path(tempfile.gettempdir())).glob("*/*") if path.is_dir()], "leaves a part behind"


def test_an_archive_cannot_write_elsewhere(archive: Path) -> None:
    with tarfile.open(archive, "w:xz") as tar:
        tar.add(__file__, "../../escaped.py")
    with pytest.raises(FileNotFoundError, match="nor an archive of assets"):
        unpack_assets(archive)
    assert not list(archive.parent.rglob("escaped.py"))


def test_a_folder_of_another_user_is_refused(archive: Path) -> None:
    root = Path(tempfile.gettempdir()) / f"rlvla-libero-{os.getuid()}"
    root.mkdir()
    root.chmod(0o777)
    with pytest.raises(PermissionError, match="not this user's own"):
        unpack_assets(archive)


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
    done = subprocess.run(
        [sys.executable, "-c", IMPORT],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    variable, used, _ = done.stdout.split(" ", 2)
    assert variable == (str(config) if own_config else "None"), "the variable outlives its folder"
    assert (used == str(config)) is own_config
    assert not list(home.rglob("*"))
    assert not list(temporary.rglob("*")), "the private folder goes with the process"
    assert (config / "config.yaml").exists() is own_config
