"""Pictures of a step: prepared once, in other threads, ahead of their batch, and not kept longer than they are used."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlvla.learner import learner as learner_module
from rlvla.learner.pixels import THREADS, Pixels
from rlvla.policies.thinker.policy import Thinker
from rlvla.types import Turn
from tests.learning import learn, make_groups, make_learner

MODES: dict[str, dict[str, Any]] = {
    "one update": {"minibatch_trajectories": 6},
    "two epochs": {"minibatch_trajectories": 3, "num_epochs": 2},
    "half": {"minibatch_trajectories": 3, "dtype": "bfloat16"},
}


@pytest.mark.parametrize("num_threads", [0, 2])
@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
def test_a_step_prepares_each_turn_once_and_elsewhere(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], num_threads: int
) -> None:
    """Elsewhere than in the learner's thread, where it has a GPU."""
    monkeypatch.setattr(learner_module, "Pixels", lambda prepare, uses, _: Pixels(prepare, uses, num_threads))
    prepared: Counter[int] = Counter()
    threads: set[str] = set()
    pixels = Thinker.pixels

    def counted(self: Thinker, turn: Turn, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        prepared[id(turn)] += 1
        threads.add(threading.current_thread().name)
        return pixels(self, turn, dtype)

    monkeypatch.setattr(Thinker, "pixels", counted)
    groups = make_groups(checkpoint)
    learner = make_learner(checkpoint, **options)
    learner.step(groups)
    learner.close()
    turns = [turn for group in groups for t in group.trajectories[:3] for turn in t.turns]
    assert prepared == {id(turn): 1 for turn in turns}
    assert all(name.startswith("ahead") == (num_threads > 0) for name in threads)


@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
def test_nothing_changes_by_it(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    metrics, weights = learn(checkpoint, **options)
    monkeypatch.setattr(Pixels, "take", lambda self, turns: None)  # each batch by itself, in the learner's thread
    expected, others = learn(checkpoint, **options)
    assert all(np.array_equal(weight, others[name]) for name, weight in weights.items())
    timed = ("time/update_s", "time/save_s", "tokens_per_s")
    assert {n: v for n, v in metrics.items() if n not in timed} == {n: v for n, v in expected.items() if n not in timed}


def turns(num: int) -> list[Turn]:
    zeros: Any = np.zeros(0)
    return [
        Turn(token_ids=zeros, sampler_logprobs=zeros, segments=(), images=(), actions=zeros, policy_version=0)
        for _ in range(num)
    ]


def test_they_are_freed_at_their_last_use_and_prepared_no_further_than_said() -> None:
    alive: list[weakref.ref[torch.Tensor]] = []

    def prepare(turn: Turn) -> dict[str, torch.Tensor]:
        pixels = torch.zeros(1)
        alive.append(weakref.ref(pixels))
        return {"pixel_values": pixels}

    each = turns(8)
    with Pixels(prepare, [each[i : i + 1] for i in range(8)]) as pixels:
        for i, turn in enumerate(each):
            pixels.take([turn])
            begun, deadline = min(i + 1 + THREADS, 8), time.monotonic() + 30
            while len(alive) < begun and time.monotonic() < deadline:
                time.sleep(0.001)
            gc.collect()
            assert len(alive) == begun
            assert sum(ref() is not None for ref in alive) <= THREADS


def test_a_turn_of_several_batches_is_kept_for_the_last() -> None:
    prepared: list[Turn] = []

    def prepare(turn: Turn) -> dict[str, torch.Tensor]:
        prepared.append(turn)
        return {"pixel_values": torch.full((1,), float(len(prepared)))}

    one, other = turns(2)
    with Pixels(prepare, [[one, one], [other], [one]]) as pixels:
        taken = [pixels.take(batch) for batch in ([one, one], [other], [one])]
        assert not pixels._ready
    assert len(prepared) == 2
    assert taken[0][0] is taken[0][1] is taken[2][0]


def test_what_preparing_raises_reaches_the_learner() -> None:
    def refuse(turn: Turn) -> dict[str, torch.Tensor]:
        raise ValueError("no picture")

    (one,) = turns(1)
    with Pixels(refuse, [[one]]) as pixels, pytest.raises(ValueError, match="no picture"):
        pixels.take([one])
