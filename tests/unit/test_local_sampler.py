"""Requests that wait are drawn together, each out of its own seed, and no batch mixes versions."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlvla.policies import family
from rlvla.policies.buckets import Weights, make_buckets
from rlvla.protocols import SampleRequest
from rlvla.samplers.local import BatchedSampler
from tests.parallel_policies import in_one_bucket
from tests.unit.coin_family import Coin, CoinPolicy
from tests.wordless import LOUD, WORDLESS, asked, make_policy, moved, score


@pytest.fixture
def sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Requests in each batch that is drawn; the checkpoint is `tmp_path / "coin"`."""
    monkeypatch.setitem(family.FAMILIES, "coin", "tests.unit.coin_family:FAMILY")
    CoinPolicy().save(Coin(), tmp_path / "coin")
    drawn, draw = [], CoinPolicy.draw

    def counted(policy: CoinPolicy, model: Any, requests: Any, generators: Any) -> Any:
        drawn.append(len(requests))
        if any(request.seed == 99 for request in requests):
            raise ValueError("unlucky")
        return draw(policy, model, requests, generators)

    monkeypatch.setattr(CoinPolicy, "draw", counted)
    return drawn


def request(seed: int) -> SampleRequest:
    return SampleRequest(images=(), temperature=1.0, seed=seed)


def ask(sampler: BatchedSampler, *seeds: int) -> list[Any]:
    async def all_of() -> list[Any]:
        asked = [asyncio.create_task(sampler.sample(request(seed))) for seed in seeds]
        return await asyncio.gather(*asked, return_exceptions=True)

    return asyncio.run(all_of())


def test_what_waits_is_drawn_together(tmp_path: Path, sizes: list[int]) -> None:
    alone, together = BatchedSampler(tmp_path / "coin"), BatchedSampler(tmp_path / "coin", max_num_seqs=8)
    ones = ask(alone, *range(20))
    assert sizes == [1] * 20
    sizes.clear()

    async def all_of() -> list[Any]:
        with together._lock:  # until all have asked
            asked = [asyncio.create_task(together.sample(request(seed))) for seed in range(20)]
            await asyncio.sleep(0.2)
        return await asyncio.gather(*asked)

    outputs = asyncio.run(all_of())
    assert max(sizes) == 8
    assert sum(sizes) == 20
    for one, other in zip(ones, outputs, strict=True):
        np.testing.assert_array_equal(one.token_ids, other.token_ids)
        assert one.policy_version == other.policy_version == 0
    alone.close()
    together.close()


def test_a_request_that_fails_tells_who_asked_and_no_other(tmp_path: Path, sizes: list[int]) -> None:
    sampler = BatchedSampler(tmp_path / "coin")
    first, second = ask(sampler, 99, 14)
    assert isinstance(first, ValueError)
    assert second.token_ids.shape == (1,)
    sampler.close()


def test_weights_change_between_batches(tmp_path: Path, sizes: list[int]) -> None:
    sampler, sure = BatchedSampler(tmp_path / "coin", max_num_seqs=4), Coin()
    with torch.no_grad():
        sure.logits.copy_(torch.tensor([0.0, 0.0, 99.0, 0.0]))
    policy = CoinPolicy()
    parts = policy.weight_parts(sure)
    buckets = make_buckets(parts, 1000, lambda part: policy.named_weights(sure, part))
    sampler.load_weights(Weights(names=frozenset({"logits"}), buckets=buckets), 5)
    outputs = ask(sampler, *range(6))
    assert [(int(output.token_ids[0]), output.policy_version) for output in outputs] == [(2, 5)] * 6
    sampler.close()


@pytest.mark.parametrize("family", WORDLESS)
def test_weights_that_come_in_the_midst_of_a_batch_wait_for_its_end(family: str, tmp_path: Path) -> None:
    """What a policy draws is as probable as it says under the weights that it names, and not under the others."""
    model, policy = make_policy(family)
    policy.save(model, tmp_path)
    models = (model, moved(model))
    sampler = BatchedSampler(tmp_path, max_num_seqs=4)
    newer = in_one_bucket(dict(policy.named_weights(models[1])))
    load = threading.Thread(target=sampler.load_weights, args=(newer, 1))

    def begin_to_load(*_: Any) -> None:
        if load.ident is None:
            load.start()
            load.join(0.5)  # without a lock it would end by now

    hook = torch.nn.modules.module.register_module_forward_hook(begin_to_load)
    turns = asked(sampler, policy, LOUD[family])
    hook.remove()
    load.join()
    turns += asked(sampler, policy, LOUD[family])
    sampler.close()
    versions = [turn.policy_version for turn in turns]
    assert versions[0] == 0
    assert versions[8:] == [1] * 8
    with torch.no_grad():
        scores = [score(each, policy, turns).logprobs for each in models]
    for row, turn in enumerate(turns):
        own, other = (scores[v][row, : len(turn.token_ids)] for v in (versions[row], 1 - versions[row]))
        np.testing.assert_allclose(own, turn.sampler_logprobs, atol=1e-3)
        assert np.abs(other - turn.sampler_logprobs).max() > 0.01
