"""A LoRA policy with unmerged adapter: learner, transformers and vLLM say the same, before and after weight syncs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlvla.config import LearnerConfig, LoraConfig, SamplerConfig
from rlvla.policies.family import load_policy
from rlvla.policies.models.lora import Adapter, take
from rlvla.samplers.local import BatchedSampler
from rlvla.samplers.vllm.sampler import VLLMSampler
from rlvla.types import Turn
from tests import parallel_policies as tiny

TOLERANCE = 1e-4  # nats, float32
LORA = LoraConfig(rank=3, alpha=6.0)

pytestmark = pytest.mark.slow


def train(model: Any, seed: int) -> Adapter:
    """Move all that an adapter trains, the markup's rows among it, and take it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return take(model)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
async def test_learner_and_samplers_agree_on_every_adapter(tmp_path: Path, architecture: str) -> None:
    """Also where the checkpoint has none to begin with."""
    has_adapter = architecture != "idefics3"
    path = tiny.save(architecture, tmp_path)
    policy: Any = load_policy(path)
    model, processor = policy.load_to_train(path, LearnerConfig(lora=LORA)), policy.processor
    if has_adapter:
        train(model, seed=0)
        policy.save(model, path)
    limits: dict[str, Any] = {"max_images": 3, "max_model_len": 384, "lora": None if has_adapter else LORA}
    samplers: list[Any] = [BatchedSampler(path), VLLMSampler(path, SamplerConfig(kv_cache_mb=64), **limits)]
    turns: list[list[Turn]] = []
    for version in range(3):
        if version:
            adapter = train(model, seed=version)
            for sampler in samplers:
                sampler.load_weights(adapter, version)
        turns.append([await tiny.sampled_turn(sampler, processor, 1.0) for sampler in samplers])
        for turn in turns[-1]:
            assert tiny.mismatch(model, processor, [turn]) < TOLERANCE
    assert tiny.mismatch(model, processor, [turns[0][1]]) > 0.01  # what the first adapter said
    other = replace(adapter, config=replace(adapter.config, r=2))
    for sampler in samplers:
        with pytest.raises(ValueError, match="started for"):
            sampler.load_weights(other, 4)
        sampler.close()
