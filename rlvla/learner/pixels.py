"""The pictures of a step as the model takes them: prepared once, ahead of the batch that needs them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from rlvla.types import Turn

AHEAD = 2
"""Batches whose pictures are prepared while another one is learned from."""
THREADS = 2
"""That prepare them beside a GPU."""


class Pixels:
    """Pixels of the turns of one step; use as a context manager, which frees them at its end.

    Main memory: a turn's pixels are held from `AHEAD` batches before its first use to its last one. Of a rank with R
    rows, N pictures in a row and S bytes in a prepared picture (OpenVLA's two towers in bfloat16: 602 kB) that are
    R * N * S where a step scores its rows before the first of several updates, and (AHEAD + 1) batches' where it makes
    one update, which uses each batch once.

    Args:
        prepare: of one turn; called in other threads, once for each turn.
        uses: the turns of each batch in the order in which `take` will be called, a batch that is used twice twice.
        num_threads: 0 prepares a batch when it is taken. Threads that share the CPUs with a forward's cost a third
            of its speed (2 cores): each operation waits for the slowest.
    """

    def __init__(
        self,
        prepare: Callable[[Turn], Mapping[str, torch.Tensor]],
        uses: Sequence[Sequence[Turn]],
        num_threads: int = THREADS,
    ) -> None:
        self._prepare = prepare
        self._left = Counter(id(turn) for turns in uses for turn in turns)
        self._ahead = iter(uses)
        self._ready: dict[int, Future[Mapping[str, torch.Tensor]]] = {}
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="pixels") if num_threads else None

    def __enter__(self) -> Pixels:
        self._begin(AHEAD if self._pool else 0)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
        self._ready.clear()

    def take(self, turns: Sequence[Turn]) -> list[Mapping[str, torch.Tensor]]:
        """Of each turn of the next batch, on the CPU; raises what `prepare` raised."""
        self._begin(1)
        taken = [self._ready[id(turn)].result() for turn in turns]
        for turn in turns:
            self._left[id(turn)] -= 1
            if not self._left[id(turn)]:
                del self._ready[id(turn)]
        return taken

    def _begin(self, num_batches: int) -> None:
        for turn in itertools.chain.from_iterable(itertools.islice(self._ahead, num_batches)):
            if id(turn) in self._ready:
                continue
            if self._pool:
                self._ready[id(turn)] = self._pool.submit(self._prepare, turn)
            else:
                self._ready[id(turn)] = Future()
                self._ready[id(turn)].set_result(self._prepare(turn))
