"""The timed part of scripts/benchmark_modes.py: decisions one at a time, and rollouts, of any sampler."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rlvla.config import EpisodeConfig, EvaluateConfig
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.policies.thinker.tools import load_tools
from rlvla.protocols import Env, SampleOutput, Sampler, SampleRequest
from rlvla.rollout.env_server import make_env
from rlvla.rollout.episode import Decider, EnvThread, run_episode
from rlvla.rollout.tasks import TaskStream
from rlvla.types import SegmentKind, TaskSpec, Trajectory, Turn


@dataclass(kw_only=True)
class Endless:
    """An env whose episodes follow each other unseen, until `num_chunks` chunks have been executed."""

    env: Env
    tasks: TaskStream
    num_chunks: int
    num_left: int = 0

    def reset(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start at the stream's next initial state, whatever was asked for."""
        self.num_left = self.num_chunks
        return self._next()

    def step_chunk(self, actions: np.ndarray) -> tuple[dict[str, Any], np.ndarray, bool, bool, dict[str, Any]]:
        """See `protocols.Env`; never a success, truncated behind the last chunk."""
        self.num_left -= 1
        raw, rewards, terminated, truncated, _ = self.env.step_chunk(actions)
        if (terminated or truncated) and self.num_left:
            raw, _ = self._next()
        return raw, rewards, False, self.num_left == 0, {}

    def _next(self) -> tuple[dict[str, Any], dict[str, Any]]:
        (task,) = self.tasks.take(1)
        return self.env.reset(seed=task.seed, options={"task_id": task.task_id, "init_state_id": task.init_state_id})

    def __getattr__(self, name: str) -> Any:
        """`zoom` and `close` are the env's own."""
        return getattr(self.env, name)


@dataclass(kw_only=True)
class ChunkSampler:
    """Behind an injected `<act>`, a sampler that draws exactly as many tokens as a chunk has, and takes them for one.

    A policy that has always thought may not know an `<act>` that it did not write, and ramble to a limit; how long that
    takes says nothing about mode act. Drawn are the policy's own tokens, one forward each, whatever they are.
    """

    sampler: Sampler
    processor: PolicyProcessor
    num_replaced: int = 0
    """Chunks so far that were none before tokens were replaced."""

    async def sample(self, request: SampleRequest) -> SampleOutput:
        """See `protocols.Sampler`."""
        vocabulary = self.processor.vocabulary
        if request.num_actions or request.prompt_ids[-1] != vocabulary.mark_ids["<act>"]:
            return await self.sampler.sample(request)
        num_tokens = min(request.max_tokens, self.processor.num_action_tokens + 1)
        output = await self.sampler.sample(replace(request, max_tokens=num_tokens, stop_ids=()))
        is_action = np.isin(output.token_ids, vocabulary.action_ids)
        ids = np.where(is_action, output.token_ids, vocabulary.action_ids[0]).astype(np.int32)
        ids[-1] = vocabulary.mark_ids["</act>"]
        self.num_replaced += not np.array_equal(ids, output.token_ids)
        return replace(output, token_ids=ids)


async def measure_decisions(
    sampler: Sampler,
    processor: PolicyProcessor,
    cfg: EvaluateConfig,
    modes: Mapping[str, EpisodeConfig],
    *,
    rounds: int,
    num_decisions: int,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Latency in each mode: `rounds` times `num_decisions`, the modes in turn, after a round that warms up.

    Args:
        sampler: of the policy.
        processor: of the policy.
        cfg: which env.
        modes: by name.
        rounds: that count.
        num_decisions: of a mode in a round, unless one is malformed, which ends it.
        seed: of the initial states.

    Raises:
        SystemExit: the simulator crashed, or no decision of a mode ended in an action.
    """
    tasks = TaskStream(config=cfg.env, seed=seed)
    env = EnvThread(lambda: Endless(env=make_env(cfg.env), tasks=tasks, num_chunks=num_decisions))  # type: ignore[arg-type, return-value]
    task = TaskSpec(suite=tasks.suite, task_id=0, init_state_id=0, seed=seed)
    samplers = {name: ChunkSampler(sampler=sampler, processor=processor) for name in modes}
    turns: dict[str, list[Turn]] = {name: [] for name in modes}
    for number in range(rounds + 1):
        for name, config in modes.items():
            if number == 1:
                samplers[name].num_replaced = 0
            tools = load_tools(config.tools)
            decider = Decider(sampler=samplers[name], processor=processor, tools=tools, config=config)
            trajectory = await run_episode(decider, env, task, member=0)
            if trajectory.error:
                raise SystemExit(f"{cfg.env.id} crashed: {trajectory.error}")
            turns[name] += trajectory.turns if number else ()
    env.close()
    return {
        name: summarise(name, played) | {"num_replaced": samplers[name].num_replaced} for name, played in turns.items()
    }


def summarise(name: str, turns: Sequence[Turn]) -> dict[str, float]:
    """Latency, and what takes it, of the turns that ended in an action; raises SystemExit where none did."""
    acted = [turn for turn in turns if len(turn.actions)]
    if not acted:
        raise SystemExit(f"no decision in mode {name!r} ended in an action: train the policy for longer")
    ms = [1000 * turn.latency_s for turn in acted]
    return {
        "num_decisions": len(acted),
        "num_malformed": len(turns) - len(acted),
        "p50_ms": float(np.median(ms)),
        "p95_ms": float(np.quantile(ms, 0.95)),
        "mean_ms": float(np.mean(ms)),
        "sampled_tokens": float(np.mean([turn.num_sampled_tokens for turn in acted])),
        "zooms": float(np.mean([len(turn.of_kind(SegmentKind.TOOL_CALL)) for turn in acted])),
    }


async def measure_rollout(
    sampler: Sampler, processor: PolicyProcessor, cfg: EvaluateConfig, tasks: Sequence[TaskSpec]
) -> tuple[float, list[Trajectory]]:
    """Seconds that the episodes take, and their trajectories in the tasks' order; envs are made before."""
    decider = Decider(sampler=sampler, processor=processor, tools=load_tools(cfg.episode.tools), config=cfg.episode)
    envs = [EnvThread(lambda: make_env(cfg.env)) for _ in range(min(cfg.cluster.envs_per_actor, len(tasks)))]
    await asyncio.gather(*(env.call(lambda e: e.reset(seed=0)) for env in envs))
    pending = iter(enumerate(tasks))
    played: dict[int, Trajectory] = {}

    async def drive(env: EnvThread) -> None:
        for index, task in pending:
            played[index] = await run_episode(decider, env, task, member=0)

    started = time.perf_counter()
    await asyncio.gather(*(drive(env) for env in envs))
    seconds = time.perf_counter() - started
    for env in envs:
        env.close()
    return seconds, [played[index] for index in range(len(tasks))]
