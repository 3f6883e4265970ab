"""The pictures of a step as the model takes them: prepared once, ahead of the batch that needs them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeAlias

import torch

from rlvla.learner.ahead import ahead
from rlvla.types import Turn

THREADS = 2
"""That prepare pictures beside a GPU, a batch each, while another one is learned from."""

Prepared: TypeAlias = Mapping[str, torch.Tensor]


class Pixels:
    """Pixels of the turns of one step; use as a context manager, which frees them at its end.

    Main memory: a turn's pixels are held from `num_threads` batches before its first use to its last one. Of a rank
    with R rows, N pictures in a row and S bytes in a prepared picture (OpenVLA's two towers in bfloat16: 602 kB) that
    are R * N * S where a step scores its rows before the first of several updates, and (THREADS + 1) batches' where it
    makes one update, which uses each batch once.

    Args:
        prepare: of one turn; called once for each, in other threads.
        uses: the turns of each batch in the order in which `take` will be called, a batch that is used twice twice.
        num_threads: 0 prepares a batch when it is taken. Threads that share the CPUs with a forward's cost a third
            of its speed (2 cores): each operation waits for the slowest.
    """

    def __init__(
        self, prepare: Callable[[Turn], Prepared], uses: Sequence[Sequence[Turn]], num_threads: int = THREADS
    ) -> None:
        self._left = Counter(id(turn) for turns in uses for turn in turns)
        self._batches = ahead(_tasks(prepare, uses), num_threads)
        self._ready: dict[int, Prepared] = {}

    def __enter__(self) -> Pixels:
        return self

    def __exit__(self, *_: object) -> None:
        self._batches.close()
        self._ready.clear()

    def take(self, turns: Sequence[Turn]) -> list[Prepared]:
        """Of each turn of the next batch, on the CPU; raises what `prepare` raised."""
        self._ready |= next(self._batches)
        taken = [self._ready[id(turn)] for turn in turns]
        self._left.subtract(id(turn) for turn in turns)
        for key in {id(turn) for turn in turns if not self._left[id(turn)]}:
            del self._ready[key]
        return taken


def _tasks(
    prepare: Callable[[Turn], Prepared], uses: Sequence[Sequence[Turn]]
) -> Iterator[Callable[[], dict[int, Prepared]]]:
    """Of each batch: prepare the turns that none before has."""
    begun: set[int] = set()
    for turns in uses:
        new = {id(turn): turn for turn in turns if id(turn) not in begun}
        begun |= new.keys()
        yield partial(lambda turns: {key: prepare(turn) for key, turn in turns.items()}, new)
