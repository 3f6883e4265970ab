"""A run of annotation that is killed and started again, for test_annotation_store: `python store_worker.py what ...`.

A process of its own, which forks, so that pyarrow and numpy are loaded once and not in each of sixty processes.
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import pandas as pd  # noqa: F401 (pyarrow loads it with its first array, which would be in each process)

from rlvla.annotation.store import Store
from rlvla.annotation.take import Reply, Tally
from rlvla.data import dataset
from rlvla.data.types import Demonstration, Provenance
from rlvla.types import Annotation
from tests import examples
from tests.killed import fork, is_over, kill_before_change

PROTOCOL = {"seed": 0, "names": ["a", "b"]}
SIDE = 64
dataset.ROWS_PER_FILE = 32


def demonstration(index: int, decision: int, reply: Reply) -> Demonstration:
    """What an expert did, by take and decision, with what was answered."""
    provenance = Provenance(annotator="test", attempts=2, rejected=("box",), seed=index)
    told = {"instruction": f"press pad {index % 3}", "annotation": reply.annotation, "provenance": provenance}
    return examples.demonstration(100 * index + decision, side=SIDE, **told, decision_index=decision)


def answer(index: int, decision: int, attempt: int) -> Reply:
    """A first answer that cannot be read, then one that can."""
    if not attempt:
        return Reply(annotation=None, error="no JSON", prompt_tokens=3, completion_tokens=1)
    thoughts = (f"take {index}", f"décision {decision}")
    return Reply(annotation=Annotation(thoughts=thoughts, looks=((0, (1, 2, 30, 40)),)), prompt_tokens=3)


def annotate(store: Store, index: int, asked: Path) -> Iterator[None]:
    """One take, an answer a step; each question leaves a line in `asked`."""
    if index % 7 == 3:
        return store.put_failure(index)
    answers, demonstrations, tally = store.answers(index), [], Tally()
    for decision in range(index % 4):  # sometimes none: all were dropped
        for attempt in range(2):
            reply = answers.get(decision, attempt)
            if reply is None:
                reply = answer(index, decision, attempt)
                with asked.open("a") as file:
                    file.write(f"{index} {decision} {attempt}\n")
                answers.add(decision, attempt, reply)
                yield
            if reply.annotation is not None:
                demonstrations.append(demonstration(index, decision, reply))
            tally += Tally(num_decisions=attempt, rejected={"box": 1}, prompt_tokens=reply.prompt_tokens)
    return store.put(index, demonstrations, tally)


def run(output: Path, num_takes: int) -> None:
    """All that is left to do, four takes at once, in an order that differs from process to process."""
    with Store(output, PROTOCOL) as store:
        if store.is_finished:
            return
        left = [i for i in range(num_takes) if i not in store.complete | store.failed]
        random.Random(os.getpid()).shuffle(left)
        takes = (annotate(store, index, output.with_suffix(".asked")) for index in left)
        running = list(islice(takes, 4))
        while running:
            take = running.pop(0)
            running += [take] if next(take, 0) is None else islice(takes, 1)
        card = f"{store.tally.num_decisions} decisions\n"
        store.finish(lambda folder: (folder / "README.md").write_text(card), robot="test", fps=2.0, suites=("s",))


def kill_at_every_file(output: Path, num_takes: int) -> int:
    """Kills before a change of a file or folder, one change later each; returns how many hit.

    The puts need few processes, each of which goes on from the last; assembling begins anew in each, so that a kill
    hits before every change that it makes.
    """
    assert is_over(fork(lambda: run(output.with_name("calm"), num_takes)))
    folder = output.with_name(f"{output.name}.partial")
    num_kills, num_changes, fewest = 0, 1, sys.maxsize
    while not is_over(fork(partial(_run_until, output, num_takes, num_changes))):
        num_kills += 1
        num_changes += 1  # each process gets one change further than the one before
        num_left = len(list(folder.rglob("*")))
        if output.exists() and num_left < fewest:  # what is to be removed now, is removed one by one
            num_changes, fewest = 3, num_left
    return num_kills


def _run_until(output: Path, num_takes: int, num_changes: int) -> None:
    kill_before_change(num_changes)
    run(output, num_takes)


def peak(output: Path, num_takes: int) -> float:
    """Most memory that a whole run takes, MiB."""
    run(output, num_takes)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    what = {"kills": kill_at_every_file, "peak": peak}[sys.argv[1]]
    print(json.dumps(what(Path(sys.argv[2]), int(sys.argv[3]))))
