"""Format: did the policy keep to the markup that it was taught?"""

from __future__ import annotations

from rlvla.types import SegmentKind, Trajectory, Turn


def format_score(trajectory: Trajectory) -> float:
    """Share of turns that are well formed, 0..1; 0.0 for a trajectory without turns.

    VLA-Thinker (arXiv 2603.14523) rewards answers that keep to its `<think></think><tool></tool>` format. Here a turn
    is well formed when

    1. no part of it is MALFORMED,
    2. every tool call in it was accepted: valid JSON, a known tool, a box of some size, not one call too many,
    3. it holds at least one thought, its own or, between two decisions that think (`episode.think_every`), a reused
       one, and
    4. it ends in exactly one action chunk.

    A share over turns, and not all or nothing, so that one slip in a long episode costs little. A policy that runs
    without thought (`episode.mode: act`) scores 0 by rule 3: leave the term out there.

    It makes no signal (`RewardTermConfig.makes_signal`): it shapes what a group with both outcomes teaches.
    """
    if not trajectory.turns:
        return 0.0
    return sum(is_well_formed(turn) for turn in trajectory.turns) / len(trajectory.turns)


format_score.makes_signal = False  # pyright: ignore[reportFunctionMemberAccess]


def is_well_formed(turn: Turn) -> bool:
    """Whether a turn keeps the four rules of `format_score`."""
    return (
        not turn.is_malformed
        and not any(call.error for call in turn.of_kind(SegmentKind.TOOL_CALL))
        and any(segment.kind is SegmentKind.THINK or segment.is_reused for segment in turn.segments)
        and len(turn.of_kind(SegmentKind.ACT)) == 1
    )
