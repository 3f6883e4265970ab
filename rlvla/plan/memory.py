"""Bytes of a learner rank and of a sampler, from a model's figures.

Resident: what DeepSpeed (0.19, as `rlvla.learner.engine` configures it) keeps all the time. With N parameters, T
trained ones, W ranks and AdamW:

    ZeRO 0, float32       weights 4N,    gradients 4T,    moments 8T
    ZeRO 2, bfloat16      weights 2N,    gradients 4T/W,  moments 8T/W,  float32 masters 4T/W
    ZeRO 3, bfloat16      weights 2N/W,  gradients 4T/W,  moments 8T/W,  float32 masters 4T/W

Transient: forward and backward, the optimizer's step, and the weight sync follow one another, so that the largest
counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlvla.config import LearnerConfig, PlanConfig, SamplerConfig
from rlvla.plan.model import ModelFigures, Stack
from rlvla.plan.text import GIB, size
from rlvla.plan.turn import DEVICES, TurnTokens

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_FLOAT32 = 4
LOGIT_COPIES = 4
"""Float32 copies of the logits that live at once in `token_logprobs` and its backward: the logits, the gradients of the
normaliser and of the gathered entry, and their sum (or, forward, the softmax and product of the entropy)."""
CONTEXT = GIB
"""Assumed: CUDA context, NCCL and cuBLAS work spaces and fragmentation of one process."""
ENGINE = 2 * GIB
"""Assumed: activations of vLLM's largest batch, its encoder cache and CUDA graphs."""


@dataclass(frozen=True, kw_only=True)
class LearnerMemory:
    """Bytes of one rank, by what they are for."""

    resident: dict[str, float]
    transient: dict[str, float]

    @property
    def peak(self) -> float:
        """The most that is in use at once."""
        return sum(self.resident.values()) + max(self.transient.values())


@dataclass(frozen=True, kw_only=True)
class SamplerMemory:
    """Bytes of one GPU of a sampler; all are taken at the start."""

    weights: float
    kv_cache: float
    overhead: float
    num_kv_tokens: int
    """Tokens that fit into the KV cache."""

    @property
    def peak(self) -> float:
        """All of it."""
        return self.weights + self.kv_cache + self.overhead


def zero(learner: LearnerConfig) -> Any:
    """DeepSpeed's own ZeRO settings, of what the learner tells it: `stage`, and elements of its buffers."""
    from rlvla.learner.engine import deepspeed_config  # first: it names the CPU to DeepSpeed

    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig  # isort: skip

    return DeepSpeedZeroConfig(**deepspeed_config(learner)["zero_optimization"])


def misfits(plan: PlanConfig, needs: Mapping[str, float], remedy: str) -> tuple[str, ...]:
    """What needs more bytes than the GPU has, each with what to do."""
    there = DEVICES[plan.gpu].memory_gib * GIB
    return tuple(
        f"{name} needs {size(need)}, {plan.gpu} has {size(there)}: {remedy}"
        for name, need in needs.items()
        if there and need > there
    )


