"""What must hold for any rewards."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rlvla.config import AdvantageConfig
from rlvla.learner.advantage import advantages

REWARDS = st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=16).map(np.array)
CONFIGS = st.builds(AdvantageConfig, normalize_std=st.booleans(), eps=st.sampled_from([0.0, 1e-6, 1e-4]))


@given(REWARDS, CONFIGS)
def test_they_sum_to_zero_and_are_finite(rewards, cfg):
    values = advantages(rewards, cfg)
    assert np.isfinite(values).all()
    assert abs(values.sum()) < 1e-6 * len(values)


@given(st.lists(st.integers(0, 8), min_size=2, max_size=16), st.integers(-8, 8), CONFIGS)
def test_a_constant_added_to_all_rewards_changes_nothing(rewards, shift, cfg):
    rewards = np.array(rewards) / 8
    np.testing.assert_allclose(advantages(rewards + shift, cfg), advantages(rewards, cfg), atol=1e-9)


@given(st.data(), REWARDS, CONFIGS)
def test_reordered_trajectories_take_their_advantages_along(data, rewards, cfg):
    order = data.draw(st.permutations(range(len(rewards))))
    np.testing.assert_allclose(advantages(rewards[order], cfg), advantages(rewards, cfg)[order], rtol=1e-6, atol=1e-9)


@given(st.lists(st.integers(0, 8), min_size=2, max_size=16), st.floats(0.125, 8))
def test_with_standard_deviation_the_scale_of_rewards_does_not_matter(rewards, scale):
    rewards, cfg = np.array(rewards) / 8, AdvantageConfig(eps=0.0)
    np.testing.assert_allclose(advantages(rewards * scale, cfg), advantages(rewards, cfg), atol=1e-9)
