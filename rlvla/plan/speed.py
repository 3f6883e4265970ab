"""Tokens of a turn and seconds of a step, estimated. Every assumption is a constant here, with where it comes from."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rlvla.config import EpisodeConfig
from rlvla.plan.model import ModelFigures
from rlvla.rollout.episode import MAX_CALL_TOKENS

PROMPT_TEXT_TOKENS = 48
"""Instruction and chat template: LIBERO's longest instruction has 83 characters, Qwen's template 20 tokens."""
EXPECTED_CALLS = 0.3
"""Tool calls a turn, assumed: LIBERO's key frames, where the gripper moves, are 2 to 4 of about 14 decisions."""
EXPECTED_THOUGHT = 0.5
"""Length of a thought, share of `max_think_tokens`; assumed."""
EXPECTED_CALL_TOKENS = 32
"""Of a zoom call; assumed: JSON with four coordinates."""
EXPECTED_HORIZON = 0.6
"""Length of an episode, share of the horizon; assumed: our scripted expert needs 0.4 in LIBERO-Object, failures 1."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """What one GPU has (NVIDIA's data sheets), or what the CPU of our benchmark reached."""

    memory_gb: float
    """GiB."""
    learner_flops: float
    """A second, reached in training."""
    prefill_flops: float
    """A second, reached by vLLM on prompts."""
    bandwidth: float
    """Bytes a second, reached by vLLM in decoding."""
    decode_flops: float
    """A second, reached by vLLM in decoding."""


def _gpu(memory_gb: float, peak_flops: float, peak_bandwidth: float) -> Device:
    """Dense bfloat16 FLOP/s and bytes/s by the data sheet; reached shares: assumed."""
    return Device(
        memory_gb=memory_gb,
        learner_flops=0.35 * peak_flops,
        prefill_flops=0.4 * peak_flops,
        bandwidth=0.6 * peak_bandwidth,
        decode_flops=0.4 * peak_flops,
    )


DEVICES = {
    # Tiny model, 2 cores: 6,670 learner tokens/s at 1.1 M parameters, docs/results/benchmark.json (6 FLOP each); vLLM's
    # 4,300 tokens/s at 32 sequences (2 FLOP each), measured when the stack was chosen.
    "cpu": Device(memory_gb=0, learner_flops=5e10, prefill_flops=5e10, bandwidth=1e10, decode_flops=1e10),
    "rtx-4090": _gpu(24, 165e12, 1.008e12),
    "a100-40gb": _gpu(40, 312e12, 1.555e12),
    "l40s": _gpu(45, 362e12, 0.864e12),
    "a100-80gb": _gpu(80, 312e12, 2.039e12),
    "h100-80gb": _gpu(80, 989e12, 3.35e12),
    "h200": _gpu(140, 989e12, 4.8e12),
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
"""Env id -> env steps a second of one core, which a rollout actor is counted as."""
ENV_MEMORY_GB = {"rlvla/Libero-v0": 2.0}
"""Env id -> GiB of main memory of one env with its renderer, less what it has before its first scene, measured (LIBERO:
median over the 130 tasks of scripts/check_libero.py, which change; 1.3 to 1.8 GiB while a process stays in a task)."""


@dataclass(frozen=True, kw_only=True)
class TurnTokens:
    """Lengths of a turn, tokens."""

    prompt: int
    least: int
    """Prompt, an empty thought and an action chunk: below it nothing can be played."""
    most: int
    """With every limit used up, before `max_turn_tokens` cuts."""
    limit: int
    """The longest row that the learner meets."""
    expected: float
    expected_sampled: float
    """Those of `expected` that the policy writes."""
    expected_decoded: float
    """Those of `expected_sampled` that take a forward each: all, or all but actions that are decoded in parallel."""
    expected_requests: float
    """Of the sampler."""
    block: int
    """Tokens of the one forward that a chunk takes in parallel, `<act>` and the slots; 0: it is decoded like text."""
    expected_images: float
    """Pictures in a turn."""
    num_images: int
    """Of cameras and zooms at most."""

    @property
    def expected_forwards(self) -> float:
        """Of the sampler, in a turn: a token that is decoded takes one, and so does a block of actions."""
        return self.expected_decoded + (self.block > 0)


def turn_tokens(
    episode: EpisodeConfig, *, tokens_per_image: int, num_images: int, num_action_tokens: int, is_parallel: bool
) -> TurnTokens:
    """The token budget of one decision.

    Rows are as long either way: a parallel policy's `</act>` is put there by us.

    Args:
        episode: limits.
        tokens_per_image: of a camera's picture, and of a zoom, which has the same size.
        num_images: cameras.
        num_action_tokens: K * A.
        is_parallel: the policy draws them from one forward.
    """
    prompt = PROMPT_TEXT_TOKENS + num_images * tokens_per_image
    act = num_action_tokens + 2
    thinks = episode.mode != "act"
    longest_thought = episode.max_think_tokens + 2 if thinks else 0
    thought = longest_thought * EXPECTED_THOUGHT
    num_calls = episode.max_tool_calls if episode.mode == "zoom" else 0
    calls = min(EXPECTED_CALLS, num_calls) / episode.think_every
    result = tokens_per_image + 2
    most = prompt + num_calls * (longest_thought + MAX_CALL_TOKENS + result) + longest_thought + act
    sampled = calls * (thought + EXPECTED_CALL_TOKENS) + thought / episode.think_every + act - is_parallel
    reused = thought - thought / episode.think_every
    limit = min(most, episode.max_turn_tokens)
    expected = min(limit, prompt + reused + sampled + is_parallel + calls * result)
    expected_sampled = min(sampled, expected)
    return TurnTokens(
        prompt=prompt,
        least=prompt + (2 if thinks else 0) + act,
        most=most,
        limit=limit,
        expected=expected,
        expected_sampled=expected_sampled,
        expected_decoded=expected_sampled - is_parallel * num_action_tokens,
        expected_requests=1 + calls + is_parallel,
        block=is_parallel * (num_action_tokens + 1),
        expected_images=num_images + calls,
        num_images=num_images + num_calls,
    )


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """What is played in one step (or one evaluation)."""

    num_trajectories: int
    max_turns: int
    """Of a trajectory: horizon / K, rounded up."""
    chunk_length: int

    @property
    def num_turns(self) -> float:
        """Expected, over all trajectories."""
        return self.num_trajectories * self.max_turns * EXPECTED_HORIZON

    @property
    def num_env_steps(self) -> float:
        """Expected, over all trajectories."""
        return self.num_turns * self.chunk_length


def simulator_s(rollout: Rollout, env_steps_per_s: float, num_actors: int) -> float:
    """Seconds that the simulators take, when they never wait."""
    return rollout.num_env_steps / (env_steps_per_s * num_actors)


def sampler_s(
    figures: ModelFigures,
    turn: TurnTokens,
    rollout: Rollout,
    device: Device,
    *,
    num_samplers: int,
    concurrency: int,
    patches_per_image: int,
    bytes_per_value: int,
    num_reads: float = 1,
) -> float:
    """Seconds that the samplers take, when they never wait.

    Prefill: 2 FLOP a parameter and token, each token once with prefix caching; blocks of actions are computed likewise.
    Decoding: each step reads all weights for the sequences that run at once, or is bound by 2 FLOP a parameter and
    token.

    Args:
        figures: of the model.
        turn: token budget.
        rollout: what is played.
        device: of one sampler.
        num_samplers: engines.
        concurrency: sequences that run at once in one engine.
        patches_per_image: that the towers see.
        bytes_per_value: of a weight.
        num_reads: how often each token of a context is computed; 1 with prefix caching.
    """
    turns = rollout.num_turns / num_samplers
    context = num_reads * (turn.expected - turn.expected_sampled) + turn.block
    pixels = num_reads * turn.expected_images * patches_per_image
    prefill = 2 * turns * (context * figures.num_text_parameters + pixels * figures.num_vision_parameters)
    decoded = turns * turn.expected_decoded
    reading = decoded / max(1, concurrency) * figures.num_text_parameters * bytes_per_value / device.bandwidth
    computing = 2 * decoded * figures.num_text_parameters / device.decode_flops
    return prefill / device.prefill_flops + max(reading, computing)


def learner_s(
    figures: ModelFigures,
    num_tokens: float,
    num_patches: float,
    device: Device,
    *,
    world: int,
    num_epochs: int = 1,
    num_scorings: int = 0,
    checkpointing: bool = False,
) -> float:
    """Seconds of the learner: 6 FLOP a parameter and token (2 forward, 4 backward), attention left out.

    LoRA computes no gradient of the frozen weights (4 instead of 6), and none at all of the towers (2); checkpointing
    runs forward again (2 more); each scoring, by the reference or by the policy before its first update, is a forward.

    Args:
        figures: of the model.
        num_tokens: of all rows, context included.
        num_patches: of all their images.
        device: of one rank.
        world: ranks.
        num_epochs: passes over the rows.
        num_scorings: forward passes over the rows without gradient.
        checkpointing: see LearnerConfig.
    """
    has_adapter = figures.num_adapter_parameters > 0
    again = 2 if checkpointing else 0
    text = (4 if has_adapter else 6) + again
    vision = 2 if has_adapter else 6 + again
    flops = num_epochs * (
        text * num_tokens * figures.num_text_parameters + vision * num_patches * figures.num_vision_parameters
    )
    once = num_tokens * figures.num_text_parameters + num_patches * figures.num_vision_parameters
    return (flops + 2 * num_scorings * once) / (device.learner_flops * world)


def num_turns(max_env_steps: int, chunk_length: int) -> int:
    """Decisions in an episode that uses its whole horizon."""
    return math.ceil(max_env_steps / chunk_length)
