"""Arithmetic and errors of scripts/benchmark/grpo.py, and that its baselines do the work that they claim to do."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import grpo
from measuring import ROOT, Peaks, Run, measure, medians
from rlvla.protocols import SampleOutput, SampleRequest
from tests.trajectories import make_group

CONFIG = ROOT / "recipes/configs/grpo_tiny_tabletop.yaml"


def runs(step: Sequence[float] = (4.0, 5.0, 10.0), sync: float = 0.1, **changes: Any) -> dict[str, list[Run]]:
    tokens = {"tokens": 3000, "flop": 6e9}
    cpu_s = {"cpu_s/envs": 1.0, "cpu_s/sampler": 1.9}
    rollout = Run(seconds=2.0, counts={"trajectories": 8, "env_steps": 40}, facts=cpu_s)
    return {
        "step": [Run(seconds=seconds) for seconds in step],
        "rollout": [rollout] * 3,
        "learner": [Run(seconds=1.0, counts=tokens)] * 3,
        "sync": [Run(seconds=sync)] * 3,
        "lockstep": [Run(seconds=8.0, counts={"trajectories": 8, "env_steps": 48})],
        "simulator": [Run(seconds=1.0, counts={"trajectories": 8, "env_steps": 400})],
        "padded": [Run(seconds=2.0, counts=tokens)],
        "longest": [Run(seconds=1.5, counts=tokens)],
        "trl": [Run(seconds=3.0, counts=tokens)],
        "gemm": [Run(seconds=0.5, counts={"flop": 1e10})],
    } | changes


def test_rates_are_medians_over_runs_and_facts_are_means() -> None:
    measured = medians([Run(seconds=s, counts={"tokens": 12}, facts={"success": s}) for s in (1.0, 2.0, 6.0)])
    assert measured == {"seconds": [1.0, 2.0, 6.0], "tokens_per_s": 6.0, "success": 3.0}
    assert measure("squares", 3, lambda i: i * i) == [1, 4, 9]


def test_peaks_are_those_between_two_looks_of_the_caller_too() -> None:
    """What is held for a moment only, as it is not where it is looked at before and behind."""
    now, is_seen = {"mb": 5.0}, threading.Event()

    def look() -> dict[str, float]:
        if now["mb"] == 9.0:
            is_seen.set()
        return dict(now)

    with Peaks(look, 0.001) as peaks:
        now["mb"] = 9.0
        assert is_seen.wait(60)
        now["mb"] = 4.0
    assert (peaks.most, peaks.grown) == ({"mb": 9.0}, {"mb": 4.0})


def test_ratios_and_targets_by_hand() -> None:
    measured = grpo.summarise(runs())
    assert measured["rollout_vs_lockstep"] == pytest.approx((8 / 2) / (8 / 8))
    assert measured["rollout_vs_simulator"] == pytest.approx((40 / 2) / 400)
    assert [measured[f"learner_vs_{other}"] for other in ("padded", "longest", "trl")] == pytest.approx([2.0, 1.5, 3.0])
    busy = measured["rollout_busy_cores"]
    assert list(busy) == ["sampler", "envs"]
    assert busy == pytest.approx({"sampler": 0.95, "envs": 0.5})
    assert measured["learner_vs_gemm"] == pytest.approx(6e9 / (1e10 / 0.5))
    assert measured["sync_seconds"] == pytest.approx(0.1)
    assert measured["sync_fraction"] == pytest.approx(0.1 / 5)
    assert all(verdict["met"] for verdict in measured["targets"].values())
    slow = grpo.summarise(runs(sync=2.0, padded=[Run(seconds=1.1, counts={"tokens": 3000})], trl=[]))
    missed = [name for name, verdict in slow["targets"].items() if not verdict["met"]]
    assert missed == ["learner_vs_padded", "sync_fraction"]
    assert slow["learner_vs_trl"] is None
    told = grpo.render(slow | {"trl_reason": "it does not import here"})
    assert told.count("MISSED") == 2
    assert "sampler 0.95, envs 0.50; 1.45 of" in told
    assert "it does not import here" in told


def test_what_cannot_be_measured_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=f"--model: {tmp_path} holds no checkpoint"):
        grpo.main(model=tmp_path)
    for number, repeats, message in ((12, 3, r"12: .* groups of 8"), (16, 0, "--repeats is 0")):
        with pytest.raises(SystemExit, match=message):
            grpo.configure(tmp_path, CONFIG, (), number, repeats, seed=0)


def test_nothing_is_learned_while_it_is_measured(tmp_path: Path) -> None:
    cfg = grpo.configure(tmp_path, CONFIG, ("press", "pick"), 16, 3, seed=0)
    assert cfg.learner.lr == 0
    assert (cfg.groups_per_step, cfg.minibatches_per_step) == (2, 1)
    assert cfg.env.tasks == ("press", "pick")


def test_flop_are_those_of_the_rows_alone_and_products_those_of_the_linear_layers(checkpoint: Path) -> None:
    from dataclasses import replace

    import gemm
    from rlvla.config import GRPOConfig, LossConfig
    from tests.learning import make_groups

    cfg = GRPOConfig(model=checkpoint, loss=LossConfig(kl_coef=0.1))
    plain, free = gemm.PlainGemm(cfg), gemm.PlainGemm(replace(cfg, loss=LossConfig(kl_coef=0.0)))
    groups = make_groups(checkpoint)
    each = [plain.flop([group]) for group in groups]
    assert plain.flop(groups) == sum(each) > 0  # whatever the length of the others
    forward = plain.flop(groups) - free.flop(groups)
    assert free.flop(groups) == pytest.approx(3 * forward, rel=0.1)  # a backward is two forwards
    matrices = [m.weight.numel() for m in plain._model.modules() if isinstance(m, torch.nn.Linear)]
    assert plain.run(8).counts["flop"] % (2 * 8 * sum(matrices)) == 0


def test_the_padded_layout_fills_the_horizon_with_turns_that_teach_nothing() -> None:
    from learners import to_horizon, widen, widen_inputs
    from rlvla.config import AdvantageConfig
    from rlvla.learner import advantage, collate

    group = advantage.with_advantages(make_group((0.0, 1.0)), AdvantageConfig(), {})
    rows = collate.rows([group], mask_context_full=True)
    filled = to_horizon(rows, 5)
    assert [row.trajectory for row in filled] == [0] * 5 + [1] * 5
    assert sum(row.num_sampled_tokens for row in filled) == sum(row.num_sampled_tokens for row in rows)
    batch = widen(collate.to_batch(filled), 100)
    assert batch.loss_mask.shape == batch.weights.shape == batch.sampler_logprobs.shape == (10, 100)
    assert str(batch.loss_mask.dtype) == "torch.bool"
    shown = torch.ones(10, len(filled[0].turn.token_ids))
    inputs = widen_inputs({"input_ids": shown, "pixel_values": torch.ones(3, 2)}, 100)
    assert [tuple(tensor.shape) for tensor in inputs.values()] == [(10, 100), (3, 2)]
    assert inputs["input_ids"].sum() == shown.sum()


async def together(batch: Any, requests: Sequence[SampleRequest]) -> list[SampleOutput]:
    """What each row gets first."""
    batch.begin()
    return await asyncio.gather(*(batch.sample(i, r) for i, r in enumerate(requests)))


@pytest.mark.parametrize("architecture", ["", "idefics3", "qwen2_5_vl"])
def test_lockstep_rows_get_what_a_sampler_gives_them_alone(
    tmp_path: Path, tiny_policy: Path, architecture: str
) -> None:
    """Behind contexts of different lengths; of a parallel policy one writes while the others act."""
    from lockstep import LockstepBatch
    from rlvla.samplers.local import BatchedSampler
    from tests import parallel_policies as policies

    folder = policies.save(architecture, tmp_path) if architecture else tiny_policy
    batch, sampler = LockstepBatch(folder, 3), BatchedSampler(folder)
    vocabulary = batch.processor.vocabulary
    stop = vocabulary.mark_ids["<act>" if architecture else "</act>"]

    def request(num_images: int, instruction: str, *, max_tokens: int, acts: bool) -> SampleRequest:
        acts = acts and bool(architecture)
        rest = {"num_actions": batch.processor.decoding.num_actions} if acts else {}
        return SampleRequest(
            prompt_ids=(*batch.processor.prompt_ids(instruction, num_images), *([stop] if acts else [])),
            images=tuple(policies.image(i) for i in range(num_images)),
            stop_ids=(stop,),
            max_tokens=max_tokens,
            temperature=0.0,
            seed=0,
            **rest,
        )

    requests = [
        request(1, "press", max_tokens=6, acts=True),
        request(1, "press it", max_tokens=9, acts=False),
        request(2, "red it is", max_tokens=7, acts=True),
    ]

    async def alone() -> list[SampleOutput]:
        return [await sampler.sample(request) for request in requests]

    outputs = asyncio.run(together(batch, requests))
    assert [o.token_ids.tolist() for o in outputs] == [a.token_ids.tolist() for a in asyncio.run(alone())]
    if architecture:
        assert [len(outputs[row].token_ids) for row in (0, 2)] == [policies.NUM_ACTIONS] * 2


def test_a_decision_begins_when_all_rows_have_acted_and_none_waits_for_an_episode_that_has_ended() -> None:
    """Rows that have acted, or ended, ride along."""
    from lockstep import LockstepBatch

    phases: list[list[int]] = []

    class Written(LockstepBatch):
        """Of a policy whose outputs are written here: 9 is `</act>`."""

        def __init__(self) -> None:
            self.processor = SimpleNamespace(vocabulary=SimpleNamespace(mark_ids={"</act>": 9}))
            self._prompts, self._waiting = [None] * 3, {}

        def _generate(self, live: Sequence[int]) -> dict[int, Any]:
            phases.append(list(live))
            assert all(request is not None for request in self._requests)
            return {row: SimpleNamespace(token_ids=[self._requests[row].written]) for row in live}

    async def row(batch: LockstepBatch, index: int, written: str) -> None:
        for token in written:
            await batch.sample(index, SimpleNamespace(num_actions=0, written=int(token)))  # type: ignore[arg-type]
            await asyncio.sleep(0.001 * index)
        batch.end(index)

    async def play() -> None:
        batch = Written()
        batch.begin()
        await asyncio.gather(row(batch, 0, "99"), row(batch, 1, "1199"), row(batch, 2, "1"))

    asyncio.run(asyncio.wait_for(play(), 60))
    assert phases == [[0, 1, 2], [1], [1], [0, 1]]
