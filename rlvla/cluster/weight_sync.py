"""Weights from the learner to the samplers, bucket after bucket through Ray's store, which the driver never reads.

Shared memory on one node, a copy for each node beyond. A bucket goes when the samplers have taken it: at once where
`free_objects_batch_size` is 1, as in a Ray of ours, else within a second.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from rlvla.cluster.dispatch import get_all, wait_for
from rlvla.policies.buckets import Bucket


def give(
    learners: Sequence[Any],
    samplers: Sequence[Any],
    policy_version: int,
    *,
    learner_deadline_s: float,
    sampler_deadline_s: float,
) -> None:
    """Load the learner's weights, or its adapter, into samplers; returns when those that fare well act with these.

    One that dies, fails or hangs meanwhile is left behind: its `status` says so, or that it serves another version.
    Every learner rank takes part, since under ZeRO-3 each holds a share.

    Raises:
        NoAnswerError: of the learners.
        RayActorError: a learner died.
        ValueError: the weights are not those of the samplers' checkpoint.
    """
    receivers = _Receivers(samplers, sampler_deadline_s)
    offers = [learner.offer.remote() for learner in learners]
    (names, num_alive), *_ = get_all([offer for offer, _ in offers], learner_deadline_s)
    if not names:
        receivers.ask("load_weights", offers[0][1], policy_version)
        receivers.wait()
        return
    del offers
    receivers.ask("begin_weights", names, policy_version)
    while receivers.left:
        if num_alive == 1:
            receivers.wait()
        made = [learner.next_bucket.remote() for learner in learners]
        (is_one, *_) = get_all([there for there, _ in made], learner_deadline_s)
        receivers.wait()
        if not is_one:
            break
        receivers.ask("take_bucket", made[0][1])
        del made  # else it would be in the store until the next has its name
    receivers.ask("end_weights")
    receivers.wait()


class _Receivers:
    """Samplers that are being given weights, all doing the same, without those that are left behind."""

    def __init__(self, samplers: Sequence[Any], deadline_s: float) -> None:
        self.left = list(samplers)
        self._calls: dict[Any, Any] = {}
        self._deadline_s = deadline_s

    def ask(self, method: str, *args: Any) -> None:
        """Call a method of each. What is begun may wait for a sampler that is started anew, the rest goes with it."""
        is_first = method in ("load_weights", "begin_weights")
        for sampler in self.left:
            bound = getattr(sampler, method)
            self._calls[wait_for(bound, *args) if is_first else bound.remote(*args)] = sampler

    def wait(self) -> None:
        """Until they have done it; raises ValueError where one refuses what it is given."""
        calls, self._calls = self._calls, {}
        if not calls:
            return
        ended = ray.wait(list(calls), num_returns=len(calls), timeout=self._deadline_s)[0]
        self.left = [calls[call] for call in ended if _is_done(call)]


def _is_done(call: Any) -> bool:
    try:
        ray.get(call)
    except RayTaskError as error:
        if isinstance(error, ValueError):
            raise
        return False
    except RayActorError:
        return False
    return True


class Incoming:
    """The buckets as a sampler goes through them in a thread of its own: each is empty before it asks for the next."""

    def __init__(self) -> None:
        self._given: queue.SimpleQueue[tuple[Bucket, Future[None]] | None] = queue.SimpleQueue()
        self._is_whole = False

    def give(self, bucket: Bucket) -> Future[None]:
        """Hand a bucket over; the future ends when it has been taken."""
        taken: Future[None] = Future()
        self._given.put((bucket, taken))
        return taken

    def end(self, *, is_whole: bool = True) -> None:
        """No more come: these were all, or who gave them has given up."""
        self._is_whole = is_whole
        self._given.put(None)

    def __iter__(self) -> Iterator[Bucket]:
        """Raises RuntimeError where they were not all."""
        while (given := self._given.get()) is not None:
            bucket, taken = given
            del given
            yield bucket
            bucket.clear()  # who goes through them may still have a name for it
            taken.set_result(None)
        if not self._is_whole:
            raise RuntimeError("the weights came in part only")
