"""scripts/benchmark/modes.py: what it counts, its ratios and its errors, with a sampler that needs no training."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from modes import measure_decisions, modes, render, with_ratios
from rlvla.config import ClusterConfig, EnvConfig, EpisodeConfig, EvaluateConfig
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.protocols import SampleOutput, SampleRequest

CONFIG = EvaluateConfig(
    env=EnvConfig(tasks=("press",)),
    episode=EpisodeConfig(temperature=0.0),
    cluster=ClusterConfig(envs_per_actor=2),
)


@dataclass(kw_only=True)
class Rambling:
    """Thinks and acts well by itself; behind an `<act>` that it did not write it calls tools without an end."""

    processor: PolicyProcessor

    async def sample(self, request: SampleRequest) -> SampleOutput:
        """See `protocols.Sampler`."""
        vocabulary, num_actions = self.processor.vocabulary, self.processor.decoding.num_actions
        answer = vocabulary.encode("<think>press</think><act>" + "<act_1>" * num_actions + "</act>")
        if request.prompt_ids[-1] == vocabulary.mark_ids["<act>"]:
            answer = [vocabulary.mark_ids["<tool>"]] * request.max_tokens
        length = next((i + 1 for i, id_ in enumerate(answer) if id_ in request.stop_ids), len(answer))
        return SampleOutput(
            context_ids=self.processor.expand(request.prompt_ids, request.images),
            token_ids=np.array(answer[:length], np.int32),
            logprobs=np.zeros(length, np.float32),
            policy_version=0,
        )


@pytest.fixture(scope="module")
def processor(tiny_policy: Path) -> PolicyProcessor:
    return PolicyProcessor.load(tiny_policy)


def test_every_mode_makes_the_decisions_that_were_asked_for(processor: PolicyProcessor) -> None:
    counts = {"rounds": 2, "num_decisions": 6, "seed": 0}
    sampler = Rambling(processor=processor)
    measured = asyncio.run(measure_decisions(sampler, processor, CONFIG, modes(CONFIG.episode), **counts))
    assert list(measured) == [
        "act",
        "think",
        "zoom",
        "zoom, think_every 2",
        "zoom, think_every 3",
        "zoom, think_every 4",
    ]
    assert [(mode["num_decisions"], mode["num_malformed"]) for mode in measured.values()] == [(12, 0)] * 6
    assert [mode["num_replaced"] for mode in measured.values()] == [12, 12, 0, 6, 8, 8]
    chunk = processor.decoding.num_actions + 1  # with `</act>`
    thought = len(processor.vocabulary.encode("<think>press</think>"))
    tokens = [chunk, thought + chunk, thought + 1 + chunk, (thought + 1) / 2 + chunk]
    tokens += [(thought + 1) / 3 + chunk] * 2  # of six decisions two think, with every 3 and with every 4
    assert [mode["sampled_tokens"] for mode in measured.values()] == pytest.approx(tokens)
    for mode in measured.values():
        assert 0 < mode["p50_ms"] <= mode["p95_ms"]
    told = render(with_ratios(measured)).splitlines()
    assert told[0].split()[:2] == ["mode", "p50_ms"]
    assert told[1].split()[4] == "1"  # of act to act


def test_ratios_by_hand() -> None:
    measured = with_ratios({"act": {"mean_ms": 20.0, "p50_ms": 10.0}, "zoom": {"mean_ms": 50.0, "p50_ms": 15.0}})
    assert [(m["mean_to_act"], m["p50_to_act"]) for m in measured.values()] == [(1, 1), (2.5, 1.5)]
