"""The process of sampling trajectories: Ray actors that hold envs, and one that holds the sampler.

A RolloutActor plays as many episodes at once as it has envs, each an independent coroutine, so that the sampler
batches over all of them and a finished env takes the next episode at once.
"""

from __future__ import annotations

import asyncio
import operator
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError, RayTaskError

from rlvla.config import EnvConfig, EpisodeConfig, EvaluateConfig, GRPOConfig, LoraConfig, SamplerConfig
from rlvla.rollout.env_process import EnvPool
from rlvla.rollout.env_server import make_env
from rlvla.rollout.env_thread import EnvThread
from rlvla.rollout.episode import Decider, derive_seed, run_episode
from rlvla.policies.models.lora import Adapter
from rlvla.policies.thinker.prompt import PolicyProcessor, read_decoding
from rlvla.protocols import Env, SampleOutput, SampleRequest
from rlvla.policies.thinker.tools import load_tools
from rlvla.types import EndReason, Group, TaskSpec, Trajectory


class SamplerClosedError(RuntimeError):
    """A sampler that has not been told which weights to act with: it was started anew a moment ago."""


class SamplerLostError(RuntimeError):
    """The sampler died or failed under a request; the episode can be played again when it is back."""


class SamplerActor:
    """The sampler that `sampler.backend` names as a Ray actor; the limits are vLLM's.

    It serves from `open` or the first `load_weights` on. Started anew by Ray, it holds the weights of the checkpoint on
    the disk, which may be old ones. Once its engine has failed, it serves no more, and `status` says why.
    """

    def __init__(
        self,
        model: Path,
        config: SamplerConfig,
        *,
        max_images: int,
        max_model_len: int,
        seed: int,
        lora: LoraConfig | None = None,
    ) -> None:
        self._opened = asyncio.Event()
        self._policy_version = 0
        self._failure = ""
        self._num_asked, self._asked_since = 0, 0.0
        if config.backend == "transformers":
            import torch
            from transformers.utils import logging

            from rlvla.samplers.local import TransformersSampler

            logging.disable_progress_bar()  # one for each weight sync
            torch.set_num_threads(config.threads)
            self._sampler = TransformersSampler(model, getattr(torch, config.dtype))
            return
        from rlvla.samplers.vllm.sampler import VLLMSampler

        self._sampler = VLLMSampler(
            model,
            config,
            max_images=max_images,
            max_model_len=max_model_len,
            seed=seed,
            action_decoding=read_decoding(model),
            lora=lora,
        )

    async def sample(self, request: SampleRequest) -> SampleOutput:
        """See `protocols.Sampler`; raises SamplerClosedError before it is opened, ValueError of a wrong request."""
        if not self._opened.is_set():
            raise SamplerClosedError("the sampler waits for its weights")
        with self._asked():
            return await self._sampler.sample(request)

    async def load_weights(self, weights: Adapter | dict[str, np.ndarray], policy_version: int) -> None:
        """Take new weights, or the adapter of a LoRA policy, between two requests, without a restart, and serve.

        Raises:
            ValueError: they are not this checkpoint's.
        """
        with self._asked():
            await asyncio.to_thread(self._sampler.load_weights, weights, policy_version)
        self._policy_version = policy_version
        self._opened.set()

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """Note since when the engine answers nobody who asks, and why it failed: all but a ValueError is its fault."""
        if not self._num_asked:
            self._asked_since = time.monotonic()
        self._num_asked += 1
        try:
            yield
        except ValueError:
            raise
        except Exception as error:
            self._failure = self._failure or f"{type(error).__name__}: {error}"
            self._opened.clear()
            raise
        finally:
            self._num_asked -= 1
            self._asked_since = time.monotonic()

    async def open(self) -> None:
        """Serve with the weights of the checkpoint."""
        self._opened.set()

    async def status(self, deadline_s: float) -> tuple[str, int]:
        """Why it is of no more use, if it is, and the policy version that it serves; -1 before it serves.

        Args:
            deadline_s: an engine that answers none of those who ask for so long hangs.
        """
        if not self._failure and self._num_asked and time.monotonic() - self._asked_since > deadline_s:
            return f"its engine answers nobody for {deadline_s:g} s (cluster.actor_deadline_s)", -1
        return self._failure, self._policy_version if self._opened.is_set() else -1

    async def wait_open(self) -> None:
        """Return when it serves."""
        await self._opened.wait()

    async def wait_end(self) -> None:
        """Never return: who waits learns of the end of the process."""
        await asyncio.Event().wait()

    async def close(self) -> None:
        """End the sampler."""
        self._sampler.close()


