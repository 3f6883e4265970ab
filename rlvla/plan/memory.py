"""Bytes of a learner rank and of a sampler, from a model's figures. Pure functions of numbers.

Resident: what DeepSpeed (0.19, as `rlvla.learner.engine` configures it) keeps all the time. With N parameters, T
trained ones, W ranks and AdamW:

    ZeRO 0, float32       weights 4N,    gradients 4T,    moments 8T
    ZeRO 2, bfloat16      weights 2N,    gradients 4T/W,  moments 8T/W,  float32 masters 4T/W
    ZeRO 3, bfloat16      weights 2N/W,  gradients 4T/W,  moments 8T/W,  float32 masters 4T/W

Transient: forward and backward, the optimizer's step, and the weight sync follow one another, so that the largest
counts.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlvla.config import LearnerConfig, SamplerConfig
from rlvla.plan.model import ModelFigures, Stack

GIB = 1 << 30
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_FLOAT32 = 4
LOGIT_COPIES = 4
"""Float32 copies of the logits that live at once in `policy.token_logprobs` and its backward: the logits, the gradients
of the normaliser and of the gathered entry, and their sum (or, forward, the softmax and product of the entropy)."""
REDUCE_BUCKET = 500_000_000
"""Elements of the buffer in which ZeRO 2 and 3 reduce gradients (DeepSpeed's default `reduce_bucket_size`)."""
LIVE_PARAMETERS = 1_000_000_000
"""Elements that ZeRO 3 gathers ahead and keeps at most (DeepSpeed's default `stage3_max_live_parameters`)."""
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
    """Bytes of one GPU of a sampler."""

    weights: float
    kv_cache: float
    overhead: float
    num_kv_tokens: int
    """Tokens that fit into the KV cache."""

    @property
    def peak(self) -> float:
        """All of it is taken at the start."""
        return self.weights + self.kv_cache + self.overhead


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """The longest rows of one forward and backward."""

    num_rows: int
    num_tokens: int
    """Of a row."""
    num_scored_tokens: int
    """Behind the prompt: those that need logits."""
    num_patches: int
    """Of a row's images."""
    num_logit_copies: int = LOGIT_COPIES
    """Float32 copies of the logits; one more where actions are scored apart, at another temperature than 1: the
    gradient of theirs waits for that of the text's."""


def zero_stage(learner: LearnerConfig) -> int:
    """The stage that runs: DeepSpeed has float32 masters of bfloat16 weights only from 2 on."""
    return 2 if learner.dtype == "bfloat16" and learner.zero_stage == 0 else learner.zero_stage


def learner_memory(
    figures: ModelFigures, learner: LearnerConfig, world: int, batch: MicroBatch, *, has_reference: bool, syncs: bool
) -> LearnerMemory:
    """Memory of one learner rank, bytes.

    Args:
        figures: of the model, with the adapter if `learner` has one.
        learner: dtype, stage, checkpointing.
        world: ranks.
        batch: the largest micro-batch.
        has_reference: whether a KL term asks for reference logprobs; with LoRA the same weights give them.
        syncs: whether weights are handed to samplers (GRPO), or only saved (SFT): both gather them; an adapter is not.
    """
    stage, size = zero_stage(learner), BYTES[learner.dtype]
    weights = (figures.num_parameters + figures.num_adapter_parameters) * size
    trained = figures.num_trained_parameters
    share = world if stage >= 2 else 1
    resident = {
        "weights": weights / (world if stage == 3 else 1),
        "float32 gradients": trained * _FLOAT32 / share,
        "AdamW moments": trained * 2 * _FLOAT32 / share,
    }
    if size < _FLOAT32 or stage >= 2:
        resident["float32 masters"] = trained * _FLOAT32 / share
    if has_reference and not figures.num_adapter_parameters:
        resident["reference copy"] = figures.num_parameters * size
    compute = activations(figures, learner, batch)
    if stage >= 2:
        compute += REDUCE_BUCKET * size
    if stage == 3:
        compute += min(LIVE_PARAMETERS * size, weights)
    transient = {"forward and backward": compute, "optimizer step": trained * _FLOAT32 / share}
    gathered = weights if stage == 3 else 0
    if gathered:
        transient["weight sync" if syncs else "saving"] = gathered
    return LearnerMemory(resident=resident, transient=transient)


def activations(figures: ModelFigures, learner: LearnerConfig, batch: MicroBatch) -> float:
    """Bytes that one micro-batch keeps for its backward, logits included.

    With checkpointing each block keeps its input, and one block at a time is computed again.
    """
    size = BYTES[learner.dtype]
    tokens, patches = batch.num_rows * batch.num_tokens, batch.num_rows * batch.num_patches
    total = (
        batch.num_rows * batch.num_scored_tokens * figures.vocabulary_size * (size + batch.num_logit_copies * _FLOAT32)
    )
    is_vision_tracked = learner.gradient_checkpointing or not figures.num_adapter_parameters
    for stack, length in [(figures.text, tokens), *((tower, patches * is_vision_tracked) for tower in figures.vision)]:
        inputs = stack.num_layers * size * stack.hidden_size
        block = block_activations(stack, size)
        total += length * (inputs + block if learner.gradient_checkpointing else stack.num_layers * block)
    return float(total)


def block_activations(stack: Stack, size: int) -> int:
    """Bytes that autograd keeps of one token in one block; attention by sdpa keeps no scores.

    Of width h: what each norm starts from (in float32, where it computes so) and gives, which the projections take; of
    sdpa its query, keys and values (repeated for each head under a padding mask), its output and the output
    projection's contiguous input. Of width f: between gate or first layer and the last one, all results.
    """
    norm = stack.hidden_size * ((_FLOAT32 + size if stack.norm_in_float32 else size) + size)
    attention = 5 * size * stack.hidden_size
    mlp = (4 if stack.is_gated else 2) * size * stack.intermediate_size
    return 2 * norm + attention + mlp


def sampler_memory(
    figures: ModelFigures, sampler: SamplerConfig, gpu_memory: float, max_turn_tokens: int
) -> SamplerMemory:
    """Memory of a sampler on each of its GPUs, bytes.

    With `kv_cache_mb` 0 vLLM fills `gpu_memory_utilization` of the GPU with KV cache. The transformers sampler holds
    the cache of one turn, and the old weights beside the new ones while it loads them.

    Args:
        figures: of the model; an adapter is small beside it.
        sampler: see SamplerConfig.
        gpu_memory: of one GPU, bytes; 0: a CPU.
        max_turn_tokens: length of a turn at most.
    """
    split, size = sampler.tensor_parallel_size, BYTES[sampler.dtype]
    if sampler.backend == "transformers":
        return SamplerMemory(
            weights=2 * figures.num_parameters * size,
            kv_cache=max_turn_tokens * kv_bytes_per_token(figures, size),
            overhead=CONTEXT if gpu_memory else 0.0,
            num_kv_tokens=max_turn_tokens,
        )
    weights = figures.num_parameters * size / split
    overhead = CONTEXT + ENGINE if gpu_memory else 0.0
    if sampler.kv_cache_mb:
        cache = float(sampler.kv_cache_mb << 20)
    else:
        cache = max(0.0, sampler.gpu_memory_utilization * gpu_memory - weights - overhead)
    per_token = kv_bytes_per_token(figures, size) / split
    return SamplerMemory(weights=weights, kv_cache=cache, overhead=overhead, num_kv_tokens=int(cache / per_token))


def kv_bytes_per_token(figures: ModelFigures, size: int) -> int:
    """2 (key, value) * layers * key-value heads * head size * bytes of a value."""
    return figures.kv_values_per_token * size
