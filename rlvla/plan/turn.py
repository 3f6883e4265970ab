"""Tokens of a turn at most, and the plan's one estimate: seconds to learn from it.

How long rollouts take depends on the simulator, on how much a policy comes to think and on how its requests meet in an
engine: no plan tells it. What is played at most is counted instead.
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
"""Share of a device's FLOP/s that a learner rank reaches; assumed."""
DEVICES = {
    # Our tiny model on 2 cores: 6,670 tokens/s of 6 FLOP for each of 1.1 M parameters, docs/results/benchmark.json.
    "cpu": (0, 4.4e10 / REACHED),
    "rtx-4090": (24, 165e12),
    "a100-40gb": (40, 312e12),
    "l40s": (45, 362e12),
    "a100-80gb": (80, 312e12),
    "h100-80gb": (80, 989e12),
    "h200": (140, 989e12),
}
"""Name in `plan.gpu` -> GiB and dense bfloat16 FLOP/s, by NVIDIA's data sheets; 0 GiB: main memory."""


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
    block: int
    """Tokens of the one forward that a chunk takes in parallel, `<act>` and the slots; 0: it is decoded like text."""
    num_images: int
    """Of cameras and zooms at most."""


def turn_tokens(figures: ModelFigures, world: World, episode: EpisodeConfig) -> TurnTokens:
    """The token budget of one decision; a zoom has the size of a camera's picture."""
    num_actions = world.chunk_length * world.action_size
    prompt = PROMPT_TEXT_TOKENS + world.num_images * figures.tokens_per_image
    thought = episode.max_think_tokens + 2 if episode.mode != "act" else 0
    num_calls = episode.max_tool_calls if episode.mode == "zoom" else 0
    look = thought + MAX_CALL_TOKENS + figures.tokens_per_image + 2
    most = prompt + num_calls * look + thought + num_actions + 2
    return TurnTokens(
        prompt=prompt,
        least=prompt + min(2, thought) + num_actions + 2,
        most=most,
        limit=min(most, episode.max_turn_tokens),
        block=num_actions + 1 if world.acts_at_once else 0,
        num_images=world.num_images + num_calls,
    )


def learner_s(figures: ModelFigures, turn: TurnTokens, gpu: str, cfg: LearnerConfig, num_scorings: int) -> float:
    """Seconds of a learner rank for a turn, by FLOP a parameter and token: 6, with LoRA 4, with checkpointing 2 more.

    Each scoring, by the reference or by the policy before its first update, is a forward: 2.
    """
    each = (4 if cfg.lora else 6) + 2 * cfg.gradient_checkpointing + 2 * num_scorings
    pixels = turn.num_images * figures.patches_per_image * figures.num_vision_parameters
    text = turn.limit * (figures.num_parameters - figures.num_vision_parameters)
    return each * (text + pixels) / (REACHED * DEVICES[gpu][1])