class RaySampler:
    """A SamplerActor's handle behind the Sampler protocol."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def sample(self, request: SampleRequest) -> SampleOutput:
        """See `protocols.Sampler`; raises SamplerLostError when the actor died, was started anew, or its engine failed.

        A ValueError goes on: it is of the request, which would meet it again.
        """
        try:
            return await self._actor.sample.remote(request)
        except (RayActorError, RayTaskError) as error:
            if isinstance(error, ValueError):
                raise
            raise SamplerLostError(f"the sampler was lost: {error}") from error

    async def wait_open(self) -> None:
        """Return when the actor, started anew if need be, serves; raises ActorDiedError when it never will."""
        await self._actor.wait_open.options(max_task_retries=-1).remote()


@dataclass(frozen=True, kw_only=True)
class Job:
    """One episode to play: which task, and which member of its group."""

    task: TaskSpec
    member: int


async def play_job(
    decider: Decider, env: EnvThread, job: Job, max_attempts: int, sampler_lost: Callable[[], Awaitable[None]]
) -> Trajectory:
    """Play one episode, and again from the same state with the same seeds when the simulator crashed.

    Args:
        decider: policy side.
        env: simulator side.
        job: what to play.
        max_attempts: after as many crashes of its own the trajectory ends as ENV_ERROR, with the turns and the error of
            the last attempt. A loss that another env of the same process caused is replayed and does not count.
        sampler_lost: called when the sampler died under the episode, which is played again when this returns; no fault
            of the env's, of which the count goes on.
    """
    num_crashes = num_replays = 0
    while True:
        try:
            trajectory = await run_episode(decider, env, job.task, member=job.member)
        except SamplerLostError:
            await sampler_lost()
            continue
        num_crashes += trajectory.num_crashes
        if trajectory.end is not EndReason.ENV_ERROR or num_crashes == max_attempts:
            return replace(trajectory, num_crashes=num_crashes, num_replays=num_replays)
        num_replays += 1


class RolloutActor:
    """Several envs, in processes of their own, and the episodes that are played in them.

    Args:
        sampler: name of the SamplerActor. A handle would lie in Ray's object store, where a restart might not find it.
        model: checkpoint folder.
        env: which, and its deadlines.
        episode: how a turn is played.
        num_envs: hence concurrent episodes.
        envs_per_process: see `EnvPool`.
    """

    def __init__(
        self,
        sampler: str,
        model: Path,
        env: EnvConfig,
        episode: EpisodeConfig,
        *,
        num_envs: int,
        envs_per_process: int = 1,
    ) -> None:
        self._sampler = RaySampler(ray.get_actor(sampler))
        self._decider = Decider(
            sampler=self._sampler,
            processor=PolicyProcessor.load(model),
            tools=load_tools(episode.tools),
            config=episode,
        )
        self._pool = EnvPool(env, num_envs, envs_per_process)
        self._max_attempts = env.max_attempts
        self._env_deadline_s = 2 * max(env.deadline_s, env.reset_deadline_s)  # a reset may start a process before

    async def status(self, deadline_s: float) -> tuple[str, bool]:
        """Why it is of no more use, if it is; and True.

        Args:
            deadline_s: a call of an env that takes so long beyond the env's own deadlines hangs: in a tool, that is.
        """
        limit_s = deadline_s + self._env_deadline_s
        is_stuck = any(env.busy_s > limit_s for env in self._pool.envs)
        return f"a tool has not returned for {limit_s:g} s (cluster.actor_deadline_s)" if is_stuck else "", True

    async def wait_end(self) -> None:
        """Never return: who waits learns of the end of the process."""
        await asyncio.Event().wait()

    async def stream(self, jobs: Sequence[Job]) -> AsyncIterator[tuple[int, Trajectory | None]]:
        """Play all jobs; (index of the job, trajectory) as they end.

        Before that (index of the job, None) whenever the sampler died under it, and it is played again from its start.

        Raises:
            PluginError: a tool failed by itself; what else is being played is given up at once.
        """
        pending = iter(enumerate(jobs))
        ended: asyncio.Queue[tuple[int, Trajectory | None] | None] = asyncio.Queue()

        async def sampler_lost(index: int) -> None:
            await ended.put((index, None))
            await self._sampler.wait_open()

        async def drive(env: EnvThread) -> None:
            try:
                for index, job in pending:
                    lost = partial(sampler_lost, index)
                    trajectory = await play_job(self._decider, env, job, self._max_attempts, lost)
                    await ended.put((index, trajectory))
            finally:
                await ended.put(None)

        drivers = [asyncio.create_task(drive(env)) for env in self._pool.envs[: len(jobs)]]
        num_driving = len(drivers)
        try:
            while num_driving:
                item = await ended.get()
                if item is not None:
                    yield item
                    continue
                num_driving -= 1
                if any(driver.done() and driver.exception() for driver in drivers):
                    break
            await asyncio.gather(*drivers)  # raises what a driver raised
        finally:
            for driver in drivers:
                driver.cancel()

    async def close(self) -> None:
        """Close every env and end its process."""
        self._pool.close()


@dataclass(kw_only=True)
class TaskStream:
    """Endless tasks: the env's tasks in turn, each with a train initial state; resumable from its two counters."""

    config: EnvConfig
    seed: int
    position: int = 0
    """Tasks drawn so far."""
    surplus: list[Group] = field(default_factory=list)
    """Groups with signal that were sampled and not yet learned from."""
    suite: str = field(init=False)
    """The env's."""

    def __post_init__(self) -> None:
        """Asks one env for its tasks and states, then closes it."""
        env = make_env(self.config)
        self.suite = env.suite
        self._task_ids = task_ids(env, self.config)
        self._states = {task: state_ids(env, task, "train") for task in self._task_ids}
        env.close()

    def take(self, count: int) -> list[TaskSpec]:
        """The next tasks; the k-th of a run is the same whatever was taken together."""
        return [self._draw() for _ in range(count)]

    def _draw(self) -> TaskSpec:
        task_id = self._task_ids[self.position % len(self._task_ids)]
        seed = derive_seed(self.seed, self.position)
        states = self._states[task_id]
        self.position += 1
        return TaskSpec(suite=self.suite, task_id=task_id, init_state_id=states[seed % len(states)], seed=seed)


