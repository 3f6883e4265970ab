"""Lines of the plan's table, (subject, text), and the problems in it."""

from __future__ import annotations

from collections.abc import Mapping

from rlvla.config import EpisodeConfig, EvaluateConfig, GRPOConfig, LearnerConfig, PlanConfig
from rlvla.plan.memory import BYTES, GIB, LearnerMemory, MicroBatch, SamplerMemory, kv_bytes_per_token, zero_stage
from rlvla.plan.model import ModelFigures
from rlvla.plan.speed import DEVICES, ENV_MEMORY_GB, ENV_STEPS_PER_S, EXPECTED_HORIZON, Rollout, TurnTokens
from rlvla.plan.world import World
from rlvla.policies.thinker.prompt import vllm_obstacle

Lines = tuple[tuple[str, str], ...]


def size(num_bytes: float) -> str:
    """`12.3 GiB`, or MiB below a tenth of one."""
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB / 10 else f"{num_bytes / (1 << 20):.1f} MiB"


def number(count: float) -> str:
    """`3.755 B`, `59.9 M`, or all digits."""
    if count >= 1e9:
        return f"{count / 1e9:.3f} B"
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count:,.0f}"


def time(seconds: float) -> str:
    """`12 s`, `3.4 min` or `5.6 h`."""
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def model_lines(figures: ModelFigures, learner: LearnerConfig | None) -> Lines:
    """Where the figures come from, and parameters."""
    text = f"{number(figures.num_parameters)}, {number(figures.num_vision_parameters)} of them for pixels"
    if learner is not None:
        how = "all of them" if learner.lora is None else f"LoRA of rank {learner.lora.rank}"
        text += f"; trained: {number(figures.num_trained_parameters)} ({how})"
    return (("model", figures.source), ("parameters", text))


def turn_lines(turn: TurnTokens, world: World, episode: EpisodeConfig, tokens_per_image: int) -> Lines:
    """The token budget of a decision."""
    height, width = world.view_shape
    budget = (
        f"prompt {turn.prompt} ({world.num_images} image(s) of {tokens_per_image} at {height} x {width}), thought "
        f"{episode.max_think_tokens}, zooms {episode.max_tool_calls} x {tokens_per_image}, action "
        f"{world.chunk_length} x {world.action_size} = {world.chunk_length * world.action_size}"
    )
    if turn.block:
        budget += f", in one forward of {turn.block}"
    sampled = f"{turn.expected_sampled:.0f} of them sampled in {turn.expected_forwards:.0f} forwards"
    cut = f" (all limits used up: {turn.most}, cut by episode.max_turn_tokens)" if turn.most > turn.limit else ""
    return (
        ("tokens of a turn", budget),
        ("", f"{turn.expected:.0f} expected, {sampled}; {turn.limit} at most{cut}"),
    )


def rollout_lines(rollout: Rollout, turn: TurnTokens) -> Lines:
    """What is played."""
    most = rollout.num_trajectories * rollout.max_turns
    return (
        (
            "",
            f"{rollout.num_trajectories} trajectories of up to {rollout.max_turns} turns, "
            f"{rollout.num_env_steps:,.0f} env steps expected ({EXPECTED_HORIZON:.0%} of the horizon)",
        ),
        ("tokens", f"{rollout.num_turns * turn.expected:,.0f} expected, {most * turn.limit:,} at most"),
    )


def learner_lines(
    memory: LearnerMemory, learner: LearnerConfig, world: int, batch: MicroBatch, plan: PlanConfig
) -> Lines:
    """Memory of a rank by purpose; the largest transient part counts."""
    resident = ", ".join(f"{name} {size(value)}" for name, value in memory.resident.items())
    transient = ", ".join(f"{name} {size(value)}" for name, value in memory.transient.items())
    checkpointing = "with" if learner.gradient_checkpointing else "without"
    return (
        (
            "learner rank",
            f"{size(memory.peak)} on {plan.gpu}: ZeRO {zero_stage(learner)}, {learner.dtype}, {world} rank(s)",
        ),
        ("  all the time", resident),
        ("  in turn", transient),
        (
            "",
            f"forward and backward of {batch.num_rows} row(s) of {batch.num_tokens} tokens, {checkpointing} gradient "
            "checkpointing",
        ),
    )


