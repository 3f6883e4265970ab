"""The contract of the vLLM sampler, on every architecture and both ways to decode actions.

It says what the learner's forward says, for text and for actions, before and after a weight sync.
"""

from __future__ import annotations

import asyncio
import gc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from rlvla.config import SamplerConfig
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.policies.weights import load_model, named_weights
from rlvla.protocols import SampleOutput, SampleRequest
from rlvla.samplers.vllm.sampler import SamplerError, VLLMSampler
from rlvla.types import SegmentKind
from tests import parallel_policies as tiny
from tests.trajectories import make_turn

TOLERANCE = 1e-4  # nats, float32
MAX_MODEL_LEN = 384
BLOCK = 32  # tokens of a cache block
POLICIES = {
    **{name: (name, {}) for name in (*tiny.ARCHITECTURES, "openvla_siglip")},
    "idefics3": ("idefics3", {"chunk_length": 28}),  # 56 actions: more than a cache block
    "causal": ("qwen2_5_vl", {"action_decoding": "parallel_causal"}),
    "words": ("idefics3", {"action_decoding": "autoregressive"}),
}
"""Name -> architecture, and options of `parallel_policies.build`."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=POLICIES)
def checkpoint(request, tmp_path_factory):
    architecture, options = POLICIES[request.param]
    return tiny.save(architecture, tmp_path_factory.mktemp(request.param), **options)


def start(path) -> VLLMSampler:
    return VLLMSampler(path, SamplerConfig(kv_cache_mb=64), max_images=4, max_model_len=MAX_MODEL_LEN)


@pytest.fixture(scope="module")
def sampler(checkpoint):
    sampler = start(checkpoint)
    yield sampler
    sampler.close()


@pytest.fixture(scope="module")
def processor(checkpoint):
    return PolicyProcessor.load(checkpoint)


@pytest.fixture
def acting(processor) -> PolicyProcessor:
    """One that draws a chunk from one forward."""
    if not processor.decoding.at_once:
        pytest.skip("its actions are text")
    return processor


@pytest.fixture
def model(checkpoint):
    return load_model(checkpoint)


def text(processor: PolicyProcessor, **changes) -> SampleRequest:
    default = SampleRequest(
        prompt_ids=processor.prompt_ids(tiny.INSTRUCTION, 1),
        images=(tiny.image(0),),
        stop_ids=(),
        max_tokens=24,
        temperature=1.0,
        seed=7,
    )
    return replace(default, **changes)


def block(processor: PolicyProcessor, length: int = 5 * BLOCK, images=(0, 1), **changes) -> SampleRequest:
    """A context of `length` tokens once its images are expanded; `<act>` is the last of them."""
    vocabulary = processor.vocabulary
    pixels = tuple(tiny.image(seed) for seed in images)
    ids = processor.prompt_ids(tiny.INSTRUCTION, len(images))
    filler = vocabulary.encode("the pad at 200, 350 is red")
    missing = length - 1 - len(processor.expand(ids, pixels))
    assert missing >= 0, f"the images alone take {length - 1 - missing} tokens"
    ids = (*ids, *(filler * missing)[:missing], vocabulary.mark_ids["<act>"])
    asked = {"prompt_ids": ids, "images": pixels, "max_tokens": 1, "num_actions": processor.decoding.num_actions}
    return text(processor, **{**asked, **changes})


def mixed(processor: PolicyProcessor, number: int, **changes) -> list[SampleRequest]:
    """Requests of every kind that a policy knows."""
    words = [text(processor, images=(tiny.image(i),), seed=i, max_tokens=4 + i, **changes) for i in range(number)]
    lengths = [5 * BLOCK + i for i in range(number)] if processor.decoding.at_once else []
    return [*words, *(block(processor, n, seed=n, **changes) for n in lengths)]


def differs(model: Any, processor: PolicyProcessor, asked: SampleRequest, output: SampleOutput) -> float:
    """`tiny.mismatch` of a request at temperature 1 and its answer."""
    assert output.context_ids.tolist() == processor.expand(asked.prompt_ids, asked.images).tolist()
    assert (output.token_ids.dtype, len(output.token_ids)) == (np.int32, len(output.logprobs))
    before, kind = len(output.context_ids), SegmentKind.ACT if asked.num_actions else SegmentKind.THINK
    ids = [*output.context_ids, *output.token_ids]
    turn = make_turn([(SegmentKind.PROMPT, before), (kind, len(ids) - before)], token_ids=ids, images=asked.images)
    scores = np.concatenate([np.zeros(before, np.float32), output.logprobs])
    return tiny.mismatch(model, processor, [replace(turn, sampler_logprobs=scores)], action_temperature=1.0)


async def told(sampler: VLLMSampler, requests: list[SampleRequest]) -> list[SampleOutput]:
    return await asyncio.gather(*map(sampler.sample, requests))


@pytest.mark.parametrize("temperature", [1.0, 1.6, 0.0])
async def test_sampler_and_learner_agree_on_a_turn(sampler, processor, model, temperature):
    """Text, a zoom, text, a zoom, text, actions: with the images of two cameras, cold and warm, as an episode asks."""
    asked = {"num_cameras": 2, "num_zooms": 2, "mode": "think"}
    before = sampler.num_cached_tokens
    turns = [await tiny.sampled_turn(sampler, processor, temperature, **asked) for _ in range(2)]
    assert sampler.num_cached_tokens - before >= BLOCK
    assert {turn.num_sampled_tokens for turn in turns} == {3 * 12 + processor.decoding.num_slots}
    assert tiny.mismatch(model, processor, turns, temperature, mode="think") < TOLERANCE


async def test_requests_of_every_kind_in_one_batch_keep_apart(sampler, processor, model):
    asked = mixed(processor, 5)
    for _ in range(2):  # cold, then warm
        before = sampler.num_steps
        running = asyncio.ensure_future(sampler.sample(text(processor, max_tokens=250, seed=99)))
        while sampler.num_steps < before + 2:  # so that others join a batch that decodes
            await asyncio.sleep(0.001)
        outputs = await told(sampler, asked)
        assert differs(model, processor, text(processor), await running) < TOLERANCE
        assert sampler.num_steps - before <= 251  # no step was theirs alone
        for one, output in zip(asked, outputs, strict=True):
            assert len(output.token_ids) == (one.num_actions or one.max_tokens)
            assert differs(model, processor, one, output) < TOLERANCE


async def test_a_seed_fixes_the_output_whatever_runs_beside_it(sampler, processor):
    for asked in mixed(processor, 1):
        (alone,) = await told(sampler, [asked])
        beside, *_ = await told(sampler, [asked, *mixed(processor, 4)])
        (other,) = await told(sampler, [replace(asked, seed=asked.seed + 1, max_tokens=24)])
        assert beside.token_ids.tolist() == alone.token_ids.tolist()
        assert other.token_ids.tolist() != alone.token_ids.tolist()


async def test_greedy_says_the_same_whatever_the_seed(sampler, processor):
    for asked in mixed(processor, 1, temperature=0.0):
        first, again = [(await told(sampler, [replace(asked, seed=seed)]))[0] for seed in (7, 8)]
        assert first.token_ids.tolist() == again.token_ids.tolist()


async def test_the_stop_token_ends_the_output_and_is_part_of_it(sampler, processor):
    free = await sampler.sample(text(processor))
    stop = int(free.token_ids[5])
    stopped = await sampler.sample(text(processor, stop_ids=(stop,)))
    end = free.token_ids.tolist().index(stop) + 1
    assert stopped.token_ids.tolist() == free.token_ids.tolist()[:end]


async def test_banned_ids_and_image_placeholders_are_never_sampled(sampler, processor):
    vocabulary = processor.vocabulary
    banned = (*range(200), *vocabulary.action_ids)
    outputs = await told(sampler, [text(processor, banned_ids=banned, seed=i, temperature=1.6) for i in range(16)])
    sampled = {int(id_) for output in outputs for id_ in output.token_ids}
    assert len(sampled) > 20
    assert not sampled & {*banned, vocabulary.placeholder_id}


@pytest.mark.parametrize("length", [5 * BLOCK - 1, 5 * BLOCK, 5 * BLOCK + 1, 6 * BLOCK - 9])
async def test_a_block_matches_with_cold_and_warm_cache(sampler, acting, model, length):
    asked = block(acting, length, images=(length, length + 1))
    before, steps = sampler.num_cached_tokens, sampler.num_steps
    cold = await sampler.sample(asked)
    assert (sampler.num_cached_tokens, sampler.num_steps - steps) == (before, 1)
    warm = await sampler.sample(replace(asked, seed=8))
    again = await sampler.sample(asked)
    # Whole cache blocks before <act> are found, and none that holds a part of the action block.
    assert sampler.num_cached_tokens - before == 2 * ((length - 1) // BLOCK * BLOCK)
    assert cold.token_ids.tolist() == again.token_ids.tolist()
    for output in (cold, warm, again):
        assert differs(model, acting, asked, output) < TOLERANCE


async def test_a_refused_request_fails_alone(sampler, processor):
    wrong = [
        (text(processor, images=()), "1 image placeholders for 0 images"),
        (text(processor, images=(tiny.image(0), tiny.image(1))), "1 image placeholders for 2 images"),
        (text(processor, prompt_ids=(5,) * (MAX_MODEL_LEN + 1), images=()), "vLLM refuses"),
        (block(processor, num_actions=1), f"this policy draws {processor.decoding.num_slots} from one forward"),
    ]
    if processor.decoding.at_once:
        wrong += [(block(processor, images=(0,), prompt_ids=(5,) * (MAX_MODEL_LEN - 1)), "0 image placeholders for 1")]
    good, *bad = await asyncio.gather(
        *(sampler.sample(r) for r in [text(processor), *(r for r, _ in wrong)]), return_exceptions=True
    )
    assert len(good.token_ids) == 24
    for error, (_, message) in zip(bad, wrong, strict=True):
        assert isinstance(error, ValueError)
        assert message in str(error)


async def test_new_weights_act_at_once_with_a_new_version(sampler, processor, model):
    """Behind the others: the sampler then holds other weights than the checkpoint."""
    cached = mixed(processor, 2)
    olds = await told(sampler, cached)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    weights = dict(named_weights(model))
    running = asyncio.ensure_future(sampler.sample(text(processor, max_tokens=100)))
    await asyncio.sleep(0.05)  # so that it runs already
    await asyncio.to_thread(sampler.load_weights, tiny.in_one_bucket(weights), 3)
    assert (await running).policy_version == 0
    for one, old in zip(cached, olds, strict=True):  # images and prefixes that were cached under the old weights
        assert differs(model, processor, one, old) > 100 * TOLERANCE
        for asked in (one, replace(one, seed=8)):  # cold and warm
            output = await sampler.sample(asked)
            assert output.policy_version == 3
            assert differs(model, processor, asked, output) < TOLERANCE


def test_weights_with_a_missing_name_are_refused(sampler, model):
    weights = dict(named_weights(model))
    name = next(iter(weights))
    del weights[name]
    with pytest.raises(ValueError, match=name):
        sampler.load_weights(tiny.in_one_bucket(weights), 4)


async def test_pixels_of_old_prompts_are_let_go(sampler, processor):
    """vLLM's own cache of them would grow to gigabytes; `PromptRenderer` keeps some, and is all that does."""
    await told(sampler, [text(processor, images=(tiny.image(seed),)) for seed in range(12)])
    assert not [o for o in gc.get_objects() if type(o).__name__ == "MultiModalProcessorCacheItem"]


async def test_a_failed_engine_answers_everyone(processor, model, sampler):
    """Last of those that sample: it breaks the engine, and with it the others of this process, which share its rotary
    embeddings."""
    weights = dict(named_weights(model))
    name = next(name for name in weights if "embed_tokens" in name)
    weights[name] = weights[name][:, :3]
    running = [asyncio.ensure_future(sampler.sample(text(processor, seed=i))) for i in range(4)]
    with pytest.raises(SamplerError, match="weights did not load"):
        await asyncio.to_thread(sampler.load_weights, tiny.in_one_bucket(weights), 5)
    results = await asyncio.wait_for(asyncio.gather(*running, return_exceptions=True), timeout=30)
    assert all(isinstance(r, (SampleOutput, SamplerError)) for r in results)
    with pytest.raises(SamplerError):
        await sampler.sample(text(processor))
