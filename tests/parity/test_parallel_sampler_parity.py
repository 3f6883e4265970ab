"""Action blocks out of vLLM are what transformers says under a hybrid mask that is written out by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

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
from rlvla.samplers.vllm.plugin.request import ActionBlock, encode_ids, take_actions
from rlvla.samplers.vllm.sampler import VLLMSampler
from tests.tiny_checkpoints import ARCHITECTURES, build

TOLERANCE = 1e-4  # nats, float32
CORPUS = ["press the red pad", print_think("the pad at 200, 350 is red") + print_zoom(0, (100, 250, 300, 450))]
MAX_MODEL_LEN = 384
BLOCK = 32  # tokens of a cache block
NUM_BINS = 16

pytestmark = pytest.mark.slow


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def checkpoint(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("parallel") / request.param
    model, hf_processor = build(request.param, CORPUS, NUM_BINS)
    codec = QuantileCodec(low=(-1.0,), high=(1.0,), num_bins=NUM_BINS, chunk_length=1)
    save_policy(model, PolicyProcessor.create(hf_processor, Settings(codec=codec)), path)
    return path


@pytest.fixture(scope="module")
def sampler(checkpoint):
    sampler = VLLMSampler(
        checkpoint,
        SamplerConfig(kv_cache_mb=64),
        max_images=3,
        max_model_len=MAX_MODEL_LEN,
        action_decoding="parallel",
    )
    yield sampler
    sampler.close()


@pytest.fixture(scope="module")
def processor(checkpoint):
    return PolicyProcessor.load(checkpoint)


@pytest.fixture
def model(checkpoint):
    return load_model(checkpoint)


def action_request(
    processor: PolicyProcessor, length: int, images: Sequence[int] = (0, 1), num_actions: int = 14, **changes
) -> SampleRequest:
    """A context of `length` tokens once its images are expanded; `<act>` is the last of them. Any words are slots."""
    vocabulary = processor.vocabulary
    pixels = tuple(image(seed) for seed in images)
    ids = processor.prompt_ids("press the red pad", len(images))
    filler = vocabulary.encode("the pad at 200, 350 is red")
    missing = length - 1 - len(processor.expand(ids, pixels))
    assert missing >= 0, f"the images alone take {length - 1 - missing} tokens"
    ids = (*ids, *(filler * missing)[:missing], vocabulary.mark_ids["<act>"])
    default = SampleRequest(
        prompt_ids=ids,
        images=pixels,
        stop_ids=(),
        max_tokens=1,
        temperature=1.0,
        seed=7,
        action_ids=vocabulary.action_ids,
        slot_ids=tuple((filler * num_actions)[:num_actions]),
    )
    return replace(default, **changes)


def word_request(processor: PolicyProcessor, **changes) -> SampleRequest:
    """Autoregressive."""
    default = SampleRequest(
        prompt_ids=processor.prompt_ids("press the red pad", 1),
        images=(image(0),),
        stop_ids=(),
        max_tokens=24,
        temperature=1.0,
        seed=7,
    )
    return replace(default, **changes)


def block_logprobs(model, processor, asked: SampleRequest, context_ids: np.ndarray) -> np.ndarray:
    """[n, bins] of a forward whose mask is causal up to `<act>` and full from there on."""
    n, start = asked.num_actions, len(context_ids) - 1
    ids = torch.from_numpy(np.concatenate([context_ids, asked.slot_ids])).long()[None]
    sees = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    sees[start:, :] = True
    inputs = {
        **processor.forward_inputs(ids, torch.ones_like(ids)),
        **processor.pixel_inputs([asked.images]),
    }
    if processor.image_format.is_flat:  # Qwen-VL derives positions from a mask of two axes
        positions, _ = model.model.get_rope_index(
            ids, inputs["mm_token_type_ids"], inputs["image_grid_thw"], attention_mask=inputs["attention_mask"]
        )
        inputs["position_ids"] = positions
    inputs["attention_mask"] = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)[None, None]
    with torch.no_grad():
        logits = model(**inputs, use_cache=False).logits[0, start : start + n, list(asked.action_ids)]
    return (logits / (asked.temperature or 1.0)).log_softmax(-1).numpy()


def mismatch(model, processor, asked: SampleRequest, output: SampleOutput) -> float:
    """Largest |sampler - reference| logprob, nats, of a block that must be drawn from the bins."""
    assert output.context_ids.tolist() == processor.expand(asked.prompt_ids, asked.images).tolist()
    assert output.token_ids.dtype == np.int32
    assert len(output.token_ids) == len(output.logprobs) == asked.num_actions
    reference = block_logprobs(model, processor, asked, output.context_ids)
    bins = [asked.action_ids.index(id_) for id_ in output.token_ids.tolist()]
    return float(np.abs(reference[range(len(bins)), bins] - output.logprobs).max())


def word_mismatch(model, processor, asked: SampleRequest, output: SampleOutput) -> float:
    ids = torch.from_numpy(np.concatenate([output.context_ids, output.token_ids])).long()[None]
    inputs = {
        **processor.forward_inputs(ids, torch.ones_like(ids)),
        **processor.pixel_inputs([asked.images]),
    }
    with torch.no_grad():
        logprobs, _ = token_logprobs(model, inputs, temperature=asked.temperature)
    return float(np.abs(logprobs[0, len(output.context_ids) :].numpy() - output.logprobs).max())


@pytest.mark.parametrize("length", [5 * BLOCK - 1, 5 * BLOCK, 5 * BLOCK + 1, 6 * BLOCK - 9])
async def test_a_block_matches_with_cold_and_warm_cache(sampler, processor, model, length):
    asked = action_request(processor, length, images=(length, length + 1))
    before = sampler.num_cached_tokens
    cold = await sampler.sample(asked)
    assert sampler.num_cached_tokens == before
    warm = await sampler.sample(replace(asked, seed=8))
    again = await sampler.sample(asked)
    # Whole cache blocks before <act> are found, and none that holds a part of the action block.
    assert sampler.num_cached_tokens - before == 2 * ((length - 1) // BLOCK * BLOCK)
    assert cold.token_ids.tolist() == again.token_ids.tolist()
    assert cold.token_ids.tolist() != warm.token_ids.tolist()
    assert mismatch(model, processor, asked, cold) < TOLERANCE
    assert mismatch(model, processor, asked, warm) < TOLERANCE
    assert mismatch(model, processor, asked, again) < TOLERANCE


@pytest.mark.parametrize("num_actions", [1, 56])
async def test_a_block_of_any_length_takes_one_step(sampler, processor, model, num_actions):
    asked = action_request(processor, 5 * BLOCK, num_actions=num_actions)
    before = sampler.num_steps
    output = await sampler.sample(asked)
    assert sampler.num_steps - before == 1
    assert mismatch(model, processor, asked, output) < TOLERANCE


async def test_a_worker_ships_eight_bytes_an_action_whatever_the_bins(sampler, processor, monkeypatch):
    """An id and a log-probability: vLLM's own way would be a Python object for each bin of each action."""
    shipped = []

    def take(engine, keys):
        def call(method, args):
            assert engine.get_num_unfinished_requests() == 0
            answers = engine.collective_rpc(method, args=args)
            shipped.append(answers)
            return answers

        return take_actions(SimpleNamespace(collective_rpc=call), keys)

    monkeypatch.setattr("rlvla.samplers.vllm.sampler.take_actions", take)
    for action_ids in (processor.vocabulary.action_ids, processor.vocabulary.action_ids[:2]):
        output = await sampler.sample(action_request(processor, 5 * BLOCK, num_actions=56, action_ids=action_ids))
        (((ids, logprobs),),) = shipped.pop()  # one worker, one request
        assert (type(ids), type(logprobs), len(ids), len(logprobs)) == (bytes, bytes, 4 * 56, 4 * 56)
        assert np.frombuffer(ids, np.int32).tolist() == output.token_ids.tolist()
        assert np.frombuffer(logprobs, np.float32).tolist() == output.logprobs.tolist()
    assert not shipped
    block = ActionBlock(key="", num_actions=56, action_ids=encode_ids(action_ids), temperature=1.0, seed=0)
    assert (block.sampling_params().logprobs, block.sampling_params().prompt_logprobs) == (None, None)


