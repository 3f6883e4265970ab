"""Advantages, checked by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest

import rlvla_reward
from rlvla.config import AdvantageConfig, GRPOConfig
from rlvla.learner.advantage import advantages, with_advantages
from rlvla.types import EndReason, Group, SegmentKind
from tests.trajectories import TASK, make_group, make_trajectory, make_turn

EXACT = AdvantageConfig(eps=0.0)


def group_of_terms(*terms: dict[str, float]) -> Group:
    return Group(task=TASK, trajectories=tuple(make_trajectory(reward=sum(t.values()), reward_terms=t) for t in terms))


def given(group: Group) -> list[float | None]:
    return [trajectory.advantage for trajectory in group.trajectories]


def test_one_success_in_four_stands_sqrt_3_above_the_mean():
    # mean 1/4, variance 1/4 * 3/4, so (1 - 1/4) / (sqrt(3) / 4) = sqrt(3) and (0 - 1/4) / (sqrt(3) / 4) = -1 / sqrt(3)
    group = with_advantages(make_group([1, 0, 0, 0]), EXACT)
    assert given(group) == pytest.approx([3**0.5, *[-(3**-0.5)] * 3])
    assert group.has_signal


def test_eps_is_added_to_the_standard_deviation():
    assert advantages(np.array([1.0, 3.0]), AdvantageConfig(eps=1.0)).tolist() == [-0.5, 0.5]


def test_dr_grpo_only_subtracts_the_mean():
    group = with_advantages(make_group([1, 0, 0, 0]), AdvantageConfig(normalize_std=False))
    assert given(group) == [0.75, -0.25, -0.25, -0.25]


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1e6 / 3])
@pytest.mark.parametrize("combine", ["sum_first", "normalize_first"])
def test_equal_rewards_give_exactly_zero(reward, combine):
    terms = ({"success": reward},) * 7
    members = tuple(make_trajectory(reward=reward, reward_terms=t) for t in terms)
    group = with_advantages(Group(task=TASK, trajectories=members), AdvantageConfig(eps=0.0, combine=combine))
    assert given(group) == [0.0] * 7
    assert not group.has_signal


CRASHED = make_trajectory(end=EndReason.ENV_ERROR)
FULL = make_trajectory(end=EndReason.CONTEXT_FULL, reward=math.nan)
"""Masked: its reward may be anything."""
SUCCESS, FAILURE = (make_trajectory(reward=reward, reward_terms={"success": reward}) for reward in (1.0, 0.0))


@pytest.mark.parametrize("combine", ["sum_first", "normalize_first"])
@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ((SUCCESS, CRASHED, FAILURE), [1.0, None, -1.0]),
        ((CRASHED, CRASHED), [None, None]),
        ((FULL, SUCCESS, FAILURE), [0.0, 1.0, -1.0]),
    ],
)
def test_what_was_cut_short_takes_no_part(combine, members, expected):
    group = Group(task=TASK, trajectories=members)
    assert given(with_advantages(group, AdvantageConfig(eps=0.0, combine=combine))) == expected


def test_terms_normalised_by_themselves_are_added_with_their_weights():
    group = group_of_terms({"success": 1.0, "format": 0.0}, {"success": 0.0, "format": 0.5})
    cfg = AdvantageConfig(eps=0.0, combine="normalize_first")
    # Normalised: success +1 -1, format -1 +1, whatever their scales.
    assert given(with_advantages(group, cfg, {"success": 1.0, "format": 0.25})) == [0.75, -0.75]
    assert given(with_advantages(group, cfg)) == [0.0, 0.0]


def judged(members, *, combine="sum_first", mask_context_full=True) -> Group:
    """By the default reward, success and a tenth of format."""
    reward = rlvla_reward.build(GRPOConfig().reward)
    cfg = AdvantageConfig(eps=0.0, combine=combine)
    group = reward.score(Group(task=TASK, trajectories=tuple(members)))
    return with_advantages(group, cfg, reward.weights, mask_context_full=mask_context_full)


def episode(*, is_ill_formed=False, end=EndReason.SUCCESS, num_turns=10):
    """`is_ill_formed`: in one of its turns."""
    bad = make_turn(((SegmentKind.PROMPT, 4), (SegmentKind.MALFORMED, 3)))
    turns = (make_turn(),) * (num_turns - is_ill_formed)
    return make_trajectory((*turns, bad) if is_ill_formed else turns, end=end)


@pytest.mark.parametrize("combine", ["sum_first", "normalize_first"])
@pytest.mark.parametrize("end", [EndReason.SUCCESS, EndReason.MAX_ENV_STEPS])
def test_a_group_in_which_format_alone_varies_teaches_nothing(combine, end):
    group = judged([episode(is_ill_formed=i == 0, end=end) for i in range(8)], combine=combine)
    assert len({t.reward for t in group.trajectories}) == 2
    assert given(group) == [0.0] * 8
    assert not group.has_signal


@pytest.mark.parametrize(("combine", "gap"), [("sum_first", 0.02), ("normalize_first", 0.3)])
def test_where_success_varies_format_counts_too(combine, gap):
    """A tenth of an ill-formed share of a tenth: 0.01 of the reward, over a standard deviation of 0.5, or by itself."""
    ends = [EndReason.SUCCESS] * 4 + [EndReason.FAILURE] * 4
    group = judged([episode(is_ill_formed=i == 0, end=end) for i, end in enumerate(ends)], combine=combine)
    assert given(group)[1] - given(group)[0] == pytest.approx(gap, rel=0.02)
    assert given(group)[1] > 0.9
    assert group.has_signal


def test_what_is_masked_stands_in_no_mean():
    """Four that ran out of room lower nobody's mean, and are learned from where they are not masked."""
    full = [episode(is_ill_formed=True, end=EndReason.CONTEXT_FULL, num_turns=3)] * 4
    others = [episode(end=EndReason.SUCCESS), episode(end=EndReason.FAILURE)]
    assert given(judged([*full, *others])) == pytest.approx([0, 0, 0, 0, 1, -1])
    assert not judged([*full, *others[:1]]).has_signal
    assert not judged(full).has_signal
    punished = given(judged([*full, *others[:1]], mask_context_full=False))
    assert punished == pytest.approx([-0.5] * 4 + [2])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("combine", ["sum_first", "normalize_first"])
