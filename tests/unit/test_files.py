"""Files that appear whole or not at all, and folders that one run writes into."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from rlvla.durable.files import appear_whole, differences, hold, visible

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("is_durable", [True, False])
def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, is_durable: bool) -> None:
    path = tmp_path / "file"
    with appear_whole(path, is_durable=is_durable) as file:
        file.write(b"old")
        assert not path.exists()
    with pytest.raises(ZeroDivisionError), appear_whole(path, is_durable=is_durable) as file:
        file.write(b"new" * (1 // 0))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


HOLD = """
import subprocess, sys, time
from pathlib import Path
from rlvla.durable.files import hold
hold(Path(sys.argv[1]))
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False)
print(child.pid, flush=True)
time.sleep(60)
"""


def test_two_runs_do_not_write_into_one_folder(tmp_path: Path) -> None:
    """The second may go on the moment the first is killed, whatever the first had started lives on."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        child = int(first.stdout.readline())
        with pytest.raises(ValueError, match=rf"^output: {tmp_path}: process {first.pid} is writing there; wait"):
            hold(tmp_path)
        first.kill()
        first.wait()
        hold(tmp_path)
        assert psutil.Process(child).is_running()
        os.kill(child, signal.SIGKILL)
    hold(tmp_path / "../" / tmp_path.name)  # it holds it already


def test_differences_name_the_keys() -> None:
    assert differences({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}) == "b was 2, is 3, c was None, is 4"
    assert differences({"a": 1}, {"a": 1}) == ""


def test_hidden_files_are_no_files_of_ours(tmp_path: Path) -> None:
    folder = tmp_path / ".cache/set"  # itself hidden, which does not matter
    for name in ("b.x", "a.x", "in/c.x", "._a.x", "in/.c.x", ".ipynb_checkpoints/d.x", ".DS_Store"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    assert [str(path.relative_to(folder)) for path in visible(folder, "**/*.x")] == ["a.x", "b.x", "in/c.x"]
    assert [path.name for path in visible(folder, "*.x")] == ["a.x", "b.x"]
    assert visible(tmp_path / "nowhere", "*.x") == []
