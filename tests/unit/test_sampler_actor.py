"""What a SamplerActor says of an engine that fails, hangs or refuses a request; real actors: tests/e2e."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlvla.cluster.actors import SamplerActor
from rlvla.config import SamplerConfig
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.policies.weights import load_model, named_weights
from rlvla.protocols import SampleRequest
from rlvla.rollout.env_thread import EnvThread
from rlvla.samplers.local import BatchedSampler
from tests import parallel_policies as tiny

CONFIG = SamplerConfig(backend="transformers")
NONE = tiny.in_one_bucket({})


class Engine:
    """Does what it is told with a request, or with weights."""

    def __init__(self, answer: Callable[[], Any]) -> None:
        self._answer = answer

    async def sample(self, request: Any) -> Any:
        return await asyncio.to_thread(self._answer)

    def load_weights(self, weights: Any, policy_version: int) -> None:
        self._answer()


def actor(policy: Path, answer: Callable[[], Any]) -> SamplerActor:
    """One whose engine is of our making."""
    sampler = SamplerActor(policy, CONFIG, max_images=1, max_model_len=64, seed=0)
    sampler._sampler = Engine(answer)  # type: ignore[assignment]
    return sampler


def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("CUDA out of memory"), ("RuntimeError: CUDA out of memory", -1)),
        (ValueError("too long"), ("", 3)),  # the request was wrong, and the engine serves on
    ],
)
@pytest.mark.parametrize("asked", ["sample", "load_weights"])
async def test_an_engine_that_fails_closes_its_sampler_and_says_why(
    tiny_policy: Path, asked: str, error: Exception, said: tuple[str, int]
) -> None:
    sampler = actor(tiny_policy, lambda: None)
    await sampler.load_weights(NONE, 3)
    assert await sampler.status(60) == ("", 3)
    sampler._sampler = Engine(lambda: fail(error))  # type: ignore[assignment]
    with pytest.raises(type(error), match=str(error)):
        await (sampler.sample(None) if asked == "sample" else sampler.load_weights(NONE, 4))  # type: ignore[arg-type]
    assert await sampler.status(60) == said
    assert sampler._opened.is_set() == (not said[0])  # who waits for it waits for its successor


async def test_an_engine_that_answers_nobody_hangs_and_a_busy_one_does_not(tiny_policy: Path) -> None:
    free = [threading.Event(), threading.Event()]
    turn = iter(free)
    sampler = actor(tiny_policy, lambda: next(turn).wait(30))
    await sampler.open()
    requests = [asyncio.create_task(sampler.sample(None)) for _ in free]  # type: ignore[arg-type]
    await asyncio.sleep(0.3)
    reason, version = await sampler.status(0.2)
    assert reason == "its engine answers nobody for 0.2 s (cluster.actor_deadline_s)"
    assert version == -1
    free[0].set()
    await asyncio.wait(requests, return_when=asyncio.FIRST_COMPLETED)
    assert await sampler.status(60) == ("", 0)  # one still waits, but the other had its answer just now
    since = sampler._asked_since
    free[1].set()
    await asyncio.gather(*requests)
    assert sampler._asked_since > since
    await asyncio.sleep(0.3)
    assert await sampler.status(0.2) == ("", 0)  # nobody asks


async def test_a_thread_says_how_long_it_has_been_in_a_call() -> None:
    free = threading.Event()
    env = EnvThread(lambda: None)  # type: ignore[arg-type, return-value]
    assert env.busy_s == 0
    call = asyncio.create_task(env.call(lambda _: free.wait(30)))
    await asyncio.sleep(0.2)
    assert env.busy_s > 0.1
    free.set()
    assert await call
    assert env.busy_s == 0


async def test_a_sampler_actor_draws_with_the_backend_that_the_config_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tiny.save("idefics3", tmp_path)
    processor = PolicyProcessor.load(checkpoint)
    config = SamplerConfig(backend="transformers", dtype="bfloat16", threads=2)
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    actor = SamplerActor(checkpoint, config, max_images=1, max_model_len=64, seed=0)
    assert threads == [2]
    request = SampleRequest(
        prompt_ids=processor.prompt_ids(tiny.INSTRUCTION, 1),
        images=(tiny.image(0),),
        stop_ids=(),
        max_tokens=5,
        temperature=0.0,
        seed=0,
    )
    with pytest.raises(RuntimeError, match="waits for its weights"):
        await actor.sample(request)
    await actor.open()
    before = await actor.sample(request)
    weights = {name: -tensor for name, tensor in named_weights(load_model(checkpoint))}
    await actor.load_weights(tiny.in_one_bucket(weights), 7)
    after = await actor.sample(request)
    await actor.close()
    assert (before.policy_version, after.policy_version) == (0, 7)
    assert (before.logprobs != after.logprobs).all()
    # float32 would give other digits: the logits of bfloat16 weights have 8 bits
    exact = await BatchedSampler(checkpoint).sample(request)
    assert 0 < np.abs(before.logprobs - exact.logprobs).max() < 0.1
