from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rlvla.samplers.vllm.plugin.request import EXTRA_ARG, ActionBlock
from rlvla.samplers.vllm.plugin.step import ActionBlockError, draw, plan, uniforms

P = torch.tensor([0.5, 0.25, 0.125, 0.125, 0.0])
"""Of the bins."""


def draw_many(logits: torch.Tensor, temperature: float, num: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One action of each of `num` seeds."""
    targets = torch.cat([uniforms(seed, 1) for seed in range(num)])
    return draw(logits.expand(num, -1), torch.full((num,), temperature), targets)


def chi_square(bins: torch.Tensor, expected: torch.Tensor) -> float:
    counts = torch.bincount(bins, minlength=len(expected))[expected > 0]
    expected = expected[expected > 0] * len(bins)
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_draws_over_seeds_follow_the_softmax_at_the_temperature(temperature: float) -> None:
    bins, logprobs = draw_many(P.log(), temperature, 8000)
    expected = (P.log() / temperature).softmax(-1)
    assert chi_square(bins, expected) < 16.3  # 0.999 quantile, 3 degrees of freedom
    assert int(bins.max()) == 3  # the impossible bin was never drawn
    assert torch.allclose(logprobs, expected.log()[bins], atol=1e-6)


@pytest.mark.parametrize(("uniform", "bin_"), [(0.0, 0), (0.4999, 0), (0.5001, 1), (0.75001, 2), (1 - 2**-53, 3)])
def test_a_uniform_number_picks_the_bin_it_falls_into(uniform: float, bin_: int) -> None:
    bins, _ = draw(P.log()[None], torch.ones(1), torch.tensor([uniform], dtype=torch.float64))
    assert bins.tolist() == [bin_]


def test_greedy_and_sampled_rows_in_one_batch() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [0.0, 3.0, 1.0]])
    bins, logprobs = draw(logits, torch.tensor([0.0, 2.0]), torch.tensor([0.99, 0.99], dtype=torch.float64))
    assert bins.tolist() == [1, 2]
    expected = [logits[0].log_softmax(-1)[1], (logits[1] / 2).log_softmax(-1)[2]]
    assert torch.allclose(logprobs, torch.stack(expected))


def test_draws_within_a_block_are_independent() -> None:
    pairs = (torch.stack([uniforms(seed, 2) for seed in range(4000)]) * 4).long()
    assert chi_square(pairs[:, 0] * 4 + pairs[:, 1], torch.full((16,), 1 / 16)) < 37.7  # 0.999, 15 degrees of freedom


def test_a_seed_fixes_the_numbers_and_a_longer_block_starts_alike() -> None:
    assert uniforms(3, 56).tolist() == uniforms(3, 56).tolist()
    assert uniforms(3, 56).tolist() != uniforms(4, 56).tolist()
    assert uniforms(3, 56)[:14].tolist() == uniforms(3, 14).tolist()


def action_params(num_actions: int) -> SimpleNamespace:
    block = ActionBlock(key="k", num_actions=num_actions, temperature=1.0, seed=num_actions)
    return SimpleNamespace(extra_args={EXTRA_ARG: vars(block)})


def runner(*requests: tuple[int, int, int]) -> tuple[SimpleNamespace, dict[str, int]]:
    """Of (prompt tokens, tokens computed before, actions) each; the whole rest is computed in this step."""
    names = [str(i) for i in range(len(requests))]
    states = {
        name: SimpleNamespace(
            num_prompt_tokens=p, sampling_params=action_params(n) if n else SimpleNamespace(extra_args=None)
        )
        for name, (p, _, n) in zip(names, requests, strict=True)
    }
    batch = SimpleNamespace(req_ids=names, num_computed_tokens_cpu=np.array([c for _, c, _ in requests]))
    scheduled = {name: p - c for name, (p, c, _) in zip(names, requests, strict=True)}
    return SimpleNamespace(requests=states, input_batch=batch, device=torch.device("cpu")), scheduled


def test_a_step_knows_where_its_blocks_lie() -> None:
    step = plan(*runner((10, 8, 0), (20, 12, 3), (9, 0, 0), (40, 32, 5)))
    assert step is not None
    # Tokens of the step: 0-1 words, 2-9 the first block's request, 10-18 words, 19-26 the second's.
    assert step.tokens.tolist() == [6, 7, 8, 9, 21, 22, 23, 24, 25, 26]
    assert [(row.index, row.end, row.seq_len) for row in step.rows] == [(1, 10, 20), (3, 27, 40)]


def test_a_step_without_blocks_is_none() -> None:
    assert plan(*runner((10, 8, 0))) is None
    assert plan(SimpleNamespace(), {}) is None  # vLLM's warm-up


def test_a_chunk_of_the_prefix_waits_for_its_block() -> None:
    batch, scheduled = runner((20, 0, 3))
    assert plan(batch, {"0": 16}) is None
    assert plan(batch, scheduled) is not None


@pytest.mark.parametrize(("computed", "scheduled"), [(0, 17), (0, 19), (17, 3), (19, 1)])
def test_a_torn_block_is_refused(computed: int, scheduled: int) -> None:
    batch, _ = runner((20, computed, 3))
    with pytest.raises(ActionBlockError, match=r"tokens 16 to 19 are an action block, this step computes"):
        plan(batch, {"0": scheduled})
