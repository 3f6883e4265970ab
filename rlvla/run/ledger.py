"""Which trajectories each step started, sampled, learned from, and had to begin again: `started.jsonl`, `ids.jsonl`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from rlvla.durable.files import append_line, read_lines
from rlvla.run.metrics import forget_steps
from rlvla.types import EndReason, Group, TaskSpec

_STARTED, _IDS = "started.jsonl", "ids.jsonl"


def trajectory_id(task: TaskSpec, member: int) -> str:
    """`suite/task_id/init_state_id/seed/member`: each group of a run has a seed of 31 bits of its own."""
    return f"{task.suite}/{task.task_id}/{task.init_state_id}/{task.seed}/{member}"


class Ledger:
    """Writes both files.

    A line of `started.jsonl` is a batch of episodes that are about to be played: `step`; `batch`, its number in this
    attempt at the step, which begins with batch 0; `ids`; `resumed`, where nothing of before is being played any more.
    Lines of attempts that were cut short stay.

    A line of `ids.jsonl` is a step that was done: `step`; three lists of ids: `sampled`, every trajectory of the groups
    that ended in this step; `learned`, those of the groups that it learned from, surplus of earlier steps among them;
    `resampled`, those whose episode was given out again because a process died, and which are in `sampled` once all the
    same; `failed`, how many of the sampled ones ended as ENV_ERROR; and `outstanding`, if any, the ids of what is being
    played or has ended for a later step (`max_staleness`).
    """

    def __init__(self, output: Path) -> None:
        self._started, self._ids = output / _STARTED, output / _IDS
        self._outstanding: dict[str, None] = {}
        self._is_resumed = False
        self._step, self._batch = -1, 0

    def rewind(self, step: int) -> None:
        """Forget that steps from `step` on were done, not that they were started: the run resumes there."""
        forget_steps(self._ids, step)
        forget_steps(self._started, math.inf)  # half a line at the end
        self._is_resumed = True

    def start(self, step: int, episodes: Iterable[tuple[TaskSpec, int]]) -> None:
        """Write down, before they are played, the (task, member) of a batch."""
        self._step, self._batch = step, self._batch + 1 if step == self._step else 0
        ids = [trajectory_id(*one) for one in episodes]
        self._outstanding |= dict.fromkeys(ids)
        resumed = {"resumed": True} if self._is_resumed else {}
        self._is_resumed = False
        append_line(self._started, {"step": step, "batch": self._batch, "ids": ids, **resumed})

    def add(
        self,
        step: int,
        *,
        sampled: Sequence[Group],
        learned: Sequence[Group],
        resampled: Sequence[tuple[TaskSpec, int]],
    ) -> None:
        """Write the line of a step; `resampled` holds (task, member)."""
        ids = _ids(sampled)
        for id_ in ids:
            self._outstanding.pop(id_, None)
        line = {
            "step": step,
            "sampled": ids,
            "learned": _ids(learned),
            "resampled": [trajectory_id(task, member) for task, member in resampled],
            "failed": sum(t.end is EndReason.ENV_ERROR for group in sampled for t in group.trajectories),
        }
        append_line(self._ids, line | ({"outstanding": [*self._outstanding]} if self._outstanding else {}))


def _ids(groups: Sequence[Group]) -> list[str]:
    return [trajectory_id(group.task, member) for group in groups for member in range(len(group.trajectories))]


def balance(folder: Path) -> tuple[dict[str, int], list[str]]:
    """What became of every trajectory that a run has started.

    Args:
        folder: output of a GRPO run, ended or not.

    Returns:
        Counts of trajectories: `started`; `finished` and `failed` (ENV_ERROR) in steps that were done; `dropped` in
        attempts at a step that were cut short, or done again as the run went on from an older state, or that are still
        being made. And what is wrong, in words; nothing, where every one that was started is one of the three.
    """
    attempts: dict[int, list[list[str]]] = {}
    resumed: dict[int, bool] = {}
    for line in read_lines(folder / _STARTED):
        own = attempts.setdefault(line["step"], [])
        if line["batch"] == 0 or not own:
            own.append([])
            resumed[line["step"]] = line.get("resumed", False)
            if resumed[line["step"]]:
                for later in [step for step in attempts if step > line["step"]]:
                    attempts[later].append([])
                    resumed[later] = False
        own[-1] += line["ids"]
    steps = read_lines(folder / _IDS)
    numbers = [line["step"] for line in steps]
    problems = []

    def see(what: str, wrong: Iterable[str]) -> None:
        if wrong := sorted(wrong):
            problems.append(f"{what}: {wrong[0]}" + (f" and {len(wrong) - 1} more" if wrong[1:] else ""))

    for step, own in attempts.items():
        for ids in own:
            see(f"step {step} started twice in one attempt", _doubled(ids))
    if numbers != list(range(numbers[0], numbers[-1] + 1) if numbers else ()):
        problems.append(f"steps are missing or doubled in {_IDS}")
    before: list[str] = []
    for line in steps:
        step = line["step"]
        own = attempts.get(step, [[]])[-1] + ([] if resumed.get(step) else before)
        before = line.get("outstanding", [])
        started, ended = Counter(own), Counter([*line["sampled"], *before])
        see(f"step {step} started, and did not sample", started - ended)
        see(f"step {step} sampled, and had not started", ended - started)
        see(f"step {step} began again what it had not started", set(line["resampled"]) - set(own))
        if not 0 <= line["failed"] <= len(line["sampled"]):
            problems.append(f"{line['failed']} of {len(line['sampled'])} trajectories failed in step {step}")
    sampled, learned = ([id_ for line in steps for id_ in line[key]] for key in ("sampled", "learned"))
    see("sampled twice", _doubled(sampled))
    see("learned from twice", _doubled(learned))
    if numbers and numbers[0] == 0:  # else it may be of a step before, whose line is elsewhere
        see("learned from, and not sampled", set(learned) - set(sampled))
    counts = {"started": sum(len(ids) for own in attempts.values() for ids in own)}
    counts["failed"] = sum(line["failed"] for line in steps)
    counts["finished"] = len(sampled) - counts["failed"]
    counts["dropped"] = counts["started"] - len(sampled)
    return counts, problems


def _doubled(ids: Iterable[str]) -> list[str]:
    return [id_ for id_, count in Counter(ids).items() if count > 1]