async def test_the_thought_before_a_block_comes_from_the_cache(sampler, processor, model):
    act = processor.vocabulary.mark_ids["<act>"]
    thought = word_request(processor, images=(image(70), image(71)), max_tokens=80)
    thought = replace(thought, prompt_ids=processor.prompt_ids("press the red pad", 2))
    said = await sampler.sample(thought)
    asked = action_request(processor, 5 * BLOCK)
    asked = replace(asked, prompt_ids=(*thought.prompt_ids, *said.token_ids.tolist(), act), images=thought.images)
    before = sampler.num_cached_tokens
    output = await sampler.sample(asked)
    # The thought's last token was never fed, hence is not in the cache.
    known = len(output.context_ids) - 2
    assert sampler.num_cached_tokens - before == known // BLOCK * BLOCK
    assert mismatch(model, processor, asked, output) < TOLERANCE


async def test_a_batch_mixed_with_words_matches(sampler, processor, model):
    lengths = (5 * BLOCK, 5 * BLOCK + 3, 6 * BLOCK - 1, 5 * BLOCK)  # the last two share a prefix with others
    blocks = [
        action_request(processor, length, images=(0, i % 2), seed=i, num_actions=7 * (i + 1), temperature=t)
        for i, (length, t) in enumerate(zip(lengths, (1.0, 1.6, 0.0, 0.7), strict=True))
    ]
    words = [word_request(processor, images=(image(i),), seed=i, max_tokens=4 + 9 * i) for i in range(5)]
    asked = [request for pair in zip(words, [*blocks, blocks[0]], strict=True) for request in pair]
    for _ in range(2):  # cold, then warm
        before = sampler.num_steps
        running = asyncio.ensure_future(sampler.sample(word_request(processor, max_tokens=250, seed=99)))
        while sampler.num_steps < before + 2:  # so that blocks join a batch that decodes
            await asyncio.sleep(0.001)
        outputs = await asyncio.gather(*(sampler.sample(request) for request in asked))
        assert word_mismatch(model, processor, word_request(processor), await running) < TOLERANCE
        assert sampler.num_steps - before <= 251  # no step was theirs alone
        for one, output in zip(asked, outputs, strict=True):
            check = mismatch if one.num_actions else word_mismatch
            assert check(model, processor, one, output) < TOLERANCE


