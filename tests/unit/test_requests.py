"""Requests are made ready off the engine's thread, in order, and what is kept of them does not grow."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest

from rlvla.policies.family import EngineNeeds
from rlvla.protocols import SampleRequest
from rlvla.samplers.vllm.requests import KEPT_PROMPTS, RequestMaker
from rlvla.samplers.vllm.sampler import SamplerError, VLLMSampler, _Load, _Sample
from tests.unit.test_sampler_prompts import PLACEHOLDER, Renderer, image

SEQUENCES = 3


class Waiting(Renderer):
    """Notes in which thread it works, and begins when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[str] = set()
        self.may_begin = threading.Event()

    def render_cmpl(self, prompts: Any, *, skip_mm_cache: bool) -> Any:
        self.threads.add(threading.current_thread().name)
        assert self.may_begin.wait(200)
        return super().render_cmpl(prompts, skip_mm_cache=skip_mm_cache)


class Engine:
    """Takes requests and answers none."""

    def __init__(self) -> None:
        self.renderer = Waiting()
        self.model_config = SimpleNamespace(hf_config=SimpleNamespace(image_token_id=PLACEHOLDER))
        self.vllm_config = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=SEQUENCES))
        self.added: list[tuple[str, Any]] = []

    def add_request(self, request_id: str, prompt: Any, parameters: Any, lora_request: Any) -> None:
        self.added.append((request_id, prompt))


class Sampler(VLLMSampler):
    """One whose engine's thread is the test's."""

    def __init__(self, engine: Engine) -> None:
        self._jobs, self._running, self._lock = SimpleQueue(), {}, threading.Lock()
        self._failure = self._lora_request = None
        self._thread = threading.current_thread()
        self._preparing = ThreadPoolExecutor(1, thread_name_prefix="vllm-requests")
        self._maker = RequestMaker(engine, EngineNeeds())


def request(value: int, num_images: int = 1) -> SampleRequest:
    return SampleRequest(
        prompt_ids=(1, PLACEHOLDER),
        images=(image(value),) * num_images,
        stop_ids=(),
        max_tokens=1,
        temperature=1,
        seed=0,
    )


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def sampler(engine: Engine) -> Iterator[Sampler]:
    sampler = Sampler(engine)
    yield sampler
    engine.renderer.may_begin.set()
    sampler._preparing.shutdown()


async def ask(sampler: Sampler, *requests: SampleRequest) -> list[asyncio.Task[Any]]:
    tasks = [asyncio.create_task(sampler.sample(r)) for r in requests]
    await asyncio.sleep(0)
    return tasks


async def test_pictures_are_prepared_while_the_engine_goes_on(sampler: Sampler, engine: Engine) -> None:
    tasks = await ask(sampler, *(request(value) for value in (0, 1, 0)))
    load = _Load(weights={}, policy_version=1)
    sampler._submit(load.future, lambda: load)
    assert sampler._jobs.empty()  # so that the engine's thread has nothing to wait for
    engine.renderer.may_begin.set()
    jobs = [await asyncio.to_thread(sampler._jobs.get, timeout=200) for _ in range(4)]
    assert jobs[3] is load  # behind what was asked for before
    for job in jobs[:3]:
        assert isinstance(job, _Sample)
        sampler._add(engine, job)
    assert [id_ for id_, _ in engine.added] == ["0", "1", "2"]
    assert [int(prompt["mm_kwargs"][0].max()) for _, prompt in engine.added] == [0, 1, 0]
    assert engine.renderer.threads == {"vllm-requests_0"}
    assert len(engine.renderer.prompts) == 2
    for task in tasks:
        task.cancel()


async def test_no_more_is_kept_than_for_twice_what_is_batched(sampler: Sampler, engine: Engine) -> None:
    engine.renderer.may_begin.set()
    for value in range(20):
        sampler._maker.make(request(value))
    assert len(sampler._maker._prompts._kept) == KEPT_PROMPTS * SEQUENCES


async def test_a_wrong_request_is_refused_and_a_cancelled_one_left_out(sampler: Sampler, engine: Engine) -> None:
    first, wrong, cancelled = await ask(sampler, request(0), request(1, num_images=2), request(2))
    cancelled.cancel()
    await asyncio.sleep(0)
    engine.renderer.may_begin.set()
    with pytest.raises(ValueError, match="1 image placeholders for 2 images"):
        await wrong
    sampler._preparing.shutdown()
    assert sampler._jobs.get().request.images[0].max() == 0
    assert sampler._jobs.empty()
    with pytest.raises(SamplerError, match="closed"):
        await sampler.sample(request(3))
    first.cancel()


async def test_who_waits_for_a_picture_hears_that_the_engine_failed(sampler: Sampler, engine: Engine) -> None:
    (waiting,) = await ask(sampler, request(0))
    sampler._fail(RuntimeError("no memory"))
    engine.renderer.may_begin.set()
    with pytest.raises(SamplerError, match="failed or was closed") as failed:
        await waiting
    assert "no memory" in str(failed.value.__cause__)
