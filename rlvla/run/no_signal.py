"""How often in a row a run may go on after a step without a group with signal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rlvla.types import EndReason, Group, SegmentKind, Trajectory

_QUOTED = 300
"""Characters of a text that are shown."""


class NoSignalCount:
    """Steps in a row that held no group with signal.

    One in which every trajectory was a success counts neither way: there is nothing left to learn.

    Args:
        allowed: `max_futile_steps`.
    """

    def __init__(self, allowed: int) -> None:
        self._allowed = allowed
        self._in_a_row = 0

    def is_too_much(self, step: int, groups: Sequence[Group]) -> bool:
        """Whether the run should stop: the count is full, or in the run's first step nothing was executed either."""
        trajectories = [t for group in groups for t in group.trajectories]
        if any(group.has_signal for group in groups):
            self._in_a_row = 0
        elif not all(t.success for t in trajectories):
            self._in_a_row += 1
        is_full = self._in_a_row >= self._allowed or (step == 0 and not _acted(trajectories))
        return bool(self._allowed and self._in_a_row) and is_full

    def error(self, step: int, groups: Sequence[Group], file: Path) -> RuntimeError:
        """What was seen in the last step, and what to do; `file` keeps it."""
        trajectories = [t for group in groups for t in group.trajectories]
        counts = ", ".join(f"{end} {number}" for end, number in Counter(t.end for t in trajectories).most_common())
        mute = "" if _acted(trajectories) else ", and none held an executable action"
        return RuntimeError(
            f"no group had signal in {self._in_a_row} steps in a row, the last of them step {step} (max_futile_steps "
            f"is {self._allowed}). Its {len(trajectories)} trajectories ended as: {counts}{mute}. Mean reward terms: "
            f"{_means(trajectories)}. {_example(trajectories)}All of them are in {file}. Train the cold start for "
            "longer, or mend the reward or the env; max_futile_steps: 0 goes on from what has been learned"
        )


def _acted(trajectories: Sequence[Trajectory]) -> bool:
    """Whether any turn held an executable action."""
    return any(turn.actions.size for trajectory in trajectories for turn in trajectory.turns)


def _means(trajectories: Sequence[Trajectory]) -> str:
    scored = [t.reward_terms for t in trajectories if t.reward is not None]
    means = {name: sum(terms[name] for terms in scored) / len(scored) for name in (scored[0] if scored else ())}
    return ", ".join(f"{name} {mean:.3g}" for name, mean in means.items()) or "none was scored"


def _example(trajectories: Sequence[Trajectory]) -> str:
    """The first crash or malformed text, if there is one."""
    for trajectory in trajectories:
        if trajectory.end is EndReason.ENV_ERROR:
            return f"The first error of the simulator: {trajectory.error[:_QUOTED]}. "
        for turn in trajectory.turns:
            for segment in turn.of_kind(SegmentKind.MALFORMED):
                return f"The first malformed text ({segment.error}): {segment.text[:_QUOTED]!r}. "
    return ""