async def test_words_are_what_they_are_without_blocks_beside_them(sampler, processor):
    alone = await sampler.sample(word_request(processor))
    blocks = [action_request(processor, 5 * BLOCK + i, seed=i) for i in range(4)]
    beside, *_ = await asyncio.gather(*(sampler.sample(r) for r in [word_request(processor), *blocks]))
    assert beside.token_ids.tolist() == alone.token_ids.tolist()


async def test_a_seed_fixes_the_block_whatever_runs_beside_it(sampler, processor, model):
    asked = action_request(processor, 5 * BLOCK + 5, num_actions=56)
    alone = await sampler.sample(asked)
    others = [action_request(processor, 5 * BLOCK + i, seed=i) for i in range(6)]
    beside, *_ = await asyncio.gather(*(sampler.sample(r) for r in [asked, *others, word_request(processor)]))
    assert beside.token_ids.tolist() == alone.token_ids.tolist()
    # The draw itself: the cumulative distribution of the reference, inverted at the seed's uniform numbers.
    cumulative = np.exp(block_logprobs(model, processor, asked, alone.context_ids).astype(np.float64)).cumsum(-1)
    generator = torch.Generator().manual_seed(asked.seed)
    uniform = torch.rand(56, generator=generator, dtype=torch.float64).numpy()
    bins = (cumulative < uniform[:, None]).sum(-1)
    assert [asked.action_ids[b] for b in bins] == alone.token_ids.tolist()


async def test_greedy_takes_the_most_likely_bin(sampler, processor, model):
    asked = action_request(processor, 5 * BLOCK + 2, temperature=0.0)
    output = await sampler.sample(asked)
    best = block_logprobs(model, processor, asked, output.context_ids).argmax(-1)
    assert output.token_ids.tolist() == [asked.action_ids[b] for b in best]


async def test_fewer_bins_than_the_policy_has(sampler, processor, model):
    """Other bins in one batch: each block is sliced to its own."""
    few = action_request(processor, 5 * BLOCK, action_ids=processor.vocabulary.action_ids[3:8])
    both = await asyncio.gather(sampler.sample(few), sampler.sample(action_request(processor, 5 * BLOCK)))
    assert mismatch(model, processor, few, both[0]) < TOLERANCE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": ()}, "2 image placeholders for 0 images"),
        ({"action_ids": ()}, "action_ids is empty"),
        ({"slot_ids": (5,) * MAX_MODEL_LEN}, "vLLM refuses"),
    ],
)
async def test_a_refused_block_fails_alone(sampler, processor, changes, message):
    good, bad = await asyncio.gather(
        sampler.sample(action_request(processor, 5 * BLOCK)),
        sampler.sample(replace(action_request(processor, 5 * BLOCK), **changes)),
        return_exceptions=True,
    )
    assert len(good.token_ids) == 14
    assert isinstance(bad, ValueError)
    assert message in str(bad)


async def test_new_weights_act_at_once(sampler, processor, model):
    """Last in the module: the sampler then holds other weights than the checkpoint."""
    asked = action_request(processor, 5 * BLOCK + 7)
    old = await sampler.sample(asked)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    weights = {name: tensor.detach().numpy() for name, tensor in named_weights(model)}
    await asyncio.to_thread(sampler.load_weights, weights, 3)
    assert mismatch(model, processor, asked, old) > 100 * TOLERANCE
    for one in (asked, replace(asked, seed=8)):  # cold and warm
        output = await sampler.sample(one)
        assert output.policy_version == 3
        assert mismatch(model, processor, one, output) < TOLERANCE