def task_ids(env: Env, config: EnvConfig) -> list[int]:
    """Ids of the configured task names; raises ValueError naming one that the env lacks."""
    for name in config.tasks:
        if name not in env.task_names:
            raise ValueError(f"env.tasks names {name!r}; {config.id} has {', '.join(env.task_names)}")
    return [env.task_names.index(name) for name in config.tasks or env.task_names]


def most_images(config: EnvConfig, episode: EpisodeConfig) -> int:
    """Images in one context at most: a view of each camera, and a crop of each tool call.

    Constructs the env, without a reset.
    """
    env = make_env(config)
    num_cameras = env.observation_space["images"].shape[0]
    env.close()
    return num_cameras + episode.max_tool_calls


def state_ids(env: Env, task_id: int, split: str) -> Sequence[int]:
    """The initial states of a task for a split, as plain integers, be they NumPy's in the env.

    Raises:
        ValueError: an id is no integer; the message names it.
    """
    ids = env.init_state_ids(task_id, split)
    if isinstance(ids, range):  # may be long
        return ids
    try:
        return tuple(operator.index(id_) for id_ in ids)
    except TypeError as error:
        raise ValueError(
            f"init_state_ids({task_id}, {split!r}) of suite {env.suite}: {error}: ids are integers"
        ) from None