def sampler_lines(figures: ModelFigures, memory: SamplerMemory, cfg: GRPOConfig | EvaluateConfig) -> Lines:
    """Memory of a sampler."""
    per_token = kv_bytes_per_token(figures, BYTES[cfg.sampler.dtype])
    turns = memory.num_kv_tokens // cfg.episode.max_turn_tokens
    return (
        (
            "sampler",
            f"{size(memory.peak)} on {cfg.plan.gpu}: {cfg.cluster.num_samplers} of {cfg.sampler.backend}, "
            f"{cfg.sampler.dtype}",
        ),
        (
            "",
            f"weights {size(memory.weights)}, KV cache {size(memory.kv_cache)} = {memory.num_kv_tokens:,} tokens of "
            f"{per_token:,} bytes, {turns:,} whole turns; {size(memory.overhead)} for the rest",
        ),
    )


def env_lines(cfg: GRPOConfig | EvaluateConfig) -> Lines:
    """Concurrent episodes and the main memory that they take."""
    num_envs = cfg.cluster.num_rollout_actors * cfg.cluster.envs_per_actor
    text = f"{num_envs} in {cfg.cluster.num_rollout_actors} rollout actors"
    if cfg.env.id in ENV_MEMORY_GB:
        text += f", {num_envs * ENV_MEMORY_GB[cfg.env.id]:.0f} GiB of main memory"
    return (("envs", text),)


def time_lines(seconds: Mapping[str, float], num_steps: int) -> Lines:
    """Estimated time by phase, and the phase that limits it. Simulators and samplers work side by side."""
    phases = {name: time(value) for name, value in seconds.items()}
    rollout = {name: value for name, value in seconds.items() if name != "learner"}
    total = max(rollout.values()) + seconds.get("learner", 0.0)
    slowest = max(rollout, key=lambda name: rollout[name])
    limit = f"rollout, by the {slowest}" if rollout[slowest] >= seconds.get("learner", 0.0) else "the learner"
    if "simulator" not in seconds:
        limit += " (simulator unknown: set plan.env_steps_per_s)"
    whole = f"; {time(total)} a step, {time(total * num_steps)} in all" if num_steps > 1 else f"; {time(total)} in all"
    return (
        ("time (estimate)", ", ".join(f"{name} {value}" for name, value in phases.items()) + whole),
        ("limited by", limit),
    )


def gpu_bytes(plan: PlanConfig) -> float:
    """Memory of one GPU; 0: a CPU."""
    return (plan.gpu_memory_gb or DEVICES[plan.gpu].memory_gb) * GIB


def env_steps_per_s(cfg: GRPOConfig | EvaluateConfig) -> float:
    """Of one rollout actor; 0: unknown."""
    return cfg.plan.env_steps_per_s or ENV_STEPS_PER_S.get(cfg.env.id, 0.0)


def misfits(plan: PlanConfig, needs: Mapping[str, float]) -> tuple[str, ...]:
    """What needs more than the GPU has."""
    there = gpu_bytes(plan)
    return tuple(
        f"{name} needs {size(need)}, {plan.gpu} has {size(there)}: raise learner.zero_stage or the number of ranks, "
        "turn learner.gradient_checkpointing on, lower learner.micro_batch_rows or the KV cache, or use learner.lora"
        for name, need in needs.items()
        if there and need > there
    )


def backend_problems(cfg: GRPOConfig | EvaluateConfig) -> tuple[str, ...]:
    """Whether the sampler can serve the checkpoint, if it is here."""
    reason = vllm_obstacle(cfg.model) if cfg.sampler.backend == "vllm" else ""
    return (reason,) if reason else ()


def turn_problems(turn: TurnTokens, episode: EpisodeConfig, sampler: SamplerMemory) -> tuple[str, ...]:
    """Limits that no turn can keep."""
    problems = []
    if turn.least > episode.max_turn_tokens:
        problems.append(
            f"episode.max_turn_tokens is {episode.max_turn_tokens}: prompt and action chunk alone take {turn.least}"
        )
    if sampler.num_kv_tokens < episode.max_turn_tokens:
        problems.append(
            f"the KV cache holds {sampler.num_kv_tokens} tokens, one turn needs {episode.max_turn_tokens}: raise "
            "sampler.kv_cache_mb, or sampler.gpu_memory_utilization"
        )
    return tuple(problems)
