"""The vLLM sampler says what the learner's forward says, before and after a weight sync, on every architecture."""

from __future__ import annotations

import asyncio
import gc
from dataclasses import replace

import numpy as np
import pytest
import torch

from rlvla.config import SamplerConfig
from rlvla.policies.markup import print_think, print_zoom
from rlvla.policies.thinker.actions import QuantileCodec
from rlvla.policies.thinker.policy import save_policy
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.policies.thinker.scoring import token_logprobs
from rlvla.policies.thinker.settings import Settings
from rlvla.policies.weights import load_model, named_weights
from rlvla.protocols import SampleOutput, SampleRequest
from rlvla.samplers.vllm.sampler import SamplerError, VLLMSampler
from tests.tiny_checkpoints import ARCHITECTURES, build

TOLERANCE = 1e-4  # nats, float32
CORPUS = ["press the red pad", print_think("the pad at 200, 350 is red") + print_zoom(0, (100, 250, 300, 450))]
MAX_MODEL_LEN = 256

pytestmark = pytest.mark.slow


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def checkpoint(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("parity") / request.param
    model, hf_processor = build(request.param, CORPUS, 8)
    codec = QuantileCodec(low=(-1.0,), high=(1.0,), num_bins=8, chunk_length=1)
    save_policy(model, PolicyProcessor.create(hf_processor, Settings(codec=codec)), path)
    return path


def start(path) -> VLLMSampler:
    return VLLMSampler(path, SamplerConfig(kv_cache_mb=64), max_images=3, max_model_len=MAX_MODEL_LEN)


@pytest.fixture(scope="module")
def sampler(checkpoint):
    sampler = start(checkpoint)
    yield sampler
    sampler.close()


@pytest.fixture(scope="module")
def processor(checkpoint):
    return PolicyProcessor.load(checkpoint)


@pytest.fixture
def model(checkpoint):
    return load_model(checkpoint)


def request(processor: PolicyProcessor, **changes) -> SampleRequest:
    default = SampleRequest(
        prompt_ids=processor.prompt_ids("press the red pad", 1),
        images=(image(0),),
        stop_ids=(),
        max_tokens=24,
        temperature=1.0,
        seed=7,
    )
    return replace(default, **changes)


def mismatch(model, processor, asked: SampleRequest, output: SampleOutput) -> float:
    """Largest |sampler - learner| logprob over the sampled tokens, nats."""
    ids = torch.from_numpy(np.concatenate([output.context_ids, output.token_ids])).long()[None]
    inputs = {
        **processor.forward_inputs(ids, torch.ones_like(ids)),
        **processor.pixel_inputs([asked.images]),
    }
    with torch.no_grad():
        logprobs, _ = token_logprobs(model, inputs, temperature=asked.temperature or 1.0)
    return float(np.abs(logprobs[0, len(output.context_ids) :].numpy() - output.logprobs).max())


async def two_image_turn(sampler, processor, **changes) -> list[tuple[SampleRequest, SampleOutput]]:
    """Sample, append the result of a zoom, sample on."""
    first = request(processor, **changes)
    output = await sampler.sample(first)
    compact = first.prompt_ids + tuple(output.token_ids.tolist()) + processor.result_ids(image=True)
    second = replace(first, prompt_ids=compact, images=(*first.images, image(1)), seed=first.seed + 1)
    return [(first, output), (second, await sampler.sample(second))]


@pytest.mark.parametrize("temperature", [1.0, 1.6, 0.0])
async def test_logprobs_match_over_a_turn_with_two_images(sampler, processor, model, temperature):
    for asked, output in await two_image_turn(sampler, processor, temperature=temperature):
        assert output.context_ids.tolist() == processor.expand(asked.prompt_ids, asked.images).tolist()
        assert len(output.token_ids) == len(output.logprobs) == 24
        assert mismatch(model, processor, asked, output) < TOLERANCE


async def test_concurrent_requests_match_and_keep_apart(sampler, processor, model):
    asked = [request(processor, images=(image(i),), seed=i, max_tokens=4 + i) for i in range(12)]
    outputs = await asyncio.gather(*(sampler.sample(r) for r in asked))
    for one, output in zip(asked, outputs, strict=True):
        assert len(output.token_ids) == one.max_tokens
        assert mismatch(model, processor, one, output) < TOLERANCE


async def test_greedy_is_deterministic_and_the_most_likely(sampler, processor):
    greedy = request(processor, temperature=0.0)
    first, again = await sampler.sample(greedy), await sampler.sample(replace(greedy, seed=8))
    assert first.token_ids.tolist() == again.token_ids.tolist()


async def test_a_seed_fixes_the_output_whatever_runs_beside_it(sampler, processor):
    alone = await sampler.sample(request(processor))
    others = [request(processor, images=(image(i),), seed=i) for i in range(100, 108)]
    beside, *_ = await asyncio.gather(*(sampler.sample(r) for r in [request(processor), *others]))
    other_seed = await sampler.sample(request(processor, seed=8))
    assert beside.token_ids.tolist() == alone.token_ids.tolist()
    assert other_seed.token_ids.tolist() != alone.token_ids.tolist()


async def test_the_stop_token_ends_the_output_and_is_part_of_it(sampler, processor):
    free = await sampler.sample(request(processor))
    stop = int(free.token_ids[5])
    stopped = await sampler.sample(request(processor, stop_ids=(stop,)))
    end = free.token_ids.tolist().index(stop) + 1
    assert stopped.token_ids.tolist() == free.token_ids.tolist()[:end]


async def test_banned_ids_and_image_placeholders_are_never_sampled(sampler, processor):
    vocabulary = processor.vocabulary
    banned = tuple(range(200)) + vocabulary.action_ids
    asked = [request(processor, banned_ids=banned, seed=i, temperature=1.6) for i in range(16)]
    outputs = await asyncio.gather(*(sampler.sample(r) for r in asked))
    sampled = {int(id_) for output in outputs for id_ in output.token_ids}
    assert len(sampled) > 20
    assert not sampled & {*banned, vocabulary.placeholder_id}


async def test_a_turn_that_goes_on_finds_its_prefix_in_the_cache(sampler, processor):
    before = sampler.num_cached_tokens
    await two_image_turn(sampler, processor, images=(image(50),), seed=50)
    assert sampler.num_cached_tokens - before >= 32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": ()}, "1 image placeholders for 0 images"),
        ({"images": (image(0), image(1))}, "1 image placeholders for 2 images"),
        ({"prompt_ids": (5,) * (MAX_MODEL_LEN + 1), "images": ()}, "vLLM refuses"),
    ],
)
async def test_a_refused_request_fails_alone(sampler, processor, changes, message):
    good, bad = await asyncio.gather(
        sampler.sample(request(processor)), sampler.sample(request(processor, **changes)), return_exceptions=True
    )
    assert len(good.token_ids) == 24
    assert isinstance(bad, ValueError)
    assert message in str(bad)


