"""scripts/benchmark/decisions.py: which requests it makes, what it counts, its ratio; e2e/test_scripts.py runs it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import decisions
from measuring import ROOT, Run
from rlvla.config import GRPOConfig, load
from rlvla.samplers.local import BatchedSampler

CONFIG = ROOT / "recipes/configs/grpo_tiny_tabletop.yaml"


def test_requests_are_those_of_decisions_at_different_states(tiny_policy: Path) -> None:
    cfg = replace(load(GRPOConfig, ["--config", str(CONFIG)]), model=tiny_policy)
    sampler = BatchedSampler(tiny_policy)
    parts = asyncio.run(decisions.make_requests(cfg, sampler, 3, 2))
    assert [len(part) for part in parts] == [3, 3]
    requests = [request for part in parts for request in part]
    assert len({(request.prompt_ids, *(image.tobytes() for image in request.images)) for request in requests}) == 6
    assert all(request.temperature == cfg.episode.temperature for request in requests)
    run = asyncio.run(decisions.ask(sampler, requests))
    assert run.counts["requests"] == 6
    assert 6 <= run.counts["tokens"] <= sum(request.max_tokens for request in requests)


def test_no_part_finds_what_another_has_left_in_the_prefix_cache(
    tiny_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decision asks twice, the second time behind the first's prompt: parts of an odd size end within one."""

    class Decider:
        def __init__(self, sampler: Any) -> None:
            self.sampler = sampler

        async def decide(self, observation: Any, in_env: Any, *, seed: int) -> None:
            for length in (1, 2):
                prompt = SimpleNamespace(num_actions=0, prompt_ids=(seed, *range(length)))
                await self.sampler.sample(prompt)

    class Policy:
        def decider(self, sampler: Any, episode: Any) -> Decider:
            return Decider(sampler)

    class Sampler:
        async def sample(self, request: Any) -> None:
            """Nobody reads it."""

    monkeypatch.setattr("rlvla.policies.family.load_policy", lambda _: Policy())
    cfg = replace(load(GRPOConfig, ["--config", str(CONFIG)]), model=tiny_policy)
    parts = asyncio.run(decisions.make_requests(cfg, Sampler(), 3, 4))  # type: ignore[arg-type]
    seeds = [{request.prompt_ids[0] for request in part} for part in parts]
    assert [len(part) for part in parts] == [3] * 4
    assert len(set.union(*seeds)) == sum(map(len, seeds)) == 8


def test_the_ratio_by_hand() -> None:
    def run(seconds: float, cpu_s: float) -> list[Run]:
        return [Run(seconds=seconds, counts={"requests": 2, "tokens": 60}, facts={"cpu_s/this process": cpu_s})]

    result = decisions.summarise({"ours": run(2.0, 2.4), "offline": run(1.5, 1.8)})
    assert result["decisions_vs_offline"] == result["cpu_vs_offline"] == pytest.approx(0.75)
    assert not result["targets"]["decisions_vs_offline"]["met"]
    assert "0.75 (target 0.9: MISSED)" in decisions.render(result)


def test_wrong_options(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no checkpoint"):
        decisions.main(model=tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SystemExit, match="--repeats 0"):
        decisions.main(model=tmp_path, repeats=0)
