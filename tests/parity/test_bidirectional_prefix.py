"""Prompts whose tokens see each other: a row at a time with a mask written by hand, for both ways to decode actions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from rlvla.config import EvaluateConfig, SamplerConfig
from rlvla.policies.thinker.hybrid_mask import HybridAttentionError, check_hybrid
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.policies.thinker.scoring import token_logprobs
from rlvla.policies.weights import load_model, named_weights
from rlvla.protocols import SampleRequest
from rlvla.run.preflight import check_evaluate
from rlvla.samplers.local import TransformersSampler
from rlvla.samplers.vllm.sampler import SamplerError, VLLMSampler
from rlvla.testing import make_turn
from rlvla.types import SegmentKind, Turn
from tests import parallel_policies as tiny

TOLERANCE = 1e-5  # nats, float32
KINDS = [(architecture, "parallel") for architecture in tiny.ARCHITECTURES]
KINDS += [("idefics3", "autoregressive"), ("qwen2_5_vl", "autoregressive")]


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def checkpoint(request, tmp_path_factory):
    architecture, decoding = request.param
    options = {"action_decoding": decoding, "prefix_attention": "bidirectional"}
    return tiny.save(architecture, tmp_path_factory.mktemp("prefix") / architecture, **options)


@pytest.fixture(scope="module")
def processor(checkpoint):
    return PolicyProcessor.load(checkpoint)


@pytest.fixture(scope="module")
def model(checkpoint):
    return load_model(checkpoint).eval()


@pytest.fixture(scope="module")
def sampler(checkpoint):
    return TransformersSampler(checkpoint)


@pytest.fixture(scope="module")
def turns(processor) -> list[Turn]:
    return [
        tiny.turn(processor, num_zooms=0),
        tiny.turn(processor, num_zooms=2, seed=1, thought="<think>it is red. press it</think>"),
        act_at_once(tiny.turn(processor, num_zooms=0, seed=5, is_open=True)),
        garbage(processor),
    ]


def act_at_once(turn: Turn) -> Turn:
    """Without its thought: an injected `<act>` right behind the prompt, as with `mode: act`."""
    prompt, thought, *others = turn.segments
    keep = np.r_[0 : prompt.end, thought.end : len(turn.token_ids)]
    length = thought.end - thought.start
    moved = [replace(s, start=s.start - length, end=s.end - length) for s in others]
    return replace(
        turn,
        token_ids=turn.token_ids[keep],
        sampler_logprobs=turn.sampler_logprobs[keep],
        segments=(prompt, *moved),
    )


def garbage(processor: PolicyProcessor) -> Turn:
    """A turn that begins with words of the prompt where a mark should stand."""
    images = [tiny.image(9)]
    prompt = processor.expand(processor.prompt_ids(tiny.INSTRUCTION, 1), images).tolist()
    words = [*processor.vocabulary.encode("the pad is red"), processor.vocabulary.mark_ids["</act>"]]
    layout = [(SegmentKind.PROMPT, len(prompt)), (SegmentKind.MALFORMED, len(words))]
    return make_turn(layout, token_ids=[*prompt, *words], images=images)


def score(model: Any, processor: PolicyProcessor, turns: list[Turn], **options: Any) -> list[torch.Tensor]:
    """The logprobs of each turn's tokens, 0 where none was sampled."""
    logprobs, _ = token_logprobs(model, tiny.inputs(processor, *turns), **{**tiny.TEMPERATURES, **options})
    rows = [row[: len(turn.token_ids)] for row, turn in zip(logprobs, turns, strict=True)]
    return [row * torch.from_numpy(turn.loss_mask) for row, turn in zip(rows, turns, strict=True)]


@torch.no_grad()
def test_logprobs_are_those_of_a_row_at_a_time(model, processor, turns):
    causal = tiny.causally(processor)
    for scored, other, turn in zip(score(model, processor, turns), score(model, causal, turns), turns, strict=True):
        expected = tiny.oracle(model, processor, turn) * torch.from_numpy(turn.loss_mask)
        assert (scored - expected).abs().max() < TOLERANCE
        assert (scored - other).abs().max() > 1e-3


@torch.no_grad()
def test_padding_neighbours_and_their_order_do_not_matter(model, processor, turns):
    together = score(model, processor, turns)
    backwards = score(model, processor, turns[::-1])[::-1]
    for i, turn in enumerate(turns):
        alone = score(model, processor, [turn])[0]
        for other in (together[i], backwards[i], score(model, processor, [turn, turns[1]])[0]):
            assert (other - alone).abs().max() < 2e-5


