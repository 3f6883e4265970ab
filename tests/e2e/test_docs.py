"""docs/add_an_env.md, followed to the letter in an empty folder: what is typed is the page's, made small by flags."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import ROOT, blocks, commands
from tests.e2e.run import environment

PAGE = "docs/add_an_env.md"
SMALL = {
    "annotate": (),
    "sft": ("--num-steps", "2", "--batch-size", "8", "--tiny.num-layers", "1", "--tiny.vision-layers", "1"),
    "grpo": ("--dry-run",),
    "evaluate": ("--sampler.backend", "transformers", "--cluster.envs-per-actor", "2"),
}
"""Recipe -> what makes its command take seconds; GRPO itself is `test_bandit.py`'s, on another env of a third party."""


def run(folder: Path, *arguments: str) -> str:
    """What a process prints that stands in the folder and does not find it on PYTHONPATH."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_env_of_the_page_is_checked_trained_on_and_evaluated_in(tmp_path: Path) -> None:
    for block in blocks(PAGE, "python"):
        name = re.match(r'"""(my_\w+\.py): ', block)
        assert name is not None, "a block says which file it is"
        (tmp_path / name[1]).write_text(block)
    followed = []
    for command in commands(PAGE):
        python, first, *arguments = shlex.split(command)
        assert python == "python"
        if first == "-c":
            run(tmp_path, first, *arguments)
            continue
        followed.append(Path(first).stem)
        run(tmp_path, str(ROOT / first), *arguments, *SMALL[followed[-1]])
    assert followed == [*SMALL]
    summary = json.loads((tmp_path / "outputs/evaluate/summary.json").read_text())
    assert {name: task["num_trials"] for name, task in summary["tasks"].items()} == {"go left": 2, "go right": 2}
