"""Advantages, checked by hand."""

import numpy as np
import pytest

from rlvla.advantage import advantages, with_advantages
from rlvla.config import AdvantageConfig
from rlvla.testing import TASK, make_group, make_trajectory
from rlvla.types import EndReason, Group

EXACT = AdvantageConfig(eps=0.0)


def group_of_terms(*terms: dict[str, float]) -> Group:
    return Group(task=TASK, trajectories=tuple(make_trajectory(reward=0.0, reward_terms=t) for t in terms))


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


def test_a_crashed_simulator_takes_no_part():
    crashed = make_trajectory(end=EndReason.ENV_ERROR)
    members = (make_trajectory(reward=1.0), crashed, make_trajectory(reward=0.0))
    group = with_advantages(Group(task=TASK, trajectories=members), EXACT)
    assert given(group) == [1.0, None, -1.0]


def test_a_group_of_crashes_has_no_advantages():
    group = Group(task=TASK, trajectories=(make_trajectory(end=EndReason.ENV_ERROR),) * 2)
    for combine in ("sum_first", "normalize_first"):
        assert given(with_advantages(group, AdvantageConfig(combine=combine))) == [None, None]


def test_terms_normalised_by_themselves_are_added_with_their_weights():
    group = group_of_terms({"success": 1.0, "format": 0.0}, {"success": 0.0, "format": 0.5})
    cfg = AdvantageConfig(eps=0.0, combine="normalize_first")
    # Normalised: success +1 -1, format -1 +1, whatever their scales.
    assert given(with_advantages(group, cfg, {"success": 1.0, "format": 0.25})) == [0.75, -0.75]
    assert given(with_advantages(group, cfg)) == [0.0, 0.0]


def test_a_group_without_rewards_is_refused():
    group = Group(task=TASK, trajectories=(make_trajectory(), make_trajectory()))
    with pytest.raises(ValueError, match="score the group"):
        with_advantages(group, EXACT)


def test_terms_and_weights_that_do_not_match_are_named():
    group = group_of_terms({"success": 1.0}, {"success": 0.0})
    with pytest.raises(ValueError, match=r"\['success'\].*\['format', 'success'\]"):
        with_advantages(group, AdvantageConfig(combine="normalize_first"), {"success": 1.0, "format": 1.0})
