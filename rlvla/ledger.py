"""Which trajectories each step sampled, learned from, and had to begin again: `ids.jsonl`, a line a step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlvla.files import append_line
from rlvla.metrics import forget_steps
from rlvla.types import Group, TaskSpec


def trajectory_id(task: TaskSpec, member: int) -> str:
    """`suite/task_id/init_state_id/seed/member`: each group of a run has a seed of 31 bits of its own."""
    return f"{task.suite}/{task.task_id}/{task.init_state_id}/{task.seed}/{member}"


class Ledger:
    """Writes `ids.jsonl`.

    Each line holds `step` and three lists of ids: `sampled`, every trajectory that this step played; `learned`, those
    of the groups that it learned from, surplus of earlier steps among them; `resampled`, those whose episode was given
    out again because a process died, and which are in `sampled` once all the same.
    """

    def __init__(self, output: Path) -> None:
        self._path = output / "ids.jsonl"

    def rewind(self, step: int) -> None:
        """Forget all lines from `step` on: the run resumes there."""
        forget_steps(self._path, step)

    def add(
        self,
        step: int,
        *,
        sampled: Sequence[Group],
        learned: Sequence[Group],
        resampled: Sequence[tuple[TaskSpec, int]],
    ) -> None:
        """Write the line of a step; `resampled` holds (task, member)."""
        line = {
            "step": step,
            "sampled": _ids(sampled),
            "learned": _ids(learned),
            "resampled": [trajectory_id(task, member) for task, member in resampled],
        }
        append_line(self._path, line)


def _ids(groups: Sequence[Group]) -> list[str]:
    return [trajectory_id(group.task, member) for group in groups for member in range(len(group.trajectories))]
