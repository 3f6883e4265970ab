"""Episodes with two cameras and every zoom that a turn allows, out of vLLM with the limits of a cluster."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import torch

from rlvla.config import EnvConfig, EpisodeConfig, SamplerConfig
from rlvla.learner.collate import rows, to_batch
from rlvla.policies.family import load_policy
from rlvla.policies.weights import load_model
from rlvla.rollout.env_server import make_env
from rlvla.rollout.env_thread import EnvThread
from rlvla.rollout.episode import run_episode
from rlvla.rollout.tasks import most_images
from rlvla.samplers.vllm.sampler import VLLMSampler
from rlvla.types import EndReason, Group, SegmentKind, TaskSpec
from tests import two_cameras

ENV = EnvConfig(id="tests/TwoCameras-v0", imports=("tests.two_cameras",))
EPISODE = EpisodeConfig(max_tool_calls=len(two_cameras.BOXES), temperature=0.8, action_temperature=1.7)
TASK = TaskSpec(suite="two", task_id=0, init_state_id=0, seed=3)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["idefics3", "qwen2_5_vl"])
def test_every_zoom_of_a_turn_with_two_cameras_is_sampled_and_scored_alike(tmp_path, architecture):
    two_cameras.save_policy(architecture, tmp_path)
    policy, model = load_policy(tmp_path), load_model(tmp_path)
    max_images = most_images(ENV, EPISODE)
    assert max_images == 2 + len(two_cameras.BOXES)
    limits = {"max_images": max_images, "max_model_len": EPISODE.max_turn_tokens + 1}
    sampler = VLLMSampler(tmp_path, SamplerConfig(kv_cache_mb=64), **limits)
    decider = policy.decider(sampler, EPISODE)
    env = EnvThread(lambda: make_env(ENV))
    trajectory = asyncio.run(run_episode(decider, env, TASK, member=0))
    env.close()
    sampler.close()

    assert (trajectory.end, len(trajectory.turns)) == (EndReason.SUCCESS, 2)
    for turn in trajectory.turns:
        assert [call.box for call in turn.of_kind(SegmentKind.TOOL_CALL)] == [box for _, box in two_cameras.BOXES]
        assert len(turn.images) == max_images
    group = Group(task=TASK, trajectories=(replace(trajectory, advantage=1.0),))
    batch = to_batch(rows([group], mask_context_full=True))
    with torch.no_grad():
        logprobs, _ = policy.logprobs(
            model, policy.inputs(batch.turns, "cpu", torch.float32), EPISODE, first=batch.first
        )
    assert np.abs(logprobs - batch.sampler_logprobs)[batch.loss_mask].max() < 1e-4
