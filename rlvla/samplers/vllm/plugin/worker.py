"""Action blocks in vLLM's worker: attended without a causal mask, and drawn from in the same forward.

vLLM's model runner attends a whole batch causally. Where a step has action blocks, each layer then attends the blocks'
queries once more, without a mask, over the same cache, which by then holds the keys and values of the whole prompt; the
result replaces the causal one. A block that ends the prompt thus sees all of it, and what stands before it, recomputed
tail included, stays causal. Every backend that can attend without a mask serves, and no kernel needs to know of blocks.
Of a policy whose blocks are causal, attention stays as it is, and any backend serves.

Written against vLLM 0.32: v1/worker/gpu_model_runner.py (`execute_model`), model_executor/layers/attention/attention.py
(`unified_attention_with_output`).
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch

from rlvla.samplers.vllm.plugin import register
from rlvla.samplers.vllm.plugin.step import ActionBlockError, Step, blocks_alone, draw, plan, uniforms

LOGIT_ROWS = 1024
"""Rows whose logits are over the whole vocabulary at a time, before they are cut down to the bins: memory."""


class ActionBlockWorker:
    """Mixed into vLLM's workers by `worker_extension_cls`."""

    model_runner: Any

    def serve_action_blocks(self, bidirectional: bool, action_ids: list[int]) -> None:
        """Serve action requests from now on; raises ActionBlockError where that cannot be."""
        register()
        self.action_blocks = ActionBlockServer(self.model_runner, bidirectional, action_ids)

    def draw_from(self, action_ids: list[int]) -> None:
        """Draw actions from these token ids from now on."""
        self.action_blocks.draw_from(action_ids)

    def take_drawn(self, keys: list[str]) -> list[tuple[bytes, bytes]]:
        """Of requests that have finished, see `request.take_actions`; they are forgotten here."""
        return [self.action_blocks.drawn.pop(key) for key in keys]