def test_a_reward_that_is_not_finite_drops_its_group(value, combine):
    terms = ({"success": 1.0, "mine": value}, {"success": 0.0, "mine": 0.5})
    group = with_advantages(group_of_terms(*terms), AdvantageConfig(combine=combine))
    assert given(group) == [None, None]
    assert group.is_dropped
    assert not group.has_signal


def test_a_term_without_weight_does_not_count_whatever_it_is():
    group = group_of_terms({"success": 1.0}, {"success": 0.0})
    terms = ({"success": 1.0, "odd": math.nan}, {"success": 0.0, "odd": 1.0})
    members = tuple(replace(t, reward_terms=own) for t, own in zip(group.trajectories, terms, strict=True))
    group = replace(group, trajectories=members)
    for combine in ("sum_first", "normalize_first"):
        cfg = AdvantageConfig(eps=0.0, combine=combine)
        assert given(with_advantages(group, cfg, {"success": 1.0, "odd": 0.0})) == [1.0, -1.0]


def test_a_group_without_rewards_is_refused():
    group = Group(task=TASK, trajectories=(make_trajectory(), make_trajectory()))
    with pytest.raises(ValueError, match="score the group"):
        with_advantages(group, EXACT)


def test_terms_and_weights_that_do_not_match_are_named():
    group = group_of_terms({"success": 1.0}, {"success": 0.0})
    with pytest.raises(ValueError, match=r"\['success'\].*\['format', 'success'\]"):
        with_advantages(group, AdvantageConfig(combine="normalize_first"), {"success": 1.0, "format": 1.0})
