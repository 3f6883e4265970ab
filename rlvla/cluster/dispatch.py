"""Episodes to envs, each played to its end exactly once, whichever of the actors, samplers and nodes die meanwhile."""

from __future__ import annotations

import math
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, ObjectLostError, RayActorError, RayTaskError

from rlvla.cluster.frames import with_frames
from rlvla.plugins import PluginError
from rlvla.rollout.collect import Job
from rlvla.types import Trajectory

SILENCE_S = 5.0
"""After so long without a trajectory samplers are looked after: one may have died when nobody asked it anything."""


GRACE_S = 10.0
"""Between the error of a process whose peer died and Ray's word that it died."""


def wait_for(method: Any, *args: Any) -> Any:
    """Call a method of an actor, again when the actor dies and Ray starts it anew.

    Raises:
        ActorDiedError: it has died more often than `cluster.max_restarts` allows.
    """
    return method.options(max_task_retries=-1).remote(*args)


class NoAnswerError(RuntimeError):
    """Calls that need each other have not all returned in time: one of their actors hangs."""


def get_all(
    calls: Sequence[Any], deadline_s: float, wait: Callable[..., tuple[list[Any], list[Any]]] = ray.wait
) -> list[Any]:
    """What calls that need each other return; waited for by `ray.wait`, or what does other things meanwhile.

    Raises:
        RayActorError: an actor died. At once, since the others may wait for it forever, or may have failed for that
            reason with an error that says less.
        NoAnswerError: after `deadline_s` not all have returned.
        Exception: what a call raised.
    """
    waiting = list(calls)
    until = time.monotonic() + deadline_s
    while waiting:
        ended, waiting = wait(waiting, timeout=max(0.0, until - time.monotonic()))
        if not ended:
            raise NoAnswerError(f"no answer within {deadline_s:g} s")
        try:
            ray.get(ended)
        except RayTaskError:
            for late in ray.wait(waiting, num_returns=len(waiting), timeout=GRACE_S)[0] if waiting else ():
                with suppress(RayTaskError):
                    ray.get(late)
            raise
    return ray.get(list(calls))


class Watch:
    """Ends actors that are of no more use, so that Ray starts them anew, `cluster.max_restarts` times.

    Args:
        deadline_s: within which an actor must say how it fares, started anew a moment ago or not.
        names: of the actors by id, for messages.
    """

    def __init__(self, deadline_s: float, names: Mapping[str, str]) -> None:
        self._deadline_s, self._names = deadline_s, names
        self.reasons: dict[str, str] = {}
        """Why an actor was ended last, by its id."""

    def look(self, actors: Sequence[Any]) -> list[Any]:
        """Ask each for its `status` (why it is of no more use or nothing, whatever else it says).

        Returns:
            What else each says; None of one that is ended now, since it gave a reason, or hangs and gave no answer.

        Raises:
            ActorDiedError: one has died more often than it is started anew.
        """
        calls = [wait_for(actor.status, self._deadline_s) for actor in actors]
        answered = ray.wait(calls, num_returns=len(calls), timeout=self._deadline_s)[0]
        said = []
        for actor, call in zip(actors, calls, strict=True):
            silence = f"it has not answered for {self._deadline_s:g} s (cluster.actor_deadline_s)"
            reason, rest = ray.get(call) if call in answered else (silence, None)
            if reason:
                self.end(actor, reason)
            said.append(None if reason else rest)
        return said

    def end(self, actor: Any, reason: str) -> None:
        """End an actor; returns when its process takes no more calls: the next ones are its successor's."""
        id_ = actor._actor_id.hex()
        self.reasons[id_] = reason
        warnings.warn(f"{self._names[id_]} is ended and started anew: {reason}", stacklevel=2)
        end = actor.wait_end.remote()
        ray.kill(actor, no_restart=False)
        ray.wait([end], timeout=GRACE_S)  # one that hung in its constructor hands the call on to its successor


@dataclass(kw_only=True)
class _Slot:
    """An env of a rollout actor."""

    actor: Any
    env: int
    scene: int | None = None
    """Task whose scene the env has."""


@dataclass(frozen=True, kw_only=True)
class _Playing:
    """An episode that is being played."""

    slot: _Slot
    job: Job
    frames: Any
    """Reference to them, once it has ended."""


