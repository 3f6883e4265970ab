"""Parallel action decoding against a row at a time with a mask written by hand, on every architecture."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from rlvla.policies.thinker.hybrid_mask import HybridAttentionError, check_hybrid, hybrid_mask
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.policies.thinker.scoring import token_logprobs
from rlvla.policies.weights import load_model, named_weights
from rlvla.protocols import SampleRequest
from rlvla.samplers.local import TransformersSampler
from rlvla.types import Turn
from tests import parallel_policies as tiny

TOLERANCE = 1e-5  # nats, float32


@pytest.fixture(scope="module", params=tiny.ARCHITECTURES)
def checkpoint(request, tmp_path_factory):
    return tiny.save(request.param, tmp_path_factory.mktemp("parallel") / request.param)


@pytest.fixture(scope="module")
def processor(checkpoint):
    return PolicyProcessor.load(checkpoint)


@pytest.fixture(scope="module")
def model(checkpoint):
    return load_model(checkpoint).eval()


@pytest.fixture(scope="module")
def turns(processor) -> list[Turn]:
    return [
        tiny.turn(processor, num_zooms=0),
        tiny.turn(processor, num_zooms=2, seed=1, thought="<think>it is red. press it</think>"),
        tiny.turn(processor, seed=5, is_open=True),
    ]


def score(model: Any, processor: PolicyProcessor, turns: list[Turn], **options: Any) -> list[torch.Tensor]:
    """The logprobs of each turn's tokens."""
    logprobs, _ = token_logprobs(model, tiny.inputs(processor, *turns), **{**tiny.TEMPERATURES, **options})
    return [row[: len(turn.token_ids)] for row, turn in zip(logprobs, turns, strict=True)]


@torch.no_grad()
def test_logprobs_are_those_of_a_row_at_a_time(model, processor, turns):
    for scored, turn in zip(score(model, processor, turns), turns, strict=True):
        expected = tiny.oracle(model, processor, turn)
        assert expected[torch.from_numpy(turn.loss_mask)].std() > 0.1
        assert (scored - expected).abs()[torch.from_numpy(turn.loss_mask)].max() < TOLERANCE


@torch.no_grad()
def test_entropy_is_that_of_what_was_drawn_from(model, processor, turns):
    _, entropy = token_logprobs(model, tiny.inputs(processor, *turns), first=2, with_entropy=True, **tiny.TEMPERATURES)
    assert entropy is not None
    for row, turn in zip(entropy, turns, strict=True):
        difference = row[: len(turn.token_ids)] - tiny.oracle(model, processor, turn, entropy=True)
        assert difference[2:].abs().max() < 2e-5


@torch.no_grad()
def test_padding_neighbours_and_their_order_do_not_matter(model, processor, turns):
    together = score(model, processor, turns)
    backwards = score(model, processor, turns[::-1])[::-1]
    for i, turn in enumerate(turns):
        alone = score(model, processor, [turn])[0]
        for other in (together[i], backwards[i], score(model, processor, [turn, turns[1]])[0]):
            assert (other - alone).abs().max() < 2e-5


@torch.no_grad()
def test_actions_do_not_depend_on_the_actions_taken_nor_does_the_text_before(model, processor, turns):
    turn = turns[1]
    act, _ = tiny.places(turn)
    changed = turn.token_ids.copy()
    changed[act + 1] = next(i for i in processor.vocabulary.action_ids if i != changed[act + 1])
    before, after = score(model, processor, [turn, replace(turn, token_ids=changed)])
    is_other = torch.arange(len(changed)) == act + 1
    assert torch.equal(before[~is_other], after[~is_other])
    assert before[act + 1] != after[act + 1]


@torch.no_grad()
def test_text_before_the_block_does_not_depend_on_the_block(model, processor, turns):
    turn = turns[1]
    act, _ = tiny.places(turn)
    cut = replace(
        turn,
        token_ids=turn.token_ids[:act],
        sampler_logprobs=turn.sampler_logprobs[:act],
        segments=tuple(s for s in turn.segments if s.end <= act),
    )
    assert (score(model, processor, [cut])[0] - score(model, processor, [turn])[0][:act]).abs().max() < TOLERANCE


def test_gradients_reach_every_slot(model, processor, turns):
    model.zero_grad()
    torch.cat(score(model, processor, turns)).sum().backward()
    gradient = model.get_input_embeddings().weight.grad
    model.zero_grad()
    assert (gradient[list(processor.vocabulary.slot_ids)].abs().amax(1) > 1e-4).all()


ATTENTIONS = ["eager", pytest.param("flex_attention", marks=pytest.mark.long)]  # flex compiles for half a minute


@pytest.mark.parametrize("attention", ATTENTIONS)
@torch.no_grad()
def test_attentions_agree(checkpoint, processor, turns, attention):
    model = load_model(checkpoint).eval()
    expected = score(model, processor, turns)
    if attention == "flex_attention" and "qwen" in model.config.model_type:
        pytest.skip("transformers has no flex_attention for Qwen-VL, and says so")
    model.set_attn_implementation({"text_config": attention})
    for scored, other in zip(score(model, processor, turns), expected, strict=True):
        assert (scored - other).abs().max() < 2e-5


