"""Where LIBERO's fixtures stand in an episode, which its initial states leave open."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("libero")

from rlvla_envs.libero.env import SETTLE_ACTION, LiberoEnv
from rlvla_envs.libero.tasks import load_init_states

pytestmark = pytest.mark.libero

SUITE, TASK = "libero_spatial", 4
"""A drawer that is drawn once more in each official reset than in the one before, and so moves all later draws."""
SETTLE_STEPS = 3


def start(env: LiberoEnv, init_state_id: int) -> np.ndarray:
    """Reset; the places of all bodies, [num bodies, 3] m."""
    env.reset(options={"task_id": TASK, "init_state_id": init_state_id})
    return env.robosuite.sim.model.body_pos.copy()


@pytest.mark.slow
def test_each_episode_has_the_places_of_the_official_one(libero_assets: Path) -> None:
    """OpenVLA-OFT's script seeds once for a task, so that its episodes go on drawing."""
    env = LiberoEnv(SUITE, assets=libero_assets, settle_steps=SETTLE_STEPS, view_size=64, fixtures="episode")
    task = env.tasks[TASK]
    wrapper = importlib.import_module("libero.libero.envs.env_wrapper")
    official = wrapper.ControlEnv(str(task.bddl_file), has_offscreen_renderer=False, use_camera_obs=False)
    official.seed(0)
    expected = []
    for init_state in load_init_states(task)[:3]:
        official.reset()
        official.set_init_state(init_state)
        for _ in range(SETTLE_STEPS):
            official.step(list(SETTLE_ACTION))
        expected.append((official.sim.model.body_pos.copy(), official.get_sim_state()))
    official.close()
    for init_state_id in (2, 0, 1, 2):  # out of order, and again
        places, state = expected[init_state_id]
        assert np.array_equal(start(env, init_state_id), places)
        assert np.array_equal(env.robosuite.sim.get_state().flatten(), state)
    assert np.abs(expected[2][0] - expected[0][0]).max() > 0.005  # m
    saved = env.get_state()
    env.step_chunk(np.tile(np.array([0.3, 0, -0.3, 0, 0, 0, 1]), (2, 1)))
    start(env, 0)
    env.set_state(saved)
    assert np.array_equal(env.robosuite.sim.model.body_pos, expected[2][0])
    env.close()


def test_by_default_all_episodes_have_those_of_the_first(libero_assets: Path) -> None:
    env = LiberoEnv(SUITE, assets=libero_assets, settle_steps=0, view_size=64)
    assert np.array_equal(start(env, 0), start(env, 2))
    env.close()


def test_a_result_on_official_states_says_which(libero_assets: Path) -> None:
    notes = [LiberoEnv(assets=libero_assets, fixtures=choice).split_notes for choice in ("first", "episode")]
    assert [list(note) for note in notes] == [["official"], ["official"]]
    assert "in all of its episodes" in notes[0]["official"]
    assert "OpenVLA-OFT's script finds them" in notes[1]["official"]
