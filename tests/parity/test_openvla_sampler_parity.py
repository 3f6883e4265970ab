"""OpenVLA out of vLLM is our transformers model: words and action blocks, several images, published folders."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import torch

from rlvla.config import SamplerConfig
from rlvla.policies.models.openvla.checkpoint import load_checkpoint, load_processor
from rlvla.protocols import SampleOutput, SampleRequest
from rlvla.samplers.vllm.sampler import VLLMSampler
from tests import openvla_checkpoints as published

TOLERANCE = 1e-4  # nats, float32
ACT = 300  # any word, and any as slots, each its own

pytestmark = pytest.mark.slow


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40, 52, 3), np.uint8)


@pytest.fixture(scope="module", params=[True, False], ids=["fused", "siglip"])
def path(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("openvla") / "published"
    published.write_published(path, is_fused=request.param)
    return path


@pytest.fixture(scope="module")
def sampler(path):
    sampler = VLLMSampler(
        path, SamplerConfig(kv_cache_mb=64), max_images=3, max_model_len=192, action_decoding="parallel"
    )
    yield sampler
    sampler.close()


@pytest.fixture
def model(path):
    return load_checkpoint(path)


def request(model, num_words: int, num_actions: int = 0, **changes) -> SampleRequest:
    """Two images with words before, between and behind them."""
    words = torch.randint(3, 300, (num_words,), generator=torch.Generator().manual_seed(num_words)).tolist()
    placeholder = model.config.image_token_index
    default = SampleRequest(
        prompt_ids=(1, placeholder, *words[:7], placeholder, *words[7:], ACT),
        images=(image(num_words), image(num_words + 1)),
        stop_ids=(),
        max_tokens=20,
        temperature=1.0,
        seed=7,
        action_ids=model.config.action_ids,
        slot_ids=tuple(range(301, 301 + num_actions)),
    )
    return replace(default, **changes)


@torch.no_grad()
def mismatch(model, path, asked: SampleRequest, output: SampleOutput) -> float:
    """Largest |sampler - reference| logprob, nats."""
    n, context = asked.num_actions, torch.from_numpy(output.context_ids).long()
    drawn = torch.from_numpy(output.token_ids).long()
    ids = torch.cat([context, torch.tensor(asked.slot_ids) if n else drawn])[None]
    sees = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    if n:
        sees[len(context) - 1 :, :] = True
    pixels = load_processor(path).image_processor([list(asked.images)], return_tensors="pt")
    logits = model(input_ids=ids, attention_mask=sees[None, None], **pixels).logits[0, len(context) - 1 : -1]
    if n:
        logits = logits[:, list(asked.action_ids)]
        drawn = torch.tensor([asked.action_ids.index(id_) for id_ in drawn.tolist()])
    else:
        logits[:, model.config.image_token_index] += -100.0
    expected = logits.log_softmax(-1).gather(-1, drawn[:, None])[:, 0]
    return float((expected - torch.from_numpy(output.logprobs)).abs().max())


async def test_words_and_blocks_match_cold_and_warm(sampler, model, path):
    asked = [request(model, 60), request(model, 60, 14), request(model, 54, 56), request(model, 55, 7, seed=3)]
    for _ in range(2):
        for one, output in zip(asked, await asyncio.gather(*map(sampler.sample, asked)), strict=True):
            assert output.context_ids.tolist().count(model.config.image_token_index) == 2 * published.NUM_PATCHES
            assert mismatch(model, path, one, output) < TOLERANCE
    assert sampler.num_cached_tokens > 0


async def test_new_weights_act_at_once(sampler, model, path):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    await asyncio.to_thread(sampler.load_weights, weights, 1)
    for one in (request(model, 60), request(model, 60, 14)):
        assert mismatch(model, path, one, await sampler.sample(one)) < TOLERANCE
