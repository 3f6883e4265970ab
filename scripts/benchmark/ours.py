"""Our side of the benchmark: GRPO steps on a real cluster, and the same envs without a policy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

import rlvla_reward
from measuring import Run
from rlvla.cluster.cluster import Cluster
from rlvla.config import GRPOConfig
from rlvla.learner.advantage import with_advantages
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.rollout.collect import Job, stream
from rlvla.rollout.env_process import EnvPool
from rlvla.rollout.env_server import make_env
from rlvla.rollout.env_thread import EnvThread
from rlvla.rollout.tasks import task_ids
from rlvla.types import Group, TaskSpec, Trajectory


def jobs_of(tasks: Sequence[TaskSpec], group_size: int) -> list[Job]:
    """The episodes of a step, in the order in which `rlvla.rollout.collect.rollout` plays them."""
    return [Job(task=task, member=member) for task in tasks for member in range(group_size)]


def num_decisions(cfg: GRPOConfig) -> int:
    """Action chunks until the time limit of the longest of the configured tasks."""
    env: Any = make_env(cfg.env)
    limit = max(env.max_env_steps(task) for task in task_ids(env, cfg.env))
    env.close()
    chunk_length, _ = PolicyProcessor.load(cfg.model).codec.chunk_shape
    return -(-limit // chunk_length)


class Ours:
    """A cluster that makes GRPO steps as `recipes/grpo.py` does. Use as a context manager."""

    def __init__(self, cfg: GRPOConfig) -> None:
        self._cfg = cfg
        self._reward = rlvla_reward.build(cfg.reward)
        self.groups: list[list[Group]] = []
        """Of each step, for the learners that ours is compared with."""

    def __enter__(self) -> Ours:
        self._cluster = Cluster(self._cfg, partial(rlvla_reward.begin, self._cfg.reward))
        return self

    def __exit__(self, *_: object) -> None:
        self._cluster.close()

    def step(self, tasks: Sequence[TaskSpec]) -> dict[str, Run]:
        """One `step` and its parts `rollout` (with scoring), `learner` and `sync`.

        `learner` is the time inside `Learner.step`, as that of the loops it is compared with; the step as a whole
        has the transfers to and from it in it too.

        Raises:
            RuntimeError: no turn could be learned from.
        """
        started = time.perf_counter()
        groups = [self._judge(group) for group in self._play(tasks)]
        sampled = time.perf_counter()
        learned = self._cluster.learn(groups)
        if not learned["num_rows"]:
            raise RuntimeError("no turn to learn from: every trajectory crashed or outgrew episode.max_turn_tokens")
        updated = time.perf_counter()
        self.groups.append(groups)
        self._cluster.sync(policy_version=len(self.groups))
        ended = time.perf_counter()
        tokens = learned["tokens_per_s"] * learned["time/update_s"]
        return {
            "step": Run(seconds=ended - started),
            "rollout": rollout_run([t for group in groups for t in group.trajectories], sampled - started),
            "learner": Run(seconds=learned["time/update_s"], counts={"tokens": tokens}),
            "sync": Run(seconds=ended - updated),
        }

    def _play(self, tasks: Sequence[TaskSpec]) -> list[Group]:
        members = [[Job(task=task, member=member) for member in range(self._cfg.group_size)] for task in tasks]
        played = dict(stream(self._cluster, [job for jobs in members for job in jobs]))
        trajectories = [tuple(played[job] for job in jobs) for jobs in members]
        return [Group(task=group[0].task, trajectories=group) for group in trajectories]

    def _judge(self, group: Group) -> Group:
        scored, masks = self._reward.score(group), self._cfg.mask_context_full
        return with_advantages(scored, self._cfg.advantage, self._reward.weights, mask_context_full=masks)


def rollout_run(trajectories: Sequence[Trajectory], seconds: float) -> Run:
    """What was played in that time."""
    num, num_decisions = len(trajectories), sum(len(t.turns) for t in trajectories)
    num_env_steps = sum(t.num_env_steps for t in trajectories)
    return Run(
        seconds=seconds,
        counts={"trajectories": num, "env_steps": num_env_steps, "decisions": num_decisions},
        facts={"success": sum(t.success for t in trajectories) / num, "decisions_per_trajectory": num_decisions / num},
    )


def measure_simulator(cfg: GRPOConfig, jobs: Sequence[Job]) -> Run:
    """The same episodes in the env processes of a rollout actor, with random chunks and nothing else.

    One observation is rendered per chunk. Envs are made before the clock starts.
    """
    env: Any = make_env(cfg.env)
    env.close()
    chunk_length, _ = PolicyProcessor.load(cfg.model).codec.chunk_shape
    return asyncio.run(_random_rollout(cfg, jobs, chunk_length, env.action_space))


async def _random_rollout(cfg: GRPOConfig, jobs: Sequence[Job], chunk_length: int, space: Any) -> Run:
    pool = EnvPool(cfg.env, min(cfg.cluster.envs_per_actor, len(jobs)), cfg.cluster.envs_per_process)
    await asyncio.gather(*(env.call(lambda e: e.reset(seed=0)) for env in pool.envs))
    pending = iter(enumerate(jobs))
    steps: list[int] = []

    async def drive(env: EnvThread) -> None:
        for index, job in pending:
            steps.append(await env.call(lambda e, i=index, j=job: _play_randomly(e, space, j, i, chunk_length)))

    started = time.perf_counter()
    await asyncio.gather(*(drive(env) for env in pool.envs))
    seconds = time.perf_counter() - started
    pool.close()
    return Run(seconds=seconds, counts={"env_steps": sum(steps), "trajectories": len(jobs)})


def _play_randomly(env: Any, space: Any, job: Job, seed: int, chunk_length: int) -> int:
    """One episode of uniformly drawn actions; returns its env steps."""
    rng = np.random.default_rng(seed)
    env.reset(seed=job.task.seed, options={"task_id": job.task.task_id, "init_state_id": job.task.init_state_id})
    count, is_over = 0, False
    while not is_over:
        chunk = rng.uniform(space.low, space.high, (chunk_length, *space.shape)).astype(np.float32)
        _, rewards, terminated, truncated, _ = env.step_chunk(chunk)
        count += len(rewards)
        is_over = terminated or truncated
    return count
