"""What a mode bans counts for nobody: sampler, learner and reference normalise over the tokens that are left."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rlvla.cluster.cluster import LearnerActor
from rlvla.config import EpisodeConfig, GRPOConfig, LearnerConfig, LoraConfig
from rlvla.policies.thinker.policy import Thinker, save_policy
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.policies.weights import load_model
from rlvla.samplers.local import TransformersSampler
from rlvla.testing import TASK, make_trajectory
from rlvla.types import Group, Observation, Turn
from tests import parallel_policies as tiny
from tests.deciding import here


@pytest.fixture(scope="module", params=["parallel", "autoregressive"])
def checkpoint(request, tmp_path_factory) -> Path:
    """A policy with random weights that calls a tool at many a token."""
    path = tmp_path_factory.mktemp(request.param)
    model, processor = tiny.build("idefics3", path, action_decoding=request.param)
    with torch.no_grad():
        model.get_output_embeddings().weight[processor.vocabulary.mark_ids["<tool>"]] *= 20
    save_policy(model, processor, path / "policy")
    return path / "policy"


def play(checkpoint: Path, processor: PolicyProcessor, config: EpisodeConfig) -> Turn:
    """Text until the limit, or until it is malformed; behind an injected `<act>` of a parallel policy a chunk."""
    observation = Observation(
        images=(tiny.image(0),),
        proprio=np.zeros(4),
        instruction=tiny.INSTRUCTION,
        zoom=lambda image, box: tiny.image(1),
    )
    decider = Thinker(processor).decider(TransformersSampler(checkpoint), config)
    return asyncio.run(decider.decide(observation, here, seed=0)).turn


@pytest.mark.parametrize(
    ("mode", "lora"), [("zoom", None), ("think", None), ("think", LoraConfig(rank=2)), ("act", None)]
)
def test_sampler_learner_and_reference_leave_the_same_tokens_out(checkpoint, mode, lora):
    processor = PolicyProcessor.load(checkpoint)
    temperatures = tiny.TEMPERATURES if processor.decoding.at_once else {"temperature": 1.3}
    episode = EpisodeConfig(mode=mode, max_think_tokens=8, **temperatures)
    turn = play(checkpoint, processor, episode)
    policy, model, distances = Thinker(processor), load_model(checkpoint), {}
    for banning in ("zoom", mode):
        with torch.no_grad():
            inputs = policy.inputs([turn], "cpu", torch.float32)
            logprobs, _ = policy.logprobs(model, inputs, replace(episode, mode=banning))
        distances[banning] = np.abs(logprobs[0].numpy() - turn.sampler_logprobs)[turn.loss_mask].max()
    assert distances[mode] < 1e-4
    assert mode != "think" or distances["zoom"] > 0.1  # the policy would have called
    learner = LearnerActor()
    cfg = GRPOConfig(model=checkpoint, episode=episode, learner=LearnerConfig(lora=lora))
    learner.start(cfg, rank=0, world=1, master="127.0.0.1:0")
    metrics = learner.call("step", [Group(task=TASK, trajectories=(make_trajectory([turn], advantage=1.0),))])
    learner.call("close")
    assert metrics["mismatch_kl"] < 1e-8
    assert metrics["kl"] == 0


def test_a_mode_bans_the_same_tokens_everywhere_in_a_turn(checkpoint):
    vocabulary = PolicyProcessor.load(checkpoint).vocabulary
    assert vocabulary.banned_ids("zoom") == vocabulary.banned_ids("act") == vocabulary.slot_ids
    assert vocabulary.banned_ids("think") == (vocabulary.mark_ids["<tool>"], *vocabulary.slot_ids)