def test_a_checkpoint_keeps_how_it_decodes(processor):
    assert processor.settings.action_decoding == "parallel"
    assert processor.decoding.num_actions == tiny.NUM_ACTIONS
    assert processor.vocabulary.decode(processor.vocabulary.slot_ids[-1:]) == f"<slot_{tiny.NUM_ACTIONS - 1}>"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_check_passes_and_fails_where_the_mask_is_ignored(checkpoint, processor, dtype):
    model = load_model(checkpoint, dtype)
    check_hybrid(model, processor)
    forward = model.forward

    def deaf(attention_mask=None, **kwargs: Any) -> Any:
        return forward(attention_mask=None, **kwargs)

    model.forward = deaf
    with pytest.raises(HybridAttentionError, match="not bidirectional"):
        check_hybrid(model, processor)

    def bidirectional(attention_mask, **kwargs: Any) -> Any:
        return forward(attention_mask=torch.ones_like(attention_mask), **kwargs)

    model.forward = bidirectional
    with pytest.raises(HybridAttentionError, match="see what comes behind"):
        check_hybrid(model, processor)


def test_flash_attention_is_refused(checkpoint):
    model = load_model(checkpoint)
    model.config.get_text_config()._attn_implementation = "flash_attention_2"
    where = (
        r"attn_implementation is 'flash_attention_2'.* action_decoding.*leave it out of the checkpoint's config\.json"
    )
    with pytest.raises(ValueError, match=where):
        hybrid_mask(model, torch.zeros(1, 4), torch.ones(1, 4))


def test_a_checkpoint_chooses_its_attention_in_the_file_that_the_refusal_names(checkpoint, tmp_path):
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    chosen = []
    for attention in ("eager", None):
        (copy / "config.json").write_text(json.dumps({**config, "attn_implementation": attention}))
        model = load_model(copy)
        chosen.append(model.config.get_text_config()._attn_implementation)
    assert chosen == ["eager", "sdpa"]


def test_the_mask_is_a_block_in_a_triangle():
    model = tiny.tiny_checkpoints.build("idefics3", tiny.CORPUS, tiny.NUM_BINS, **tiny.SIZES)[0]
    blocks, padding = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 1, 1, 2]]), torch.tensor([[1, 1, 1, 1, 0], [1] * 5])
    mask = hybrid_mask(model, blocks, padding)[:, 0].int().tolist()
    assert mask[0] == [[1, 0, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0]]
    assert mask[1] == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]


@pytest.fixture(scope="module")
def sampler(checkpoint):
    return TransformersSampler(checkpoint)


@pytest.mark.parametrize("temperature", [1.0, 1.6, 0.0])
async def test_the_transformers_sampler_says_what_the_learner_says(sampler, model, processor, temperature):
    turn = await tiny.sampled_turn(sampler, processor, temperature)
    options = {"temperature": temperature or 1.0, "action_temperature": temperature / 2 or 1.0}
    (scored,) = score(model, processor, [turn], **options)
    assert np.abs(scored.detach().numpy() - turn.sampler_logprobs)[turn.loss_mask].max() < 1e-4


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
async def test_a_causal_chunk_comes_out_of_one_forward_too(tmp_path, architecture):
    """And takes no mask, hence goes with every attention."""
    path = tiny.save(architecture, tmp_path, action_decoding="parallel_causal")
    processor, model = PolicyProcessor.load(path), load_model(path)
    assert (processor.decoding.at_once, processor.decoding.is_hybrid) == (True, False)
    sampled = await tiny.sampled_turn(TransformersSampler(path), processor, 1.3, action_temperature=0.6)
    turns = [sampled, tiny.turn(processor, num_zooms=0), tiny.turn(processor, seed=5, is_open=True)]
    assert "block_ids" not in tiny.inputs(processor, *turns)
    with torch.no_grad():
        for scored, turn in zip(score(model, processor, turns), turns, strict=True):
            expected = tiny.oracle(model, processor, turn)
            assert (scored - expected).abs()[torch.from_numpy(turn.loss_mask)].max() < TOLERANCE
    assert np.abs(expected.numpy()[turn.loss_mask]).max() > 0.1
    scored = score(model, processor, [sampled])[0].detach().numpy()
    assert np.abs(scored - sampled.sampler_logprobs)[sampled.loss_mask].max() < 1e-4


@pytest.mark.parametrize("decoding", ["parallel", "autoregressive"])
@pytest.mark.parametrize("architecture", ["qwen2_5_vl", "qwen3_vl"])
async def test_a_prompt_without_images_does_not_depend_on_the_one_before(tmp_path, architecture, decoding):
    """Qwen-VL keeps by how much the pictures of the last prompt shifted the positions behind them."""
    path = tiny.save(architecture, tmp_path, action_decoding=decoding)
    sampler, processor = TransformersSampler(path), PolicyProcessor.load(path)
    request = SampleRequest(
        prompt_ids=processor.prompt_ids(tiny.INSTRUCTION, 1),
        images=(tiny.image(0),),
        stop_ids=(),
        max_tokens=8,
        temperature=1.0,
        seed=0,
    )
    await sampler.sample(request)
    output = await sampler.sample(replace(request, prompt_ids=processor.prompt_ids(tiny.INSTRUCTION, 0), images=()))
    ids = torch.from_numpy(np.concatenate([output.context_ids, output.token_ids])).long()[None]
    inputs = processor.forward_inputs(ids, torch.ones_like(ids), torch.zeros_like(ids, dtype=torch.bool))
    with torch.no_grad():
        logprobs, _ = token_logprobs(load_model(path), inputs)
    assert np.abs(logprobs[0, len(output.context_ids) :].numpy() - output.logprobs).max() < 1e-4


async def test_new_weights_act_at_once_with_a_new_version(checkpoint, processor):
    sampler, model = TransformersSampler(checkpoint), load_model(checkpoint)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    sampler.load_weights({name: tensor.detach().numpy() for name, tensor in named_weights(model)}, 3)
    turn = await tiny.sampled_turn(sampler, processor, 1.0)
    (scored,) = score(model, processor, [turn], temperature=1.0, action_temperature=0.5)
    assert np.abs(scored.detach().numpy() - turn.sampler_logprobs)[turn.loss_mask].max() < 1e-4