class ActionBlockServer:
    """Wraps one of vLLM's model runners; raises ActionBlockError where it cannot serve action blocks.

    Their tokens see each other if they are bidirectional; actions are drawn from `action_ids`, bin -> token id.
    """

    def __init__(self, runner: Any, bidirectional: bool, action_ids: list[int]) -> None:
        _check_runner(runner)
        self.drawn: dict[str, tuple[bytes, bytes]] = {}
        """Key of a request -> token ids [n] int32, logprobs [n] float32."""
        self._runner = runner
        self._step: Step | None = None
        self._layers: list[str] = []
        """Those that attend blocks once more."""
        self.draw_from(action_ids)
        self._wrap_metadata(runner)
        if bidirectional:
            self._wrap_attention(runner)
        self._wrap_forward(runner)

    def draw_from(self, action_ids: list[int]) -> None:
        """See `ActionBlockWorker.draw_from`."""
        self._action_ids = torch.tensor(action_ids, device=self._runner.device)

    def _wrap_attention(self, runner: Any) -> None:
        _check_attention(runner)
        for group in _groups(runner):
            self._wrap_group(group)
            self._layers += group.layer_names
        for name in self._layers:
            self._wrap_layer(name, runner.compilation_config.static_forward_context[name].impl)

    def _wrap_metadata(self, runner: Any) -> None:
        build = runner._build_attention_metadata

        def wrapped(*args: Any, num_scheduled_tokens: dict[str, int] | None = None, **kwargs: Any) -> Any:
            self._step = plan(runner, num_scheduled_tokens or {})
            return build(*args, num_scheduled_tokens=num_scheduled_tokens, **kwargs)

        runner._build_attention_metadata = wrapped

    def _wrap_group(self, group: Any) -> None:
        from vllm.config import set_current_vllm_config

        # A builder of its own: some keep what they built in buffers.
        twin = copy.copy(group)
        block_size = group.get_metadata_builder().kv_cache_spec.block_size
        with set_current_vllm_config(self._runner.vllm_config):
            twin.create_metadata_builders(self._runner.vllm_config, self._runner.device, block_size)
        build = group.build_metadata

        def wrapped(common: Any, *args: Any, **kwargs: Any) -> Any:
            if self._step is not None:
                metadata = twin.build_metadata(blocks_alone(self._step, common))
                self._step.metadata.update(dict.fromkeys(group.layer_names, metadata))
            return build(common, *args, **kwargs)

        group.build_metadata = wrapped

    def _wrap_layer(self, name: str, impl: Any) -> None:
        attend = impl.forward

        def wrapped(
            layer: Any, query: Any, key: Any, value: Any, cache: Any, metadata: Any, output: Any, **scales: Any
        ) -> Any:
            result = attend(layer, query, key, value, cache, metadata, output=output, **scales)
            step = self._step
            if step is None or metadata is None:
                return result
            tokens = step.tokens
            blocks = torch.empty_like(output[tokens])
            attend(layer, query[tokens], key[tokens], value[tokens], cache, step.metadata[name], output=blocks)
            output[tokens] = blocks
            step.num_attended += 1
            return result

        impl.forward = wrapped

    def _wrap_forward(self, runner: Any) -> None:
        forward = runner._model_forward

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            hidden = forward(*args, **kwargs)
            step, self._step = self._step, None
            if step is not None:
                if step.num_attended != len(self._layers):
                    raise ActionBlockError(
                        f"{step.num_attended} of {len(self._layers)} layers attended the action blocks: attention was "
                        "replayed from a graph; set enforce_eager"
                    )
                self._draw(step, hidden)
            return hidden

        runner._model_forward = wrapped

    def _draw(self, step: Step, hidden: torch.Tensor) -> None:
        """Draw the actions of every block of a step from its hidden states [tokens, D]."""
        device, rows, ids = hidden.device, step.rows, self._action_ids
        # The logits at <act> and at all slots but the last score the actions.
        places = np.concatenate([np.arange(row.end - row.block.num_actions - 1, row.end - 1) for row in rows])
        states = hidden[torch.from_numpy(places).to(device)]
        logits = torch.cat([self._runner.model.compute_logits(s)[:, ids] for s in states.split(LOGIT_ROWS)])
        counts = [row.block.num_actions for row in rows]
        temperatures = torch.tensor([row.block.temperature for row in rows]).repeat_interleave(torch.tensor(counts))
        targets = torch.cat([uniforms(row.block.seed, row.block.num_actions) for row in rows])
        bins, logprobs = draw(logits, temperatures.to(device), targets.to(device))
        ids_cpu, logprobs_cpu = ids[bins].int().cpu(), logprobs.cpu()
        for row, its_ids, its_logprobs in zip(rows, ids_cpu.split(counts), logprobs_cpu.split(counts), strict=True):
            self.drawn[row.block.key] = (its_ids.numpy().tobytes(), its_logprobs.numpy().tobytes())


def _groups(runner: Any) -> list[Any]:
    return [group for groups in runner.attn_groups for group in groups]


def _check_runner(runner: Any) -> None:
    """Refuse what would not be served, or not as it must be."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    if not isinstance(runner, GPUModelRunner):
        raise ActionBlockError(f"model runner {type(runner).__name__}: set VLLM_USE_V2_MODEL_RUNNER=0 for vLLM's V1")
    config = runner.vllm_config
    parallel = config.parallel_config
    for name, wrong in {
        "pipeline_parallel_size": parallel.pipeline_parallel_size != 1,
        "decode_context_parallel_size": parallel.decode_context_parallel_size != 1,
        "speculative_config": config.speculative_config is not None,
        "enable_dbo": parallel.use_ubatching,
    }.items():
        if wrong:
            raise ActionBlockError(f"action blocks are not served with {name}; leave it at its default")


def _check_attention(runner: Any) -> None:
    """Refuse what cannot attend a block in both directions."""
    from vllm.v1.attention.backend import AttentionType

    if len(runner.attn_groups) != 1:
        raise ActionBlockError("this model's layers have caches of several kinds; use the transformers sampler")
    for group in _groups(runner):
        backend = group.backend
        if not backend.supports_non_causal():
            raise ActionBlockError(
                f"attention backend {backend.get_name()} knows only causal attention; choose another "
                "(attention_backend), such as FLASH_ATTN or TRITON_ATTN on GPUs, CPU_ATTN on the CPU, or train with "
                "action_decoding: parallel_causal"
            )
        for name in group.layer_names:
            layer = runner.compilation_config.static_forward_context[name]
            if layer.attn_type != AttentionType.DECODER or layer.sliding_window is not None:
                raise ActionBlockError(
                    f"layer {name} is no decoder's with full attention; use the transformers sampler"
                )