class Dispatcher:
    """One queue of episodes for the envs of all rollout actors; see `rlvla.rollout.collect.Episodes`.

    An env that is free takes an episode whose scene it has, else one of the task whose episodes are longest. An episode
    depends on nothing but itself and the weights, so that one that was cut short is played anew from its start.

    Args:
        actors: RolloutActor handles that Ray starts anew when they die.
        num_envs: of each.
        revive_samplers: returns when every sampler serves the current weights; cheap when all do.
        watch: of these actors.
    """

    def __init__(self, actors: Sequence[Any], num_envs: int, revive_samplers: Callable[[], None], watch: Watch) -> None:
        # One env of each actor, then the next one: few episodes are spread over all actors, and their samplers.
        self._free = [_Slot(actor=actor, env=env) for env in range(num_envs) for actor in actors]
        self._revive_samplers = revive_samplers
        self._watch = watch
        self._idle: list[_Slot] = []  # their sampler is lost, and comes back when the learner has time for it
        self._queue: list[Job] = []
        self._playing: dict[Any, _Playing] = {}
        self._ended: deque[tuple[Job, Trajectory | None]] = deque()
        self._nodes: dict[Job, str] = {}  # where the frames lie of what has ended and is not settled
        self._homes: dict[str, str] = {}  # the node of an actor, by its id
        self._steps: Counter[int] = Counter()  # env steps by task, of all episodes that have ended, and those next
        self._episodes: Counter[int] = Counter()
        self.resampled: list[Job] = []
        """Jobs that were given out again, once for each time."""

    def put(self, jobs: Sequence[Job]) -> None:
        """See `Episodes`."""
        self._queue += jobs
        self._revive()
        self._hand_out()

    def get(self) -> tuple[Job, Trajectory | None]:
        """See `Episodes`.

        Raises:
            RayActorError: a rollout actor or sampler has died more often than it is started anew.
            PluginError: a tool failed.
        """
        self._revive()
        while not self._ended:
            self._wait_a_little((), SILENCE_S)
        return self._ended.popleft()

    def settle(self, jobs: Sequence[Job]) -> None:
        """See `Episodes`."""
        for job in jobs:
            self._nodes.pop(job, None)

    def wait(self, calls: Sequence[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        """As `ray.wait(calls, timeout=timeout)` of other calls, while episodes are handed out. Errors as of `get`."""
        until = time.monotonic() + timeout
        while True:
            left = max(0.0, until - time.monotonic())
            ready = self._wait_a_little(calls, min(left, SILENCE_S))
            if ready or not left:
                return ready, [call for call in calls if call not in ready]

    def _wait_a_little(self, calls: Sequence[Any], timeout: float) -> list[Any]:
        """Wait until a call or an episode ends, or the time is over; which of the calls did."""
        first = ray.wait([*calls, *self._playing], num_returns=1, timeout=timeout)[0]
        if first and first[0] in self._playing:
            self._take(first[0])
        elif not first and self._playing:
            self._look_after()
            if not calls:
                self._revive_samplers()
        else:
            return first
        if not calls:  # which are the learner's: a sampler that is started anew would wait for its weights
            self._revive()
        return []

    def _revive(self) -> None:
        """Return when no env lacks its sampler."""
        if self._idle:
            self._revive_samplers()
            self._free += self._idle
            self._idle = []
            self._hand_out()

    def _hand_out(self) -> None:
        """Give episodes to the envs that are free."""
        for slot in list(self._free):
            if not self._queue:
                return
            job = next((job for job in self._queue if job.task.task_id == slot.scene), None)
            job = job or max(self._queue, key=self._expected)
            self._queue.remove(job)
            self._free.remove(slot)
            slot.scene = job.task.task_id
            call, frames = slot.actor.play.options(num_returns=2).remote(slot.env, job)
            self._playing[call] = _Playing(slot=slot, job=job, frames=frames)

    def _expected(self, job: Job) -> float:
        """Env steps; of a task that was not played yet as long as can be."""
        task = job.task.task_id
        return self._steps[task] / self._episodes[task] if self._episodes[task] else math.inf

    def _take(self, call: Any) -> None:
        """Note how an episode has ended, or that it was cut short, and hand out what comes next."""
        playing = self._playing[call]
        try:
            played = ray.get(call)
        except PluginError as error:  # as Ray hands it on, its text is the traceback of the other process
            raise PluginError(str(getattr(error, "cause", error))) from error
        except (RayActorError, ObjectLostError) as error:  # the latter: it had ended on a node that is lost
            if isinstance(error, ActorUnavailableError):  # it may live, and play on in the same envs
                self._watch.end(playing.slot.actor, f"it cannot be reached: {error}")
            self._replace(playing.slot.actor)
            return
        del self._playing[call]
        if played is None:
            self._again(playing.job)
            self._idle.append(playing.slot)
        else:
            self._free.append(playing.slot)
            self._note(playing, *played)
        self._hand_out()

    def _note(self, playing: _Playing, trajectory: Trajectory, node: str) -> None:
        task = playing.job.task.task_id
        self._steps[task] += trajectory.num_env_steps
        self._episodes[task] += 1
        self._nodes[playing.job] = node
        self._homes[_id(playing.slot.actor)] = node
        self._ended.append((playing.job, with_frames(trajectory, playing.frames)))

    def _again(self, job: Job) -> None:
        self.resampled.append(job)
        self._queue.insert(0, job)

    def _look_after(self) -> None:
        """Nothing has ended for long: see that everybody is well."""
        actors = list({_id(playing.slot.actor): playing.slot.actor for playing in self._playing.values()}.values())
        for actor, node in zip(actors, self._watch.look(actors), strict=True):
            if node is None:
                self._replace(actor)

    def _replace(self, actor: Any) -> None:
        """Give what a dead rollout actor was playing to whoever is free; its successor is, too, when it answers.

        Where that is on another node, the old one is lost, and with it the frames that lay there.
        """
        while (said := self._watch.look([actor])) == [None]:  # its successor, too, hangs
            pass
        for call, playing in list(self._playing.items()):
            if playing.slot.actor is actor:
                self._take_last(call)
        home, self._homes[_id(actor)] = self._homes.get(_id(actor)), said[0]
        if home != said[0]:
            for job in [job for job, node in self._nodes.items() if node == home]:
                self._lose_frames(job)
        self._hand_out()

    def _take_last(self, call: Any) -> None:
        """As `_take`, of an actor that is dead."""
        playing = self._playing.pop(call)
        playing.slot.scene = None
        self._free.append(playing.slot)
        try:
            played = ray.get(call, timeout=GRACE_S)
        except (RayActorError, GetTimeoutError, ObjectLostError):
            played = None
        if played is None:
            self._again(playing.job)
        else:
            self._note(playing, *played)

    def _lose_frames(self, job: Job) -> None:
        del self._nodes[job]
        self._ended = deque(one for one in self._ended if one[0] != job)
        self._ended.append((job, None))
        self._again(job)


def _id(actor: Any) -> str:
    return actor._actor_id.hex()
