"""Jobs to rollout actors, each played to its end exactly once, whichever of the actors and samplers die meanwhile."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

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


def get_all(calls: Sequence[Any], deadline_s: float) -> list[Any]:
    """What calls that need each other return.

    Raises:
        RayActorError: an actor died. At once, since the others may wait for it forever, or may have failed for that
            reason with an error that says less.
        NoAnswerError: after `deadline_s` not all have returned.
        Exception: what a call raised.
    """
    waiting = list(calls)
    until = time.monotonic() + deadline_s
    while waiting:
        ended, waiting = ray.wait(waiting, num_returns=1, timeout=max(0.0, until - time.monotonic()))
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


@dataclass(frozen=True, kw_only=True)
class _Share:
    """What one rollout actor plays."""

    actor: Any
    stream: Any
    order: tuple[int, ...]
    """Indices of the jobs as they were given to the stream."""
    unfinished: dict[int, Job]


class Dispatcher:
    """Plays jobs on rollout actors.

    A job depends on nothing but itself and the weights, so that one that was cut short is played anew from its start.

    Args:
        actors: RolloutActor handles that Ray starts anew when they die.
        revive_samplers: returns when every sampler serves the current weights; cheap when all do.
        watch: of these actors.
    """

    def __init__(self, actors: Sequence[Any], revive_samplers: Callable[[], None], watch: Watch) -> None:
        self._actors = actors
        self._revive_samplers = revive_samplers
        self._watch = watch
        self.resampled: list[Job] = []
        """Jobs that were given out again, once for each time."""

    def stream(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Trajectory]]:
        """Play all jobs; (index of the job, trajectory) as they end, each index once.

        Raises:
            RayActorError: a rollout actor or sampler has died more often than it is started anew.
            PluginError: a tool failed.
        """
        num = len(self._actors)
        dealt = [{k: jobs[k] for k in range(i, len(jobs), num)} for i in range(num)]
        shares = [_start(actor, part) for actor, part in zip(self._actors, dealt, strict=True) if part]
        while shares:
            ready = ray.wait([share.stream for share in shares], num_returns=1, timeout=SILENCE_S)[0]
            if not ready:
                self._revive_samplers()
                lives = self._watch.look([share.actor for share in shares])
                shares = [share if alive else self._restart(share) for share, alive in zip(shares, lives, strict=True)]
                continue
            share = next(share for share in shares if share.stream is ready[0])
            try:
                position, trajectory = ray.get(next(share.stream))
            except StopIteration:
                shares.remove(share)
                continue
            except PluginError as error:  # as Ray hands it on, its text is the traceback of the other process
                raise PluginError(str(getattr(error, "cause", error))) from error
            except RayActorError as error:
                if isinstance(error, RayTaskError):  # raised in the actor, which lives: its sampler is gone for good
                    raise
                if isinstance(error, ActorUnavailableError):  # it may live, and play on in the same envs
                    self._watch.end(share.actor, f"it cannot be reached: {error}")
                shares.remove(share)
                shares.append(self._restart(share))
                continue
            index = share.order[position]
            if trajectory is None:
                self.resampled.append(share.unfinished[index])
                self._revive_samplers()
            else:
                del share.unfinished[index]
                yield index, trajectory

    def _restart(self, share: _Share) -> _Share:
        """Give what a dead rollout actor had not finished to its successor."""
        while self._watch.look([share.actor]) == [None]:  # its successor, too, hangs
            pass
        self.resampled += share.unfinished.values()
        return _start(share.actor, share.unfinished)


def _start(actor: Any, unfinished: dict[int, Job]) -> _Share:
    stream = actor.stream.remote(list(unfinished.values()))
    return _Share(actor=actor, stream=stream, order=tuple(unfinished), unfinished=unfinished)