def learner_memory(
    figures: ModelFigures,
    learner: LearnerConfig,
    turn: TurnTokens,
    num_rows: int,
    world: int,
    *,
    temperature: float = 1.0,
    has_reference: bool = False,
    bucket: float = 0.0,
) -> LearnerMemory:
    """Memory of one learner rank, bytes.

    Args:
        figures: of the model, with the adapter if `learner` has one.
        learner: dtype, stage, checkpointing.
        turn: the longest row.
        num_rows: of a micro-batch.
        world: ranks.
        temperature: of the text that is scored.
        has_reference: whether a KL term asks for reference logprobs; with LoRA the same weights give them.
        bucket: bytes in which weights are handed to samplers (GRPO); making one takes as much beside it. 0: they are
            only saved (SFT), for which stage 3 gathers them.
    """
    settings, size = zero(learner), BYTES[learner.dtype]
    weights = (figures.num_parameters + figures.num_adapter_parameters) * size
    states = figures.num_trained_parameters * _FLOAT32 / (world if settings.stage >= 2 else 1)
    resident = {
        "weights": weights / (world if settings.stage == 3 else 1),
        "float32 gradients": states,
        "AdamW moments": 2 * states,
    }
    if size < _FLOAT32 or settings.stage >= 2:
        resident["float32 masters"] = states
    if has_reference and not figures.num_adapter_parameters:
        resident["reference copy"] = figures.num_parameters * size
    # Where actions are scored apart, at another temperature, the gradient of their logits waits for that of the text's.
    num_copies = LOGIT_COPIES + (turn.block > 0 and temperature != 1)
    compute = activations(figures, learner, turn, num_rows, num_copies)
    if settings.stage >= 2:
        compute += settings.reduce_bucket_size * size  # in which gradients are reduced
    if settings.stage == 3:
        compute += min(settings.max_live_parameters * size, weights)  # gathered ahead and kept at most
    transient = {"forward and backward": compute, "optimizer step": states}
    if bucket:
        transient["weight sync"] = min(2 * bucket, weights)
    elif settings.stage == 3:
        transient["saving"] = weights
    return LearnerMemory(resident=resident, transient=transient)


def activations(
    figures: ModelFigures, learner: LearnerConfig, turn: TurnTokens, num_rows: int, num_copies: int = LOGIT_COPIES
) -> float:
    """Bytes that one micro-batch keeps for its backward, with logits of what the policy said.

    With checkpointing each block keeps its input, and one block at a time is computed again.
    """
    size = BYTES[learner.dtype]
    total = turn.sampled * figures.vocabulary_size * (size + num_copies * _FLOAT32)
    is_vision_tracked = learner.gradient_checkpointing or not figures.num_adapter_parameters
    stacks = [(figures.text, turn.limit)]
    stacks += [(tower, turn.num_images * figures.patches_per_image * is_vision_tracked) for tower in figures.vision]
    for stack, length in stacks:
        inputs = stack.num_layers * size * stack.hidden_size
        block = _block_activations(stack, size)
        total += length * (inputs + block if learner.gradient_checkpointing else stack.num_layers * block)
    return float(num_rows * total)


def _block_activations(stack: Stack, size: int) -> int:
    """Bytes that autograd keeps of one token in one block; attention by sdpa keeps no scores.

    Of width h: what each norm starts from (in float32, where it computes so) and gives, which the projections take; of
    sdpa its query, keys and values (repeated for each head under a padding mask), its output and the output
    projection's contiguous input. Of width f: between gate or first layer and the last one, all results.
    """
    norm = stack.hidden_size * ((_FLOAT32 + size if stack.is_gated else size) + size)
    attention = 5 * size * stack.hidden_size
    mlp = (4 if stack.is_gated else 2) * size * stack.intermediate_size
    return 2 * norm + attention + mlp


def sampler_memory(
    figures: ModelFigures, sampler: SamplerConfig, gpu_memory: float, max_turn_tokens: int, bucket: float = 0.0
) -> SamplerMemory:
    """Memory of a sampler on each of its GPUs of `gpu_memory` bytes; 0: on the CPU.

    With `kv_cache_mb` 0 vLLM fills `gpu_memory_utilization` of the GPU with KV cache. The transformers sampler holds
    the cache of one turn, and a `bucket` of new weights (bytes) while it writes them over the old ones.
    """
    size = BYTES[sampler.dtype]
    weights, per_token = figures.num_parameters * size, figures.kv_values_per_token * size
    overhead = CONTEXT + ENGINE * (sampler.backend == "vllm") if gpu_memory else 0.0
    if sampler.backend == "transformers":
        cache, overhead = float(max_turn_tokens * per_token), overhead + min(bucket, weights)
    else:
        weights, per_token = weights / sampler.tensor_parallel_size, per_token / sampler.tensor_parallel_size
        left = max(0.0, sampler.gpu_memory_utilization * gpu_memory - weights - overhead)
        cache = float(sampler.kv_cache_mb << 20) or left
    return SamplerMemory(weights=weights, kv_cache=cache, overhead=overhead, num_kv_tokens=int(cache / per_token))
