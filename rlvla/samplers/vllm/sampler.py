"""vLLM behind the Sampler protocol: one engine in this process, one thread that drives it, new weights in place.

The thread admits requests as they come and steps the engine while anything runs, so that vLLM batches continuously
over all callers.
"""

from __future__ import annotations

import asyncio
import atexit
import queue
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlvla.config import LoraConfig, SamplerConfig
from rlvla.policies.buckets import Weights
from rlvla.policies.family import load_policy
from rlvla.policies.models.lora import Adapter, adapter_config, read_adapter
from rlvla.protocols import SampleOutput, SampleRequest
from rlvla.samplers.vllm.engine import (
    engine_arguments,
    refuse_other_adapter,
    refuse_other_weights,
    require_kv_cache,
    set_environment,
    spare_llvmlite,
    weight_names,
)
from rlvla.samplers.vllm.plugin import register
from rlvla.samplers.vllm.plugin.adapter import adapter_request
from rlvla.samplers.vllm.plugin.request import take_actions
from rlvla.samplers.vllm.plugin.self_test import check_bidirectional
from rlvla.samplers.vllm.requests import RequestMaker, refusal


class SamplerError(RuntimeError):
    """The engine failed and serves no more; the cause is chained."""


@dataclass(frozen=True, kw_only=True)
class _Load:
    weights: Adapter | Weights
    policy_version: int
    future: Future[None] = field(default_factory=Future)


@dataclass(frozen=True, kw_only=True)
class _Sample:
    request: SampleRequest
    made: tuple[str, dict[str, Any], Any]
    """Of `RequestMaker.make`."""
    future: Future[SampleOutput]


