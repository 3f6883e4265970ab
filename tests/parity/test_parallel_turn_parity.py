"""A whole turn out of vLLM, images, text and a block of actions, is what transformers says by hand, and the learner."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import torch

from rlvla.config import EpisodeConfig, SamplerConfig
from rlvla.policies.thinker.policy import Thinker
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.policies.weights import load_model
from rlvla.samplers.vllm.sampler import VLLMSampler
from tests import parallel_policies as tiny

TOLERANCE = 1e-4  # nats, float32

pytestmark = pytest.mark.slow


CASES = [(name, "parallel") for name in tiny.ARCHITECTURES]
CASES += [(name, "parallel_causal") for name in ("idefics3", "qwen2_5_vl", "openvla")]


@pytest.mark.parametrize(("architecture", "action_decoding"), CASES)
async def test_vllm_transformers_and_learner_agree_on_a_turn_with_three_images(tmp_path, architecture, action_decoding):
    path = tiny.save(architecture, tmp_path, action_decoding=action_decoding)
    processor, model = PolicyProcessor.load(path), load_model(path).eval()
    limits = {"max_images": 3, "max_model_len": 256}
    sampler = VLLMSampler(path, SamplerConfig(kv_cache_mb=64), **limits)
    asked = {"action_temperature": tiny.TEMPERATURES["action_temperature"], "num_cameras": 2, "mode": "think"}
    cold = await tiny.sampled_turn(sampler, processor, tiny.TEMPERATURES["temperature"], **asked)
    warm = await tiny.sampled_turn(sampler, processor, tiny.TEMPERATURES["temperature"], **asked)
    assert sampler.num_cached_tokens > 0
    await asyncio.to_thread(sampler.close)

    banned_ids = processor.vocabulary.banned_ids("think")
    with torch.no_grad():
        episode = EpisodeConfig(mode="think", **tiny.TEMPERATURES)
        learned, _ = Thinker(processor).logprobs(model, tiny.inputs(processor, cold, warm), episode)
        by_hand = [tiny.oracle(model, processor, turn, banned_ids=banned_ids) for turn in (cold, warm)]
    for turn, scored, expected in zip((cold, warm), learned, by_hand, strict=True):
        assert len(turn.images) == 3
        assert turn.num_sampled_tokens == 2 * 12 + tiny.NUM_ACTIONS
        for other in (scored[: len(turn.token_ids)], expected):
            assert np.abs(other.numpy() - turn.sampler_logprobs)[turn.loss_mask].max() < TOLERANCE
