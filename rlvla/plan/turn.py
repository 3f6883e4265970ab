"""Tokens of a turn at most, what a device does in a second, and how long a learner takes to learn from turns.

How long rollouts take is for `rlvla.plan.estimate`.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlvla.config import EpisodeConfig, LearnerConfig
from rlvla.plan.model import ModelFigures
from rlvla.plan.world import World
from rlvla.policies.markup import MAX_CALL_TOKENS

PROMPT_TEXT_TOKENS = 48
"""Instruction and chat template: LIBERO's longest instruction has 83 characters, Qwen's template 20 tokens."""
REACHED = 0.4
"""Share of a device's FLOP/s that a learner rank or a prefill reaches; assumed. Llama 3 was trained at 0.38 to 0.43
(arXiv 2407.21783, table 4)."""


@dataclass(frozen=True)
class Device:
    """By NVIDIA's data sheets."""

    memory_gib: float
    """0: main memory."""
    flops: float
    """Dense bfloat16 FLOP/s."""
    memory_bandwidth: float
    """Bytes/s; of the CPU, those of a copy."""


DEVICES = {
    # FLOP/s: our tiny model on 2 cores, 6,670 tokens/s of 6 FLOP for each of 1.1 M parameters,
    # docs/results/benchmark.json. Memory: assumed.
    "cpu": Device(0, 4.4e10 / REACHED, 1e10),
    "rtx-4090": Device(24, 165e12, 1.008e12),
    "a100-40gb": Device(40, 312e12, 1.555e12),
    "l40s": Device(45, 362e12, 0.864e12),
    "a100-80gb": Device(80, 312e12, 2.039e12),
    "h100-80gb": Device(80, 989e12, 3.35e12),
    "h200": Device(140, 989e12, 4.8e12),
}
"""By name in `plan.gpu`."""


@dataclass(frozen=True, kw_only=True)
class TurnTokens:
    """Lengths of a turn, tokens. Rows are as long however actions are decoded: we put a parallel policy's `</act>`."""

    prompt: int
    least: int
    """Prompt, an empty thought and an action chunk: below it nothing can be played."""
    most: int
    """With every limit used up, before `max_turn_tokens` cuts."""
    limit: int
    """The longest row that the learner meets."""
    sampled: int
    """Of that row at most, what the policy says itself: the tokens that have logits in the learner."""
    block: int
    """Tokens of the one forward that a chunk takes in parallel, `<act>` and the slots; 0: it is decoded like text."""
    num_images: int
    """Of cameras and zooms at most."""
    call: int = MAX_CALL_TOKENS
    """A tool call beyond the thought before it, at most."""


def turn_tokens(figures: ModelFigures, world: World, episode: EpisodeConfig) -> TurnTokens:
    """The token budget of one decision; a zoom has the size of a camera's picture."""
    num_actions = world.chunk_length * world.action_size
    prompt = PROMPT_TEXT_TOKENS + world.num_images * figures.tokens_per_image
    thought = episode.max_think_tokens + 2 if episode.mode != "act" else 0
    num_calls = episode.max_tool_calls if episode.mode == "zoom" else 0
    look = thought + MAX_CALL_TOKENS + figures.tokens_per_image + 2
    most = prompt + num_calls * look + thought + num_actions + 2
    limit = min(most, episode.max_turn_tokens)
    return TurnTokens(
        prompt=prompt,
        least=prompt + min(2, thought) + num_actions + 2,
        most=most,
        limit=limit,
        sampled=min(most - num_calls * (figures.tokens_per_image + 2), limit) - prompt,
        block=num_actions + 1 if world.acts_at_once else 0,
        num_images=world.num_images + num_calls,
    )


def flop(figures: ModelFigures, num_tokens: float, num_images: float) -> float:
    """Of a forward over so many tokens and pictures: 2 for each parameter that they meet."""
    pixels = num_images * figures.patches_per_image * figures.num_vision_parameters
    return 2 * (num_tokens * (figures.num_parameters - figures.num_vision_parameters) + pixels)


def num_forwards(cfg: LearnerConfig, num_scorings: int) -> float:
    """What learning from a token takes, in forwards.

    Forward and backward are 3, with LoRA 2, with checkpointing 1 more; each scoring, by the reference or by the policy
    before its first update, is 1.
    """
    return (2 if cfg.lora else 3) + cfg.gradient_checkpointing + num_scorings


def learner_s(figures: ModelFigures, turn: TurnTokens, gpu: str, cfg: LearnerConfig, num_scorings: int) -> float:
    """Seconds of a learner rank for the longest turn."""
    each = num_forwards(cfg, num_scorings) * flop(figures, turn.limit, turn.num_images)
    return each / (REACHED * DEVICES[gpu].flops)