class VLLMSampler:
    """A `protocols.Sampler`; thread-safe.

    Args:
        model: checkpoint folder.
        config: of the engine.
        max_images: images in one context at most.
        max_model_len: tokens of one context at most, sampled ones included.
        seed: of the engine; requests bring their own.
        lora: of the learner; its adapters are served unmerged, as is the one of the checkpoint.

    Raises:
        ValueError: `sampler.kv_cache_mb` is too small for one context; the message says how much it takes.
        FileNotFoundError: the folder is no policy checkpoint.
        SamplerError: vLLM cannot serve this checkpoint; the cause is chained. An attention backend that cannot draw all
            actions of a chunk at once, where this policy does so, is found now.
    """

    def __init__(
        self,
        model: Path | str,
        config: SamplerConfig,
        *,
        max_images: int,
        max_model_len: int,
        seed: int = 0,
        lora: LoraConfig | None = None,
    ) -> None:
        policy = load_policy(model)
        if reason := policy.refuses("vllm"):
            raise SamplerError(f"{model}: {reason}")
        self._needs = policy.engine_needs(model)
        self._weight_names = weight_names(Path(model))
        self._adapter = read_adapter(model)
        self._adapter_config = self._adapter.config if self._adapter else lora and adapter_config(lora)
        self._lora_request: Any = None
        require_kv_cache(model, config, max_model_len)
        parallel_actions = self._needs.draws_at_once
        set_environment(config.threads, parallel_actions)
        self.num_cached_tokens = 0
        """Of all contexts so far, those that came out of the prefix cache."""
        self._policy_version = 0
        self.num_steps = 0
        """Of the engine, so far: forwards of the model."""
        self._jobs: queue.SimpleQueue[_Sample | _Load | None] = queue.SimpleQueue()
        self._running: dict[str, _Sample] = {}
        # Pictures are prepared here, ahead of the engine. One thread: jobs keep their order, and neither tokenizers nor
        # what `RequestMaker` keeps are made for several.
        self._preparing = ThreadPoolExecutor(1, thread_name_prefix="vllm-requests")
        self._failure: BaseException | None = None
        # Guards the step from "works" to "failed": no job may slip into the queue behind the last look at it.
        self._lock = threading.Lock()
        ready: Future[None] = Future()
        arguments = engine_arguments(
            model,
            config,
            max_images=max_images,
            max_model_len=max_model_len,
            seed=seed,
            parallel_actions=parallel_actions,
            adapter=self._adapter_config,
        )
        self._thread = threading.Thread(
            target=self._serve, args=(arguments, config.threads, ready), name="vllm-engine", daemon=True
        )
        self._thread.start()
        try:
            ready.result()
        except Exception as error:
            where = "" if config.kv_cache_mb else f"; sampler.gpu_memory_utilization is {config.gpu_memory_utilization}"
            raise SamplerError(f"vLLM cannot serve {model}: {error}{where}") from error
        atexit.register(self.close)  # native threads of an engine that is still alive would abort the process

    async def sample(self, request: SampleRequest) -> SampleOutput:
        """Continue one context; see `protocols.Sampler`.

        Raises:
            ValueError: placeholders and images differ in number, as many actions are asked for as this policy does not
                draw, or vLLM refuses the request, e.g. because it is longer than `max_model_len`; others go on.
            SamplerError: the engine failed.
        """
        future: Future[SampleOutput] = Future()
        self._submit(future, lambda: _Sample(request=request, made=self._maker.make(request), future=future))
        return await asyncio.wrap_future(future)

    def load_weights(self, weights: Adapter | Weights, policy_version: int) -> None:
        """Replace the weights in place between two requests: running ones end first, later ones see the new weights.

        They are all of the policy's, or the adapter of a LoRA policy.

        Raises:
            ValueError: names differ from the checkpoint's; nothing was loaded.
            SamplerError: the engine failed.
        """
        if isinstance(weights, Adapter):
            refuse_other_adapter(self._adapter_config, weights.config)
        else:
            refuse_other_weights(self._weight_names, weights.names)
        job = _Load(weights=weights, policy_version=policy_version)
        self._submit(job.future, lambda: job)
        job.future.result()

    def close(self) -> None:
        """End the engine once its running requests have ended; requests that still wait fail."""
        atexit.unregister(self.close)
        self._preparing.shutdown()
        self._jobs.put(None)
        self._thread.join()

    def _submit(self, future: Future[Any], prepare: Callable[[], _Sample | _Load]) -> None:
        with self._lock:
            self._require_engine()
            try:
                self._preparing.submit(self._prepare, future, prepare)
            except RuntimeError as error:
                raise SamplerError("the sampler was closed") from error

    def _require_engine(self) -> None:
        if self._failure is not None or not self._thread.is_alive():
            raise SamplerError("the vLLM engine failed or was closed") from self._failure

    def _prepare(self, future: Future[Any], prepare: Callable[[], _Sample | _Load]) -> None:
        """The preparing thread: make a job ready and hand it to the engine's thread."""
        if future.cancelled():
            return
        try:
            job = prepare()
            with self._lock:
                self._require_engine()
                self._jobs.put(job)
        except Exception as error:  # handed to the caller, whom alone it concerns
            if future.set_running_or_notify_cancel():
                future.set_exception(error)

    def _serve(self, arguments: Mapping[str, Any], threads: int, ready: Future[None]) -> None:
        """The engine's thread: every call into vLLM happens here."""
        try:
            engine = self._start(arguments, threads)
        except Exception as error:  # handed to the constructor, which raises it
            self._failure = error
            ready.set_exception(error)
            return
        ready.set_result(None)
        try:
            while self._admit(engine):
                self._step(engine)
        except Exception as error:  # the callers wait for an answer, whatever happened
            self._fail(error)
        finally:
            self._fail(SamplerError("the sampler was closed"))
            engine.engine_core.shutdown()

    def _start(self, arguments: Mapping[str, Any], threads: int) -> Any:
        if not torch.cuda.is_available():
            torch.set_num_threads(threads)  # vLLM's CPU worker disables this call later on
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        register()
        spare_llvmlite()
        engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
        self._maker = RequestMaker(engine, self._needs)
        if self._adapter is not None:
            self._receive(engine, self._adapter)
        if self._needs.draws_at_once:
            try:
                bidirectional = self._needs.slots_see_each_other
                action_ids = list(self._needs.action_ids)
                engine.collective_rpc("serve_action_blocks", args=(bidirectional, action_ids))
                if bidirectional:
                    # Slots start as zeros, of which none differs from another.
                    check_bidirectional(engine, avoid=set(engine.get_tokenizer().get_added_vocab().values()))
                    engine.collective_rpc("draw_from", args=(action_ids,))
            except Exception:
                engine.engine_core.shutdown()
                raise
        return engine

    def _admit(self, engine: Any) -> bool:
        """Take the jobs that wait, sleeping when there is nothing else to do; False when it is time to end."""
        wait = not self._running
        while True:
            try:
                job = self._jobs.get(block=wait)
            except queue.Empty:
                return True
            if isinstance(job, _Sample):
                self._add(engine, job)
                wait = not self._running
                continue
            if job is None:
                self._drain(engine)
                return False
            self._load(engine, job)
            wait = True

    def _add(self, engine: Any, job: _Sample) -> None:
        if not job.future.set_running_or_notify_cancel():
            return  # its caller was cancelled
        try:
            engine.add_request(*job.made, lora_request=self._lora_request)
        except Exception as error:  # a request that vLLM refuses concerns its caller alone
            refused = refusal(error)
            refused.__cause__ = error
            job.future.set_exception(refused)
            return
        self._running[job.made[0]] = job

    def _step(self, engine: Any) -> None:
        self.num_steps += 1
        outputs = engine.step()
        blocks = [o.request_id for o in outputs if self._running[o.request_id].request.num_actions]
        actions = iter(take_actions(engine, blocks))
        for output in outputs:
            job = self._running.pop(output.request_id)
            num_actions = job.request.num_actions
            context_ids = np.array(output.prompt_token_ids, np.int32)
            self.num_cached_tokens += output.num_cached_tokens or 0
            if num_actions:
                token_ids, logprobs = next(actions)
            else:
                completion = output.outputs[0]
                token_ids = np.array(completion.token_ids, np.int32)
                logprobs = np.array(completion.logprobs.logprobs, np.float32)
            job.future.set_result(
                SampleOutput(
                    context_ids=context_ids[: len(context_ids) - num_actions],
                    token_ids=token_ids,
                    logprobs=logprobs,
                    policy_version=self._policy_version,
                )
            )

    def _drain(self, engine: Any) -> None:
        """Serve what runs to its end."""
        while self._running:
            self._step(engine)

    def _load(self, engine: Any, job: _Load) -> None:
        try:
            self._drain(engine)
            self._receive(engine, job.weights)
            # What was computed under the old weights must not be met again.
            engine.reset_prefix_cache()
            engine.reset_mm_cache()
            engine.reset_encoder_cache()
        except Exception as error:
            job.future.set_exception(SamplerError(f"weights did not load: {error}"))
            raise  # half-loaded weights: the engine is of no more use
        self._policy_version = job.policy_version
        job.future.set_result(None)

    def _receive(self, engine: Any, weights: Adapter | Weights) -> None:
        if isinstance(weights, Adapter):
            engine.collective_rpc("receive_adapter", args=(weights,))
            self._lora_request = adapter_request()
            return
        engine.collective_rpc("begin_weights")
        for bucket in weights.buckets:
            engine.collective_rpc("take_bucket", args=(bucket,))
        engine.collective_rpc("end_weights")

    def _fail(self, error: BaseException) -> None:
        """Answer everyone who waits, and refuse whoever comes later."""
        with self._lock:
            self._failure = self._failure or error
            waiting: list[Future[Any]] = [job.future for job in self._running.values()]
            self._running.clear()
            while not self._jobs.empty():
                job = self._jobs.get()
                if job is not None and job.future.set_running_or_notify_cancel():
                    waiting.append(job.future)
        for future in waiting:
            failure = SamplerError(f"the vLLM engine failed: {error}")
            failure.__cause__ = error
            future.set_exception(failure)
