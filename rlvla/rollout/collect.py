"""Episodes -> groups: replays of what was lost, refills, and dynamic sampling."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from rlvla.config import GRPOConfig
from rlvla.protocols import Decider
from rlvla.rollout.env_thread import EnvThread
from rlvla.rollout.episode import run_episode
from rlvla.rollout.tasks import TaskStream
from rlvla.types import EndReason, Group, TaskSpec, Trajectory


class SamplerLostError(RuntimeError):
    """The sampler died or failed under a request; the episode can be played again when it is back."""


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