@torch.no_grad()
def test_what_the_policy_says_first_is_no_prompt(model, processor, turns):
    """Without any mark before it: the first sampled token must not be seen by the prompt, nor by one another."""
    turn = turns[3]
    changed = turn.token_ids.copy()
    changed[-2] = processor.vocabulary.mark_ids["<think>"]
    before, after = score(model, processor, [turn, replace(turn, token_ids=changed)])
    assert torch.equal(before[:-2], after[:-2])
    assert before[-2] != after[-2]


def test_the_prompt_of_a_turn_ends_before_an_injected_mark(processor, turns):
    expected = len(processor.expand(processor.prompt_ids(tiny.INSTRUCTION, 1), [tiny.image(0)]))
    assert [turn.num_prefix_tokens for turn in turns] == [expected] * 4
    assert [turn.num_prefix_tokens for turn in turns] == [expected] * 4


@torch.no_grad()
def test_attentions_agree(checkpoint, processor, turns):
    model = load_model(checkpoint).eval()
    expected = score(model, processor, turns)
    model.set_attn_implementation({"text_config": "eager"})
    for scored, other in zip(score(model, processor, turns), expected, strict=True):
        assert (scored - other).abs().max() < 2e-5


@pytest.mark.parametrize("temperature", [1.0, 1.6, 0.0])
async def test_the_transformers_sampler_says_what_the_learner_says(sampler, model, processor, temperature):
    turn = await tiny.sampled_turn(sampler, processor, temperature)
    options = {"temperature": temperature or 1.0, "action_temperature": temperature / 2 or 1.0}
    (scored,) = score(model, processor, [turn], **options)
    assert np.abs(scored.detach().numpy() - turn.sampler_logprobs).max() < TOLERANCE


async def test_new_weights_act_at_once_and_must_be_all_of_them(checkpoint, processor):
    sampler, model = TransformersSampler(checkpoint), load_model(checkpoint)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    weights = {name: tensor.detach().numpy() for name, tensor in named_weights(model)}
    some = dict(list(weights.items())[1:])
    with pytest.raises(ValueError, match="1 weights are missing or not in the checkpoint"):
        sampler.load_weights(some, 3)
    sampler.load_weights(weights, 3)
    turn = await tiny.sampled_turn(sampler, processor, 1.0)
    (scored,) = score(model, processor, [turn], temperature=1.0, action_temperature=0.5)
    assert np.abs(scored.detach().numpy() - turn.sampler_logprobs).max() < TOLERANCE


async def test_a_request_must_say_how_long_its_prompt_is(sampler, processor):
    request = SampleRequest(
        prompt_ids=processor.prompt_ids(tiny.INSTRUCTION, 1),
        images=(tiny.image(0),),
        stop_ids=(),
        max_tokens=2,
        temperature=1.0,
        seed=0,
    )
    for num_prefix_tokens in (0, 10_000):
        with pytest.raises(ValueError, match=f"num_prefix_tokens is {num_prefix_tokens}, the context has"):
            await sampler.sample(replace(request, num_prefix_tokens=num_prefix_tokens))
    ids = torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="need num_prefix_tokens"):
        processor.forward_inputs(ids, torch.ones_like(ids), torch.zeros_like(ids, dtype=torch.bool))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_check_passes_and_fails_where_the_mask_is_ignored(checkpoint, processor, dtype):
    model = load_model(checkpoint, dtype)
    check_hybrid(model, processor)
    forward = model.forward

    def deaf(attention_mask=None, **kwargs: Any) -> Any:
        return forward(attention_mask=None, **kwargs)

    model.forward = deaf
    with pytest.raises(HybridAttentionError, match="the prompt is not bidirectional"):
        check_hybrid(model, processor)

    def bidirectional(attention_mask, **kwargs: Any) -> Any:
        return forward(attention_mask=torch.ones_like(attention_mask), **kwargs)

    model.forward = bidirectional
    with pytest.raises(HybridAttentionError, match="see what comes behind"):
        check_hybrid(model, processor)

    def causal_prompt(attention_mask, **kwargs: Any) -> Any:
        mask, end = attention_mask.clone(), len(processor.vocabulary.encode("a b a b"))
        mask[..., :end, :] &= torch.ones_like(mask[..., :end, :]).tril()
        return forward(attention_mask=mask, **kwargs)

    model.forward = causal_prompt
    with pytest.raises(HybridAttentionError, match="the prompt is not bidirectional"):
        check_hybrid(model, processor)


def test_a_checkpoint_keeps_it_and_vllm_refuses_it(checkpoint, processor, tmp_path):
    assert processor.settings.prefix_attention == "bidirectional"
    expected = "prefix_attention: bidirectional.* set sampler.backend to transformers"
    with pytest.raises(SamplerError, match=expected):
        VLLMSampler(checkpoint, SamplerConfig(), max_images=1, max_model_len=256)
    with pytest.raises(ValueError, match=expected):
        check_evaluate(EvaluateConfig(model=checkpoint))
