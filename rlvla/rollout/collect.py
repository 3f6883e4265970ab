"""Episodes -> groups: refills of what crashed, dynamic sampling, and how far rollouts may run ahead of the learner."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

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


async def play_job(decider: Decider, env: EnvThread, job: Job, max_attempts: int) -> Trajectory:
    """Play one episode, and again from the same state with the same seeds when the simulator crashed.

    Args:
        decider: policy side.
        env: simulator side.
        job: what to play.
        max_attempts: after as many crashes of its own the trajectory ends as ENV_ERROR, with the turns and the error of
            the last attempt. A loss that another env of the same process caused is replayed and does not count.

    Raises:
        SamplerLostError: the sampler died under the episode.
    """
    num_crashes = num_replays = 0
    while True:
        trajectory = await run_episode(decider, env, job.task, member=job.member)
        num_crashes += trajectory.num_crashes
        if trajectory.end is not EndReason.ENV_ERROR or num_crashes == max_attempts:
            return replace(trajectory, num_crashes=num_crashes, num_replays=num_replays)
        num_replays += 1


class Episodes(Protocol):
    """Plays episodes on whatever actors there are."""

    def put(self, jobs: Sequence[Job]) -> None:
        """Queue episodes, none of which is in the queue."""
        ...

    def get(self) -> tuple[Job, Trajectory | None]:
        """The next episode that ends; None for one that had ended: its frames are lost, and it is played again."""
        ...

    def settle(self, jobs: Sequence[Job]) -> None:
        """Episodes that have ended, and are not played again whatever happens."""
        ...


def stream(episodes: Episodes, jobs: Sequence[Job]) -> Iterator[tuple[Job, Trajectory]]:
    """Play episodes; each with its trajectory as it ends."""
    episodes.put(jobs)
    left = set(jobs)
    while left:
        job, trajectory = episodes.get()
        if trajectory is not None:
            left.remove(job)
            episodes.settle([job])
            yield job, trajectory


@dataclass(kw_only=True)
class _Open:
    """A group that is being played."""

    task: TaskSpec
    rounds_left: int
    members: list[Trajectory | None] = field(default_factory=list)
    """None: it is being played."""

    @property
    def is_whole(self) -> bool:
        return None not in self.members

    def more(self, group_size: int) -> list[Job]:
        """The members to play next, each with sampling seeds of its own; none while others are being played."""
        if not self.is_whole or not self.rounds_left:
            return []
        num_ended = sum(t is not None and t.end is not EndReason.ENV_ERROR for t in self.members)
        new = range(len(self.members), len(self.members) + group_size - num_ended)
        self.rounds_left -= 1
        self.members += [None] * len(new)
        return [Job(task=self.task, member=member) for member in new]

    @property
    def jobs(self) -> list[Job]:
        return [Job(task=self.task, member=member) for member in range(len(self.members))]

    def group(self) -> Group:
        """Those that crashed stay in it: nothing that was started is lost from the count."""
        trajectories = tuple(t for t in self.members if t is not None)
        return Group(task=trajectories[0].task, trajectories=trajectories)


class Collector:
    """The groups that learner steps take. Their order follows the task stream, never completion.

    With `max_waves` above 1 this is dynamic sampling (DAPO, arXiv 2503.14476 section 3.2): groups whose advantages are
    all zero are dropped and others sampled in their place. Groups without any advantage (`Group.is_dropped`) are never
    learned from. What ended as ENV_ERROR is replaced by further members of its group, `max_refills` times.

    - `max_staleness` 0: a step begins a wave of `groups_per_step` groups and ends with it. As soon as it is certain
      that these are too few, the next wave begins. Groups beyond `groups_per_step` wait in `tasks.surplus`.
    - n > 0: at most n + 1 steps' groups are being played, also while the learner works, and a step takes those that
      were begun first. So none was begun more than n steps before it is learned from, short or long.

    Args:
        episodes: plays them.
        tasks: where the tasks come from; advanced.
        judge: fills rewards and advantages of a group; called in the tasks' order.
        config: `groups_per_step`, `group_size`, `max_waves`, `max_refills`, `max_staleness`, `num_steps`.
    """

    def __init__(
        self, episodes: Episodes, tasks: TaskStream, judge: Callable[[Group], Group], config: GRPOConfig
    ) -> None:
        self._episodes, self._tasks, self._judge, self._config = episodes, tasks, judge, config
        self._open: dict[TaskSpec, _Open] = {}
        self._most = config.max_waves * config.groups_per_step  # groups that a step may look at

    def collect(self, step: int) -> tuple[list[Group], list[Group]]:
        """Play what a step takes.

        Returns:
            (groups to learn from, at most `groups_per_step`; groups that ended now).
        """
        config = self._config
        kept, sampled = list(self._tasks.surplus), list[Group]()
        while True:
            num_done = len(sampled if config.max_waves == 1 else kept)
            self._begin(step, min(config.groups_per_step - num_done, self._most - len(sampled)))
            if self._is_enough(len(kept), len(sampled)):
                break
            group = self._next()
            sampled.append(group)
            if group.has_signal or (config.max_waves == 1 and not group.is_dropped):
                kept.append(group)
        self._tasks.surplus = kept[config.groups_per_step :]
        chosen = kept[: config.groups_per_step]
        return chosen, sampled

    def _begin(self, step: int, num_left: int) -> None:
        """Begin as many groups as must be, or may be; this step can take so many more."""
        config = self._config
        num_steps_ahead = min(config.max_staleness, config.num_steps - step - 1)
        num_missing = num_left + num_steps_ahead * config.groups_per_step - len(self._open)
        if num_missing <= 0:
            return
        if not config.max_staleness:
            num_missing = config.groups_per_step
        begun = [_Open(task=t, rounds_left=1 + config.max_refills) for t in self._tasks.take(num_missing)]
        self._open |= {group.task: group for group in begun}
        self._episodes.put([job for group in begun for job in group.more(config.group_size)])

    def _is_enough(self, num_kept: int, num_sampled: int) -> bool:
        config = self._config
        if not config.max_staleness:
            return not self._open  # those that are begun would be stale in the next step
        is_full = config.max_waves > 1 and num_kept >= config.groups_per_step
        return is_full or num_sampled == self._most

    def _next(self) -> Group:
        """The group that was begun first, played to its end."""
        first = next(iter(self._open.values()))
        while not first.is_whole:
            job, trajectory = self._episodes.get()
            group = self._open[job.task]
            group.members[job.member] = trajectory
            if more := group.more(self._config.group_size):
                self._episodes.put(more)
        del self._open[first.task]
        self._episodes.settle(first.jobs)
        self._tasks.num_settled += 1
        return self._judge(first.group())
