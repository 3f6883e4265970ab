"""The plan that `--dry-run` prints: parameters, memory, tokens and time of a config, before anything is downloaded.

Everything but weights is built: config, reward (by the recipe), tools, env, model on torch's meta device with its
adapter. Sizes are counted or computed; seconds are estimates from the constants of `rlvla.plan.speed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rlvla.config import EpisodeConfig, EvaluateConfig, GRPOConfig, SFTConfig
from rlvla.plan import report as plan_report
from rlvla.plan import speed as plan_speed
from rlvla.plan import world as plan_world
from rlvla.plan.architecture import figures_of
from rlvla.plan.memory import (
    BYTES,
    LOGIT_COPIES,
    LearnerMemory,
    MicroBatch,
    SamplerMemory,
    learner_memory,
    sampler_memory,
)
from rlvla.plan.model import ModelFigures
from rlvla.plan.speed import DEVICES, Rollout, TurnTokens, turn_tokens
from rlvla.plan.world import World
from rlvla.policies.thinker.actions import NUM_BINS
from rlvla.policies.thinker.prompt import read_decoding
from rlvla.policies.thinker.tools import load_tools

_ANNOTATED = EpisodeConfig(max_tool_calls=1, max_turn_tokens=1 << 20)
"""Rows of the cold start, assumed: one zoom at most, thoughts as long as a policy may write by default."""
_NUM_TASKS = 10
"""Of a suite that is not here: LIBERO's have 10, but for libero_90."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is planned; `str()` is the table."""

    title: str
    figures: ModelFigures
    turn: TurnTokens
    lines: tuple[tuple[str, str], ...]
    """(subject, text)."""
    problems: tuple[str, ...]
    """What will not work, each with what to do."""
    learner: LearnerMemory | None = None
    sampler: SamplerMemory | None = None
    seconds: Mapping[str, float]
    """Estimated, by phase."""

    def __str__(self) -> str:
        """Two columns, then the problems."""
        lines = [self.title, *(f"  {subject:<20}{text}" for subject, text in self.lines)]
        return "\n".join([*lines, *(f"  PROBLEM             {problem}" for problem in self.problems)])


