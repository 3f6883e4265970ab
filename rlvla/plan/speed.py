"""Tokens of a turn, and the one estimate: seconds of a step.

It assumes two things. Every limit is used up: each episode its horizon, each turn its thoughts and zooms. And each GPU
reaches `REACHED` of its data sheet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from rlvla.config import EpisodeConfig, LearnerConfig
from rlvla.plan.model import ModelFigures
from rlvla.plan.world import World
from rlvla.rollout.episode import MAX_CALL_TOKENS

PROMPT_TEXT_TOKENS = 48
"""Instruction and chat template: LIBERO's longest instruction has 83 characters, Qwen's template 20 tokens."""
REACHED = 0.4
"""Share of FLOP/s and bytes/s that learner and samplers reach; assumed."""


class Device(NamedTuple):
    """A GPU by NVIDIA's data sheets: GiB, dense bfloat16 FLOP/s and bytes/s."""

    memory_gb: float
    flops: float
    bandwidth: float


DEVICES = {
    # As measured, hence divided by REACHED: a tiny model of 1.1 M float32 parameters on 2 cores learns 6,670 tokens/s
    # (docs/results/benchmark.json, 6 FLOP each); vLLM drew 4,300 tokens/s for 32 sequences.
    "cpu": Device(0, 4.4e10 / REACHED, 5.9e8 / REACHED),
    "rtx-4090": Device(24, 165e12, 1.008e12),
    "a100-40gb": Device(40, 312e12, 1.555e12),
    "l40s": Device(45, 362e12, 0.864e12),
    "a100-80gb": Device(80, 312e12, 2.039e12),
    "h100-80gb": Device(80, 989e12, 3.35e12),
    "h200": Device(140, 989e12, 4.8e12),
}
"""By the name in `plan.gpu`."""
ENV_STEPS_PER_S = {
    # docs/results/benchmark.json, `simulator`: "press", random chunks on the threads of one actor.
    "rlvla/Tabletop-v0": 761.9,
    # docs/results/libero_benchmark.json, `ours_one_camera`: LIBERO-Object, chunks of 8 steps, each with one 256-pixel
    # picture with reflections (the env's default), one process, Mesa on a core of an AMD EPYC, beside other work,
    # with stand-ins for large meshes.
    "rlvla/Libero-v0": 43.3,
}
"""Env id -> env steps a second of one core, which a rollout actor is counted as; measured."""


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
    forwards: float
    """Of the sampler, mean over an episode: a token takes one, and so does a block of actions."""
    block: int
    """Tokens of the one forward that a chunk takes in parallel, `<act>` and the slots; 0: it is decoded like text."""
    num_images: int
    """Of cameras and zooms at most."""


def turn_tokens(figures: ModelFigures, world: World, episode: EpisodeConfig) -> TurnTokens:
    """The token budget of one decision; a zoom has the size of a camera's picture."""
    num_actions = world.chunk_length * world.action_size
    is_parallel = world.action_decoding != "autoregressive"
    prompt = PROMPT_TEXT_TOKENS + world.num_images * figures.tokens_per_image
    thought = episode.max_think_tokens + 2 if episode.mode != "act" else 0
    num_calls = episode.max_tool_calls if episode.mode == "zoom" else 0
    text = num_calls * (thought + MAX_CALL_TOKENS) + thought
    most = prompt + text + num_calls * (figures.tokens_per_image + 2) + num_actions + 2
    limit = min(most, episode.max_turn_tokens)
    text = max(0.0, min(text / episode.think_every, limit - prompt - num_actions - 2))
    return TurnTokens(
        prompt=prompt,
        least=prompt + min(2, thought) + num_actions + 2,
        most=most,
        limit=limit,
        forwards=text + (2 if is_parallel else num_actions + 2),
        block=is_parallel * (num_actions + 1),
        num_images=world.num_images + num_calls,
    )


def sampler_s(figures: ModelFigures, turn: TurnTokens, device: Device, concurrency: float, value_bytes: int) -> float:
    """Seconds of a turn in a sampler: each forward reads all weights, for the sequences that run at once."""
    num_parameters = figures.num_parameters - figures.num_vision_parameters
    return turn.forwards / max(1.0, concurrency) * num_parameters * value_bytes / (REACHED * device.bandwidth)


def learner_s(figures: ModelFigures, turn: TurnTokens, device: Device, cfg: LearnerConfig, num_scorings: int) -> float:
    """Seconds of a turn in a learner rank, by FLOP a parameter and token: 6, with LoRA 4, checkpointing 2 more.

    Each scoring, by the reference or by the policy before its first update, is a forward: 2.
    """
    each = (4 if cfg.lora else 6) + 2 * cfg.gradient_checkpointing + 2 * num_scorings
    pixels = turn.num_images * figures.patches_per_image * figures.num_vision_parameters
    text = turn.limit * (figures.num_parameters - figures.num_vision_parameters)
    return each * (text + pixels) / (REACHED * device.flops)