async def test_new_weights_act_at_once_with_a_new_version(sampler, processor, model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    weights = {name: tensor.detach().numpy() for name, tensor in named_weights(model)}
    old = asyncio.ensure_future(sampler.sample(request(processor, max_tokens=100)))
    await asyncio.sleep(0.05)  # so that it runs already
    await asyncio.to_thread(sampler.load_weights, weights, 3)
    assert (await old).policy_version == 0
    for asked, output in await two_image_turn(sampler, processor):  # images that were cached under the old weights
        assert output.policy_version == 3
        assert mismatch(model, processor, asked, output) < TOLERANCE


def test_weights_with_a_missing_name_are_refused(sampler, model):
    weights = {name: tensor.detach().numpy() for name, tensor in named_weights(model)}
    name = next(iter(weights))
    del weights[name]
    with pytest.raises(ValueError, match=name):
        sampler.load_weights(weights, 4)


async def test_pixels_of_old_prompts_are_let_go(sampler, processor):
    """vLLM's own cache of them would grow to gigabytes; `PromptRenderer` keeps some, and is all that does."""
    await asyncio.gather(*(sampler.sample(request(processor, images=(image(seed),))) for seed in range(12)))
    assert not [o for o in gc.get_objects() if type(o).__name__ == "MultiModalProcessorCacheItem"]


async def test_a_failed_engine_answers_everyone(checkpoint, processor, model, sampler):
    """Last of those that sample: it breaks the engine, and with it the others of this process, which share its rotary
    embeddings."""
    weights = {name: tensor.detach().numpy() for name, tensor in named_weights(model)}
    name = next(name for name in weights if "embed_tokens" in name)
    weights[name] = weights[name][:, :3]
    running = [asyncio.ensure_future(sampler.sample(request(processor, seed=i))) for i in range(4)]
    with pytest.raises(SamplerError, match="weights did not load"):
        await asyncio.to_thread(sampler.load_weights, weights, 5)
    results = await asyncio.wait_for(asyncio.gather(*running, return_exceptions=True), timeout=30)
    assert all(isinstance(r, (SampleOutput, SamplerError)) for r in results)
    with pytest.raises(SamplerError):
        await sampler.sample(request(processor))


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"\.safetensors"):
        start(tmp_path)