def trial_states(env: Env, task_id: int, config: EvaluateConfig) -> list[int]:
    """The initial states of a task that an evaluation plays; raises ValueError when its split has fewer."""
    states = list(state_ids(env, task_id, config.split)[: config.num_trials])
    if len(states) < config.num_trials:
        name = env.task_names[task_id]
        raise ValueError(f"num_trials is {config.num_trials}, task {name!r} has {len(states)} {config.split} states")
    return states


Play = Callable[[Sequence[Job]], list[Trajectory]]
"""Plays jobs on whatever actors there are; trajectories in the jobs' order."""


def rollout(play: Play, tasks: Sequence[TaskSpec], group_size: int, max_refills: int = 0) -> list[Group]:
    """One group for each task, in the tasks' order.

    Args:
        play: plays the episodes.
        tasks: to start from.
        group_size: trajectories of a group that did not end as ENV_ERROR. Those that did stay in it beside the others
            that were played in their place: nothing that was started is lost from the count.
        max_refills: times that this is done; then a group may lack members.
    """
    members: list[list[Trajectory]] = [[] for _ in tasks]
    for _ in range(1 + max_refills):
        jobs = [
            (group, Job(task=task, member=member))
            for group, task in enumerate(tasks)
            for member in _next_members(members[group], group_size)
        ]
        if not jobs:
            break
        for (group, _), trajectory in zip(jobs, play([job for _, job in jobs]), strict=True):
            members[group].append(trajectory)
    return [Group(task=group[0].task, trajectories=tuple(group)) for group in members]


def _next_members(played: Sequence[Trajectory], group_size: int) -> range:
    """Member indices to play, each hence with sampling seeds of its own, until `group_size` have ended."""
    num_ended = sum(trajectory.end is not EndReason.ENV_ERROR for trajectory in played)
    return range(len(played), len(played) + group_size - num_ended)


def collect(
    play: Play, tasks: TaskStream, judge: Callable[[Group], Group], config: GRPOConfig
) -> tuple[list[Group], list[Group]]:
    """The groups that a learner step takes, and all that were sampled for it.

    With `max_waves` above 1 this is dynamic sampling (DAPO, arXiv 2503.14476 section 3.2): groups whose advantages are
    all zero are dropped and others sampled in their place, wave by wave; groups with signal beyond
    `groups_per_step` wait in `tasks.surplus` for the next step. Order follows the task stream, never completion. Groups
    without any advantage (`Group.is_dropped`) are never learned from.

    Args:
        play: see `rollout`.
        tasks: where the tasks come from; advanced.
        judge: fills rewards and advantages of a group.
        config: `groups_per_step`, `group_size`, `max_waves`, `max_refills`.

    Returns:
        (groups to learn from, at most `groups_per_step`; groups sampled now).
    """

    def wave() -> list[Group]:
        taken = tasks.take(config.groups_per_step)
        return [judge(group) for group in rollout(play, taken, config.group_size, config.max_refills)]

    if config.max_waves == 1:
        groups = wave()
        return [group for group in groups if not group.is_dropped], groups
    kept, sampled = list(tasks.surplus), []
    for _ in range(config.max_waves):
        if len(kept) >= config.groups_per_step:
            break
        groups = wave()
        sampled += groups
        kept += [group for group in groups if group.has_signal]
    tasks.surplus = kept[config.groups_per_step :]
    chosen = kept[: config.groups_per_step]
    return chosen, sampled or chosen