def of_sft(cfg: SFTConfig) -> Plan:
    """Plan a cold start."""
    if cfg.num_trials:
        plan_world.of_env(cfg)  # it is to be evaluated there
    world = plan_world.of_dataset(cfg.dataset, cfg.plan, cfg.action_decoding or read_decoding(cfg.model))
    figures = figures_of(cfg.model, cfg.plan, lora=cfg.learner.lora, tiny=cfg.tiny, num_bins=cfg.num_bins or NUM_BINS)
    turn = _turn(figures, world, _ANNOTATED)
    ranks = cfg.plan.num_processes
    num_rows = min(cfg.learner.micro_batch_rows, -(-cfg.batch_size // ranks))
    batch = _micro_batch(figures, world, turn, num_rows, temperature=1.0)
    memory = learner_memory(figures, cfg.learner, ranks, batch, has_reference=False, syncs=False)
    num_tokens = cfg.batch_size * turn.expected
    step_s = plan_speed.learner_s(
        figures,
        num_tokens,
        cfg.batch_size * turn.expected_images * figures.patches_of_image(*world.view_shape),
        DEVICES[cfg.plan.gpu],
        world=ranks,
        checkpointing=cfg.learner.gradient_checkpointing,
    )
    amount = f"{cfg.batch_size} turns: {num_tokens:,.0f} expected, {cfg.batch_size * turn.limit:,} at most"
    epochs = f", {cfg.num_steps * cfg.batch_size / world.num_frames:.1f} epochs" if world.num_frames else ""
    whole = plan_report.time(step_s * cfg.num_steps)
    uneven = f"batch_size {cfg.batch_size} does not divide over plan.num_processes {ranks}"
    return Plan(
        title="plan of recipes/sft.py",
        figures=figures,
        turn=turn,
        lines=(
            *plan_report.model_lines(figures, cfg.learner),
            ("data", world.note),
            *plan_report.turn_lines(turn, world, _ANNOTATED, figures.tokens_of_image(*world.view_shape)),
            ("tokens of a step", amount),
            *plan_report.learner_lines(memory, cfg.learner, ranks, batch, cfg.plan),
            ("time (estimate)", f"{plan_report.time(step_s)} a step, {whole} in all{epochs}"),
            ("limited by", "the learner"),
        ),
        problems=(
            *((uneven,) if cfg.batch_size % ranks else ()),
            *plan_report.misfits(cfg.plan, {"a learner rank": memory.peak}),
        ),
        learner=memory,
        seconds={"learner": step_s},
    )


def of_grpo(cfg: GRPOConfig, reward_weights: Mapping[str, float]) -> Plan:
    """Plan a GRPO run; the recipe has built the reward, whose weights by name are shown."""
    load_tools(cfg.episode.tools)
    ranks = cfg.cluster.num_learners
    world = plan_world.with_checkpoint(plan_world.of_env(cfg), cfg.model)
    figures = figures_of(str(cfg.model), cfg.plan, lora=cfg.learner.lora)
    turn = _turn(figures, world, cfg.episode)
    has_reference = cfg.loss.kl_coef != 0
    batch = _micro_batch(figures, world, turn, cfg.learner.micro_batch_rows, cfg.episode.temperature)
    memory = learner_memory(figures, cfg.learner, ranks, batch, has_reference=has_reference, syncs=True)
    sampler = sampler_memory(figures, cfg.sampler, plan_report.gpu_bytes(cfg.plan), cfg.episode.max_turn_tokens)
    rollout = _rollout(world, cfg.groups_per_step * cfg.group_size)
    num_updates = cfg.minibatches_per_step * cfg.num_epochs
    seconds = _rollout_seconds(cfg, figures, world, turn, rollout, sampler)
    seconds["learner"] = plan_speed.learner_s(
        figures,
        rollout.num_turns * turn.expected,
        rollout.num_turns * turn.expected_images * figures.patches_of_image(*world.view_shape),
        DEVICES[cfg.plan.gpu],
        world=ranks,
        num_epochs=cfg.num_epochs,
        num_scorings=cfg.num_epochs * (has_reference + (num_updates > 1)),
        checkpointing=cfg.learner.gradient_checkpointing,
    )
    shared = 0 < cfg.cluster.sampler_gpus + cfg.cluster.learner_gpus <= 1
    needs = {"a learner rank": memory.peak, "a sampler": sampler.peak}
    if shared or cfg.plan.gpu == "cpu":
        needs = {"a learner rank with a sampler": memory.peak + sampler.peak}
    amount = f"{cfg.groups_per_step} groups of {cfg.group_size} a wave, {cfg.max_waves} wave(s) at most"
    return Plan(
        title="plan of recipes/grpo.py",
        figures=figures,
        turn=turn,
        lines=(
            *plan_report.model_lines(figures, cfg.learner),
            ("env", world.note),
            ("reward", " + ".join(f"{weight:g} {name}" for name, weight in reward_weights.items())),
            *plan_report.turn_lines(turn, world, cfg.episode, figures.tokens_of_image(*world.view_shape)),
            ("a step", f"{amount}, {num_updates} update(s); a wave is"),
            *plan_report.rollout_lines(rollout, turn),
            *plan_report.learner_lines(memory, cfg.learner, ranks, batch, cfg.plan),
            *plan_report.sampler_lines(figures, sampler, cfg),
            (
                "main memory" if cfg.plan.gpu == "cpu" else "on one GPU",
                "; ".join(f"{name}: {plan_report.size(need)}" for name, need in needs.items()),
            ),
            *plan_report.env_lines(cfg),
            *plan_report.time_lines(seconds, cfg.num_steps),
        ),
        problems=(
            *plan_report.misfits(cfg.plan, needs),
            *plan_report.turn_problems(turn, cfg.episode, sampler),
            *plan_report.backend_problems(cfg),
        ),
        learner=memory,
        sampler=sampler,
        seconds=seconds,
    )


def of_evaluate(cfg: EvaluateConfig) -> Plan:
    """Plan an evaluation."""
    load_tools(cfg.episode.tools)
    world = plan_world.with_checkpoint(plan_world.of_env(cfg), cfg.model)
    figures = figures_of(str(cfg.model), cfg.plan)
    turn = _turn(figures, world, cfg.episode)
    sampler = sampler_memory(figures, cfg.sampler, plan_report.gpu_bytes(cfg.plan), cfg.episode.max_turn_tokens)
    num_tasks = world.num_tasks or len(cfg.env.tasks) or _NUM_TASKS
    rollout = _rollout(world, num_tasks * cfg.num_trials)
    seconds = _rollout_seconds(cfg, figures, world, turn, rollout, sampler)
    return Plan(
        title="plan of recipes/evaluate.py",
        figures=figures,
        turn=turn,
        lines=(
            *plan_report.model_lines(figures, None),
            ("env", world.note),
            *plan_report.turn_lines(turn, world, cfg.episode, figures.tokens_of_image(*world.view_shape)),
            ("trials", f"{num_tasks} task(s) x {cfg.num_trials} {cfg.split} states"),
            *plan_report.rollout_lines(rollout, turn),
            *plan_report.sampler_lines(figures, sampler, cfg),
            *plan_report.env_lines(cfg),
            *plan_report.time_lines(seconds, 1),
        ),
        problems=(
            *plan_report.misfits(cfg.plan, {"a sampler": sampler.peak}),
            *plan_report.turn_problems(turn, cfg.episode, sampler),
            *plan_report.backend_problems(cfg),
        ),
        sampler=sampler,
        seconds=seconds,
    )


def _turn(figures: ModelFigures, world: World, episode: EpisodeConfig) -> TurnTokens:
    return turn_tokens(
        episode,
        tokens_per_image=figures.tokens_of_image(*world.view_shape),
        num_images=world.num_images,
        num_action_tokens=world.chunk_length * world.action_size,
        is_parallel=world.action_decoding != "autoregressive",
    )


def _micro_batch(
    figures: ModelFigures, world: World, turn: TurnTokens, num_rows: int, temperature: float
) -> MicroBatch:
    """Rows as long as they get; logits are needed from the last token of the prompt on."""
    return MicroBatch(
        num_rows=num_rows,
        num_tokens=turn.limit,
        num_scored_tokens=turn.limit - turn.prompt + 1,
        num_patches=turn.num_images * figures.patches_of_image(*world.view_shape),
        num_logit_copies=LOGIT_COPIES + (turn.block > 0 and temperature != 1),
    )


def _rollout(world: World, num_trajectories: int) -> Rollout:
    return Rollout(
        num_trajectories=num_trajectories,
        max_turns=plan_speed.num_turns(world.max_env_steps, world.chunk_length),
        chunk_length=world.chunk_length,
    )


def _rollout_seconds(
    cfg: GRPOConfig | EvaluateConfig,
    figures: ModelFigures,
    world: World,
    turn: TurnTokens,
    rollout: Rollout,
    memory: SamplerMemory,
) -> dict[str, float]:
    """Of simulators, where their speed is known, and of samplers."""
    cluster, is_vllm, seconds = cfg.cluster, cfg.sampler.backend == "vllm", {}
    if rate := plan_report.env_steps_per_s(cfg):
        seconds["simulator"] = plan_speed.simulator_s(rollout, rate, cluster.num_rollout_actors)
    num_envs = cluster.num_rollout_actors * cluster.envs_per_actor
    concurrency = 1
    if is_vllm:
        concurrent = min(num_envs, rollout.num_trajectories) // cluster.num_samplers
        concurrency = min(concurrent, cfg.sampler.max_num_seqs, int(memory.num_kv_tokens // turn.expected))
    seconds["sampler"] = plan_speed.sampler_s(
        figures,
        turn,
        rollout,
        DEVICES[cfg.plan.gpu],
        num_samplers=cluster.num_samplers,
        concurrency=concurrency,
        num_reads=1 if is_vllm else turn.expected_requests,
        patches_per_image=figures.patches_of_image(*world.view_shape),
        bytes_per_value=BYTES[cfg.sampler.dtype],
    )
    return seconds
