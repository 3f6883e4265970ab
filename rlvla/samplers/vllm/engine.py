"""What the engine behind `sampler.VLLMSampler` is started with, and what its workers can do beside serving."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rlvla.config import SamplerConfig
from rlvla.durable.files import visible
from rlvla.policies.buckets import Bucket, unpack
from rlvla.policies.models import auto
from rlvla.policies.models.lora import Adapter, AdapterConfig
from rlvla.samplers.vllm.plugin.adapter import adapter_arguments, pack_head, serve_adapter
from rlvla.samplers.vllm.plugin.worker import ActionBlockWorker

if TYPE_CHECKING:
    from transformers import PretrainedConfig


_BLOCK = 32
"""Tokens of a KV block: prefix caching works in whole blocks, and vLLM's CPU attention in multiples of 32."""


class WorkerExtension(ActionBlockWorker):
    """Mixed into vLLM's workers (`worker_extension_cls`), so that each, wherever it runs, takes its share."""

    def begin_weights(self) -> None:
        """Ready the model for weights that come in buckets, as vLLM's own transfers do: distributed/weight_transfer."""
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model_runner.get_model())

    def take_bucket(self, bucket: Bucket) -> None:
        """Load some of the checkpoint's weights in place, with vLLM's own post-processing (packing, sharding).

        vLLM keeps what it was given of a layer until it has all of it, hence the copy, straight to the device.
        """
        device = self.model_runner.device
        self.model_runner.get_model().load_weights(
            (name, unpack(packed).to(device, copy=True)) for name, packed in bucket.items()
        )

    def end_weights(self) -> None:
        """All of the checkpoint's weights have come."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        runner = self.model_runner
        finalize_layerwise_reload(runner.get_model(), runner.model_config)
        # A head that is tied to the embeddings has no weights of its own to reload.
        pack_head(runner.get_model())

    def receive_adapter(self, adapter: Adapter) -> None:
        """Serve an adapter in the place of the one before, unmerged, and its trained rows in that of the model's.

        vLLM has no trained rows; a row is a weight of its own, and rounded to the engine's dtype as any other.

        Raises:
            ValueError: vLLM has no layer for a weight of the adapter; it would leave it out without a word.
        """
        serve_adapter(self.model_runner, adapter)


def set_environment(threads: int, parallel_actions: bool) -> None:
    """What vLLM reads from the environment, before it is imported."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine in this process starts in 2 s instead of 16
    os.environ["OMP_NUM_THREADS"] = str(threads)
    for name, value in {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # bound threads of several processes would share one core
    }.items():
        os.environ.setdefault(name, value)
    if not torch.cuda.is_available():
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # the first request would compile for 2 s
        os.environ.setdefault(
            "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64"
        )  # 1024 by default: 60 MiB, in the course of hours
    if parallel_actions:
        os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"  # our plugin is written against V1, the CPU's only one


def spare_llvmlite() -> None:
    """Let vLLM start in a process that has loaded numba, as robosuite does.

    To find copies of its kernels vLLM looks at `vars` of everything in every module (triton_utils/dispatcher.py). For
    llvmlite's library that is a C function named `__dict__` (llvmlite/binding/ffi.py), which has no `get`.
    """
    ffi = sys.modules.get("llvmlite.binding.ffi")
    if ffi is not None:
        ffi.lib._fntab["__dict__"] = {}


def engine_arguments(
    model: Path | str,
    config: SamplerConfig,
    *,
    max_images: int,
    max_model_len: int,
    seed: int,
    parallel_actions: bool,
    adapter: AdapterConfig | None = None,
) -> dict[str, Any]:
    """Arguments of the engine; on the CPU prompts are never cut."""
    special: dict[str, Any] = {} if adapter is None else adapter_arguments(adapter)
    if parallel_actions:
        special["enable_chunked_prefill"] = False  # would tear the blocks of actions
    if not torch.cuda.is_available():
        # A prompt cut in two would rewind the request's seeded generator, which a CPU generator cannot do: with room
        # for every token of every sequence no prompt is ever cut.
        special["max_num_batched_tokens"] = config.max_num_seqs * max_model_len
    return {
        "model": str(model),
        "dtype": config.dtype,
        "seed": seed,
        "max_model_len": max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "kv_cache_memory_bytes": (config.kv_cache_mb << 20) or None,
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "block_size": _BLOCK,
        "enable_prefix_caching": True,
        # Prompts are kept ready in `PromptRenderer`; vLLM's own cache would grow to gigabytes, and is never asked.
        "mm_processor_cache_gb": 0,
        "enforce_eager": config.enforce_eager,
        "tensor_parallel_size": config.tensor_parallel_size,
        # Else vLLM, which finds itself in a placement group, would start Ray workers in the bundles of other actors.
        "distributed_executor_backend": "mp" if config.tensor_parallel_size > 1 else None,
        "limit_mm_per_prompt": {"image": max_images, "video": 0},
        "generation_config": "vllm",  # not the checkpoint's sampling defaults
        "logprobs_mode": "processed_logprobs",  # of the distribution that was drawn from
        "worker_extension_cls": f"{WorkerExtension.__module__}.{WorkerExtension.__qualname__}",
        "disable_log_stats": True,
        **special,
    }


def require_kv_cache(model: Path | str | PretrainedConfig, config: SamplerConfig, max_model_len: int) -> None:
    """Raises ValueError, naming key and number, where the configured KV cache does not hold one context.

    The model is a checkpoint, or the config of one that is to be written. vLLM finds that out, too, but once it has
    loaded the weights, and says it in keys of its own. It needs the context's blocks, and a null block, on each GPU.
    """
    if not config.kv_cache_mb:
        return
    text: Any = (auto.load_config(model) if isinstance(model, Path | str) else model).get_text_config()
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    num_heads = -(-text.num_key_value_heads // config.tensor_parallel_size)
    num_tokens = (-(-max_model_len // _BLOCK) + 1) * _BLOCK
    size = getattr(torch, config.dtype).itemsize
    least = -(-2 * text.num_hidden_layers * num_heads * head_size * size * num_tokens >> 20)
    if config.kv_cache_mb < least:
        raise ValueError(
            f"sampler.kv_cache_mb is {config.kv_cache_mb}: one context of {max_model_len} tokens "
            f"(episode.max_turn_tokens) alone needs {least}, and each further one that runs at the same time as much"
        )


def weight_names(model: Path) -> frozenset[str]:
    """Names in the checkpoint's safetensors files. vLLM only warns about weights that it was not given."""
    from safetensors import safe_open

    names: set[str] = set()
    for file in visible(model, "*.safetensors"):
        with safe_open(file, "pt") as weights:
            names.update(weights.keys())
    if not names:
        raise FileNotFoundError(f"{model} holds no *.safetensors: it is no checkpoint")
    return frozenset(names)


def refuse_other_weights(names: frozenset[str], others: frozenset[str]) -> None:
    """Raises ValueError, naming some, unless the weights are those of the checkpoint: all, and no others."""
    if wrong := names ^ others:
        shown = ", ".join(sorted(wrong)[:5])
        raise ValueError(f"{len(wrong)} weights are missing or not in the checkpoint, among them {shown}")


def refuse_other_adapter(config: AdapterConfig | None, other: AdapterConfig) -> None:
    """Raises ValueError unless a sampler serves such adapters; only their trained rows may differ."""
    if config is None or replace(other, trainable_token_indices=config.trainable_token_indices) != config:
        raise ValueError(f"the sampler was started for {config or 'a policy without an adapter'}, and is sent {other}")
