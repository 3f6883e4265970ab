"""Arithmetic, keys and errors of scripts/benchmark.py, and that its baselines do the work that they claim to do."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmark import configure, main, parse
from benchmark_result import Run, cpu_model, medians, summarise, table
from rlvla.testing import make_group


def step(seconds: float, sync: float = 0.1) -> Run:
    rollout = Run(
        seconds=2.0, counts={"trajectories": 8, "env_steps": 40, "decisions": 12}, facts={"success": seconds / 10}
    )
    parts = {
        "rollout": rollout,
        "learner": Run(seconds=1.0, counts={"tokens": 3000}),
        "sync": Run(seconds=sync),
    }
    return Run(seconds=seconds, parts=parts)


def runs(**changes: Any) -> dict[str, list[Run]]:
    tokens = {"tokens": 3000}
    return {
        "step": [step(4.0), step(5.0), step(10.0)],
        "lockstep": [Run(seconds=8.0, counts={"trajectories": 8, "env_steps": 48})],
        "simulator": [Run(seconds=1.0, counts={"trajectories": 8, "env_steps": 400})],
        "padded": [Run(seconds=2.0, counts=tokens)],
        "longest": [Run(seconds=1.5, counts=tokens)],
        "trl": [Run(seconds=3.0, counts=tokens)],
    } | changes


def result(**changes: Any) -> dict[str, Any]:
    machine = {"gpu": None, "cpu": "a processor", "cores": 2}
    return summarise(runs(**changes)) | {"machine": machine, "repeats": 3, "trl_reason": ""}


def test_rates_are_medians_over_runs_and_facts_are_means() -> None:
    measured = medians([Run(seconds=s, counts={"tokens": 12}, facts={"success": s}) for s in (1.0, 2.0, 6.0)])
    assert measured == {"seconds": [1.0, 2.0, 6.0], "tokens_per_s": 6.0, "success": 3.0}


def test_ratios_and_targets_by_hand() -> None:
    measured = result()
    assert measured["rollout_vs_lockstep"] == pytest.approx((8 / 2) / (8 / 8))
    assert measured["rollout_vs_simulator"] == pytest.approx((40 / 2) / 400)
    assert measured["learner_vs_padded"] == pytest.approx(2.0)
    assert measured["learner_vs_longest"] == pytest.approx(1.5)
    assert measured["learner_vs_trl"] == pytest.approx(3.0)
    assert measured["sync_seconds"] == pytest.approx(0.1)
    assert measured["sync_fraction"] == pytest.approx(0.1 / 5)
    assert {name: verdict["met"] for name, verdict in measured["targets"].items()} == {
        "rollout_vs_lockstep": True,
        "learner_vs_padded": True,
        "sync_fraction": True,
    }


def test_a_missed_target_is_said() -> None:
    slow = result(step=[step(4.0, sync=2.0)], padded=[Run(seconds=1.1, counts={"tokens": 3000})])
    assert not slow["targets"]["sync_fraction"]["met"]
    assert not slow["targets"]["learner_vs_padded"]["met"]
    assert table(slow).count("MISSED") == 2
    assert "MISSED" not in table(result())


def test_without_trl_the_reason_stands_in_its_place() -> None:
    measured = result(trl=[]) | {"trl_reason": "it does not import here"}
    assert measured["trl"] is None
    assert measured["learner_vs_trl"] is None
    assert "it does not import here" in table(measured)


def test_the_processor_is_named(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nmodel name\t: Fast 3000\n\nprocessor\t: 1\nmodel name\t: Fast 3000\n")
    assert cpu_model(file) == "Fast 3000"
    assert cpu_model(tmp_path / "absent")


def test_a_folder_without_checkpoint_is_an_error_that_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--model", str(tmp_path)])
    assert f"--model: {tmp_path} holds no checkpoint" in capsys.readouterr().err


def test_trajectories_must_make_whole_groups(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    args = parse(["--model", str(tmp_path), "--num-trajectories", "12"])
    with pytest.raises(SystemExit, match=r"12: .* groups of 8"):
        configure(args)


def test_nothing_is_learned_while_it_is_measured(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    cfg = configure(parse(["--model", str(tmp_path), "--num-trajectories", "16"]))
    assert cfg.learner.lr == 0
    assert cfg.groups_per_step == 2


def test_the_padded_layout_fills_the_horizon_with_turns_that_teach_nothing() -> None:
    from benchmark_padded import to_horizon, widen
    from rlvla.config import AdvantageConfig
    from rlvla.learner import advantage, collate

    group = advantage.with_advantages(make_group((0.0, 1.0)), AdvantageConfig(), {})
    rows = collate.rows([group], mask_context_full=True)
    filled = to_horizon(rows, 5)
    assert [row.trajectory for row in filled] == [0] * 5 + [1] * 5
    assert sum(row.num_sampled_tokens for row in filled) == sum(row.num_sampled_tokens for row in rows)
    batch = widen(collate.to_batch(filled, pad_id=0), 100, pad_id=0)
    assert batch.input_ids.shape == batch.weights.shape == batch.sampler_logprobs.shape == (10, 100)
    assert int(batch.attention_mask.sum()) == sum(len(row.token_ids) for row in filled)


def test_a_lockstep_row_gets_what_it_would_get_alone(tiny_policy: Path) -> None:
    from benchmark_lockstep import LockstepBatch
    from rlvla.protocols import SampleOutput, SampleRequest

    rng = np.random.default_rng(0)

    def request(batch: LockstepBatch, instruction: str, num_images: int, max_tokens: int) -> SampleRequest:
        return SampleRequest(
            prompt_ids=batch.processor.prompt_ids(instruction, num_images),
            images=tuple(rng.integers(0, 256, (num_images, 64, 64, 3), dtype=np.uint8)),
            stop_ids=(batch.processor.vocabulary.mark_ids["</act>"],),
            max_tokens=max_tokens,
            temperature=0.0,
            seed=0,
        )

    def play(batch: LockstepBatch, requests: list[SampleRequest]) -> list[list[int]]:
        async def all_rows() -> list[SampleOutput]:
            batch.begin(range(len(requests)))
            return await asyncio.gather(*(batch.sample(i, r) for i, r in enumerate(requests)))

        return [output.token_ids.tolist() for output in asyncio.run(all_rows())]

    batch = LockstepBatch(tiny_policy, 3)
    requests = [request(batch, "look", 1, 5), request(batch, "press the red pad", 2, 9), request(batch, "go", 1, 7)]
    together = play(batch, requests)
    alone = [play(LockstepBatch(tiny_policy, 1), [r])[0] for r in requests]
    assert together == alone
    assert all(1 <= len(tokens) <= r.max_tokens for tokens, r in zip(together, requests, strict=True))


@pytest.mark.parametrize("architecture", ["idefics3", "qwen2_5_vl"])
def test_lockstep_rows_of_a_parallel_policy_get_what_its_sampler_gives(tmp_path: Path, architecture: str) -> None:
    """One writes while the others act, behind contexts of different lengths."""
    from benchmark_lockstep import LockstepBatch
    from rlvla.protocols import SampleOutput, SampleRequest
    from rlvla.samplers.local import TransformersSampler
    from tests import parallel_policies as policies

    folder = policies.save(architecture, tmp_path)
    batch, sampler = LockstepBatch(folder, 3), TransformersSampler(folder)
    vocabulary = batch.processor.vocabulary
    act = vocabulary.mark_ids["<act>"]

    def request(number: int, instruction: str, *, acts: bool) -> SampleRequest:
        rest = {"slot_ids": vocabulary.slot_ids, "action_ids": vocabulary.action_ids} if acts else {}
        return SampleRequest(
            prompt_ids=(*batch.processor.prompt_ids(instruction, number), *([act] if acts else [])),
            images=tuple(policies.image(i) for i in range(number)),
            stop_ids=(act,),
            max_tokens=6,
            temperature=0.0,
            seed=0,
            **rest,
        )

    requests = [request(1, "press", acts=True), request(1, "press it", acts=False), request(2, "red it is", acts=True)]

    async def both() -> tuple[list[SampleOutput], list[SampleOutput]]:
        batch.begin(range(3))
        together = await asyncio.gather(*(batch.sample(i, r) for i, r in enumerate(requests)))
        return together, [await sampler.sample(r) for r in requests]

    together, alone = asyncio.run(both())
    assert [t.token_ids.tolist() for t in together] == [a.token_ids.tolist() for a in alone]
    assert [len(together[row].token_ids) for row in (0, 2)] == [policies.NUM_ACTIONS] * 2


def test_a_row_that_has_acted_is_not_waited_for_and_stays_in_the_batch(tiny_policy: Path) -> None:
    from benchmark_lockstep import LockstepBatch
    from rlvla.protocols import SampleRequest

    batch = LockstepBatch(tiny_policy, 2)
    marks = batch.processor.vocabulary.mark_ids
    request = SampleRequest(
        prompt_ids=batch.processor.prompt_ids("look", 0),
        images=(),
        stop_ids=(marks["</tool>"], marks["</act>"]),
        max_tokens=4,
        temperature=1.0,
        seed=0,
    )

    async def row(index: int, num_phases: int) -> int:
        for _ in range(num_phases):
            output = await batch.sample(index, request)
            assert 1 <= len(output.token_ids) <= 4
        batch.leave(index)
        return num_phases

    async def decide() -> list[int]:
        batch.begin([0, 1])
        return await asyncio.gather(row(0, 1), row(1, 3))

    assert asyncio.run(asyncio.wait_for(decide(), 60)) == [1, 3]
