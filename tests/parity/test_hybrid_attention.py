"""Slots and prompts that see what is behind them, on every architecture, against a row at a time and a mask by hand."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlvla.config import EpisodeConfig, EvaluateConfig, SamplerConfig
from rlvla.learner.collate import to_batch, to_row
from rlvla.policies.thinker.hybrid_mask import HybridAttentionError, check_hybrid, hybrid_mask
from rlvla.policies.thinker.policy import Thinker
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.policies.weights import load_model, named_weights
from rlvla.protocols import SampleRequest
from rlvla.run.preflight import check_evaluate
from rlvla.samplers.local import BatchedSampler
from rlvla.samplers.vllm.sampler import SamplerError, VLLMSampler
from rlvla.types import SegmentKind, Turn
from tests import parallel_policies as tiny
from tests.trajectories import make_turn

KINDS = [(architecture, "parallel", "causal") for architecture in tiny.ARCHITECTURES]
KINDS += [(architecture, "parallel", "bidirectional") for architecture in tiny.ARCHITECTURES]
KINDS += [(architecture, "parallel_causal", "causal") for architecture in tiny.ARCHITECTURES]
KINDS += [(architecture, "autoregressive", "bidirectional") for architecture in ("idefics3", "qwen2_5_vl")]


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def checkpoint(request, tmp_path_factory):
    architecture, decoding, prefix = request.param
    options = {"action_decoding": decoding, "prefix_attention": prefix}
    return tiny.save(architecture, tmp_path_factory.mktemp("hybrid") / architecture, **options)


@pytest.fixture(scope="module")
def processor(checkpoint):
    return PolicyProcessor.load(checkpoint)


@pytest.fixture(scope="module")
def model(checkpoint):
    return load_model(checkpoint).eval()


@pytest.fixture(scope="module")
def sampler(checkpoint):
    return BatchedSampler(checkpoint)


@pytest.fixture(scope="module")
def turns(processor) -> list[Turn]:
    return [
        tiny.turn(processor, num_zooms=0),
        tiny.turn(processor, num_zooms=2, seed=1, thought="<think>it is red. press it</think>"),
        tiny.turn(processor, seed=5, is_open=True),
        act_at_once(tiny.turn(processor, num_zooms=0, seed=5, is_open=True)),
        garbage(processor),
    ]


def act_at_once(turn: Turn) -> Turn:
    """Without its thought: an injected `<act>` right behind the prompt, as with `mode: act`."""
    prompt, thought, *others = turn.segments
    keep = np.r_[0 : prompt.end, thought.end : len(turn.token_ids)]
    length = thought.end - thought.start
    moved = [replace(s, start=s.start - length, end=s.end - length) for s in others]
    scores = turn.sampler_logprobs[keep]
    return replace(turn, token_ids=turn.token_ids[keep], sampler_logprobs=scores, segments=(prompt, *moved))


def garbage(processor: PolicyProcessor) -> Turn:
    """A turn that begins with words of the prompt where a mark should stand."""
    images = [tiny.image(9)]
    prompt = processor.expand(processor.prompt_ids(tiny.INSTRUCTION, 1), images).tolist()
    words = [*processor.vocabulary.encode("the pad is red"), processor.vocabulary.mark_ids["</act>"]]
    layout = [(SegmentKind.PROMPT, len(prompt)), (SegmentKind.MALFORMED, len(words))]
    return make_turn(layout, token_ids=[*prompt, *words], images=images)


def score(
    model: Any, processor: PolicyProcessor, turns: list[Turn], among: torch.Tensor | None = None, **changes: Any
) -> list[torch.Tensor]:
    """[2, sampled tokens] logprob and entropy of each turn, in one batch; `among` are the tokens that are scored."""
    episode = EpisodeConfig(**{**tiny.TEMPERATURES, **changes})
    inputs = tiny.inputs(processor, *turns)
    with torch.no_grad():
        both: Any = Thinker(processor).logprobs(model, inputs, episode, mask=among, with_entropy=True)
    both = torch.stack(both[:2])
    return [both[:, row, : len(turn.token_ids)][:, mask(turn)] for row, turn in enumerate(turns)]


def mask(turn: Turn) -> torch.Tensor:
    return torch.from_numpy(turn.loss_mask)


@torch.no_grad()
def test_a_batch_is_scored_as_a_row_at_a_time(model, processor, turns):
    """Whatever the padding, the neighbours and the actions taken; prompts that see themselves end where turns begin."""
    causal = replace(processor, settings=replace(processor.settings, prefix_attention="causal"))
    for scored, other, turn in zip(score(model, processor, turns), score(model, causal, turns), turns, strict=True):
        expected = tiny.oracle(model, processor, turn)[:, mask(turn)]
        assert turn.is_malformed or expected[0].std() > 0.1
        assert (scored - expected).abs().max() < 2e-5
        assert ((scored - other).abs().max() > 1e-3) == processor.decoding.is_prompt_mutual
    settings = processor.settings
    is_masked = settings.action_decoding == "parallel" or settings.prefix_attention == "bidirectional"
    assert ("block_ids" in tiny.inputs(processor, *turns)) == is_masked  # else any attention kernel will do


@torch.no_grad()
def test_logits_are_computed_where_the_loss_is_alone(model, processor, turns):
    everything = score(model, processor, turns)
    for some, full in zip(
        score(model, processor, turns, to_batch([to_row(turn) for turn in turns]).loss_mask), everything, strict=True
    ):
        assert (some - full).abs().max() < 2e-5


def test_attentions_agree(checkpoint, processor, turns):
    assert_agrees("eager", checkpoint, processor, turns)


def assert_agrees(attention: str, checkpoint: Path, processor: PolicyProcessor, turns: list[Turn]) -> None:
    model = load_model(checkpoint).eval()
    expected = score(model, processor, turns)
    model.set_attn_implementation({"text_config": attention})
    for scored, other in zip(score(model, processor, turns), expected, strict=True):
        assert (scored - other).abs().max() < 2e-5


@pytest.mark.parametrize("temperature", [1.0, 1.6, 0.0])
async def test_the_transformers_sampler_says_what_the_learner_says(sampler, model, processor, temperature):
    turn = await tiny.sampled_turn(sampler, processor, temperature, mode="think")
    assert tiny.mismatch(model, processor, [turn], temperature, mode="think") < 1e-4
    assert tiny.mismatch(model, processor, [turn], temperature, mode="zoom") > 1e-4  # nothing was banned there
    # Qwen-VL keeps by how much the pictures of the last prompt shifted the positions behind them.
    blind = await sampler.sample(request(processor, num_images=0))
    layout = [(SegmentKind.PROMPT, len(blind.context_ids)), (SegmentKind.THINK, len(blind.token_ids))]
    turn = make_turn(layout, token_ids=[*blind.context_ids, *blind.token_ids])
    scores = np.concatenate([np.zeros(len(blind.context_ids), np.float32), blind.logprobs])
    assert tiny.mismatch(model, processor, [replace(turn, sampler_logprobs=scores)]) < 1e-4


def request(processor: PolicyProcessor, num_images: int = 1) -> SampleRequest:
    images, ids = (tiny.image(0),) * num_images, processor.prompt_ids(tiny.INSTRUCTION, num_images)
    length = len(processor.expand(ids, images))
    asked: dict[str, Any] = {"stop_ids": (), "max_tokens": 8, "temperature": 1.0, "seed": 0}
    return SampleRequest(prompt_ids=ids, images=images, num_prefix_tokens=length, **asked)


async def test_new_weights_act_at_once_and_must_be_all_of_them(checkpoint, processor):
    sampler, model = BatchedSampler(checkpoint), load_model(checkpoint)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    weights = dict(named_weights(model))
    with pytest.raises(ValueError, match="1 weights are missing or not in the checkpoint"):
        sampler.load_weights(tiny.in_one_bucket(dict(list(weights.items())[1:])), 3)
    sampler.load_weights(tiny.in_one_bucket(weights), 3)
    assert tiny.mismatch(model, processor, [await tiny.sampled_turn(sampler, processor, 1.0)]) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_check_passes_and_fails_where_the_mask_is_ignored(checkpoint, processor, dtype):
    model = load_model(checkpoint, dtype)
    Thinker(processor).check(model)
    forward, end = model.forward, len(processor.vocabulary.encode("a b a b"))

    def causal_prompt(sees: torch.Tensor) -> torch.Tensor:
        sees = sees.clone()
        sees[..., :end, :] &= torch.ones_like(sees[..., :end, :]).tril()
        return sees

    faults: list[Any] = [(lambda sees: None, "not bidirectional"), (torch.ones_like, "see what comes behind")]
    if processor.decoding.is_prompt_mutual:
        faults.append((causal_prompt, "the prompt is not bidirectional"))
    for fault, message in faults if processor.decoding.is_hybrid else ():
        model.forward = lambda attention_mask, fault=fault, **rest: forward(
            attention_mask=fault(attention_mask), **rest
        )
        with pytest.raises(HybridAttentionError, match=message):
            check_hybrid(model, processor)


@pytest.fixture(scope="module")
def mutual(tmp_path_factory):
    return tiny.save("idefics3", tmp_path_factory.mktemp("mutual"), prefix_attention="bidirectional")


@pytest.mark.long  # compiles for half a minute; transformers has it for no Qwen-VL, and says so
def test_flex_attention_agrees(mutual):
    processor = PolicyProcessor.load(mutual)
    assert_agrees("flex_attention", mutual, processor, [tiny.turn(processor), garbage(processor)])


async def test_a_request_must_say_how_long_its_prompt_is(mutual):
    sampler, processor = BatchedSampler(mutual), PolicyProcessor.load(mutual)
    for num_prefix_tokens in (0, 10_000):
        with pytest.raises(ValueError, match=f"num_prefix_tokens is {num_prefix_tokens}, the context has"):
            await sampler.sample(replace(request(processor), num_prefix_tokens=num_prefix_tokens))
    ids = torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="need num_prefix_tokens"):
        processor.forward_inputs(ids, torch.ones_like(ids), torch.zeros_like(ids, dtype=torch.bool))


def test_vllm_refuses_prompts_that_see_themselves(mutual):
    expected = "prefix_attention: bidirectional.* set sampler.backend to transformers"
    with pytest.raises(SamplerError, match=expected):
        VLLMSampler(mutual, SamplerConfig(), max_images=1, max_model_len=256)
    with pytest.raises(ValueError, match=expected):
        check_evaluate(EvaluateConfig(model=mutual))


def test_flash_attention_is_refused_and_the_file_that_the_refusal_names_chooses_another(mutual, tmp_path):
    model = load_model(mutual)
    model.config.get_text_config()._attn_implementation = "flash_attention_2"
    where = (
        r"attn_implementation is 'flash_attention_2'.* action_decoding.*leave it out of the checkpoint's config\.json"
    )
    with pytest.raises(ValueError, match=where):
        hybrid_mask(model, torch.zeros(1, 4), torch.ones(1, 4))
    copy = shutil.copytree(mutual, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    for attention, chosen in (("eager", "eager"), (None, "sdpa")):
        (copy / "config.json").write_text(json.dumps({**config, "attn_implementation": attention}))
        assert load_model(copy).config.get_text_config()._attn_implementation == chosen


def test_the_mask_is_a_block_in_a_triangle(mutual):
    blocks, padding = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 1, 1, 2]]), torch.tensor([[1, 1, 1, 1, 0], [1] * 5])
    mask = hybrid_mask(load_model(mutual), blocks, padding)[:, 0].int().tolist()
    assert mask[0] == [[1, 0, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0]]
    assert mask[1] == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
