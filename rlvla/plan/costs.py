"""What a simulation takes, episodes, what each thing costs by itself and what there is to run on, and what it gives."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One request to a sampler."""

    num_new_tokens: int
    """Of its context, those that are not in the prefix cache; of a block of actions, the slots."""
    num_pictures: int
    """New in this request."""
    num_steps: int
    """Engine steps until it ends: tokens of text, 1 for a block of actions."""
    zooms: bool = False
    """A zoom follows in the env."""


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One trajectory."""

    scene: int
    """A slot that has another one pays `Costs.scene_s`."""
    turns: tuple[tuple[Pass, ...], ...]
    """The requests of each; a chunk in the env follows them."""
    num_tokens: int = 0
    """Of its rows in the learner, contexts included."""

    @property
    def num_pictures(self) -> int:
        """Of its rows."""
        return sum(asked.num_pictures for turn in self.turns for asked in turn)


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds of each thing alone. CPU seconds are of one core; engine and learner seconds are of that device."""

    decode: tuple[tuple[float, float], ...]
    """(sequences, seconds) of an engine step, ascending; linear between and beyond."""
    reset_s: float = 0.0
    scene_s: float = 0.0
    chunk_s: float = 0.0
    """CPU, of a chunk with its pictures."""
    zoom_s: float = 0.0
    request_s: float = 0.0
    """CPU around a request: the decider, and Ray on both sides."""
    turn_s: float = 0.0
    """CPU around a turn, the chunk itself left out."""
    admit_s: float = 0.0
    """Engine, of a request: rendering and scheduling."""
    new_token_s: float = 0.0
    """Engine, of a token of a context."""
    picture_s: float = 0.0
    """Engine, of a new picture."""
    learn_token_s: float = 0.0
    """Learner, all ranks together, of a token of a row."""
    learn_picture_s: float = 0.0
    """The same of a picture."""
    sync_s: float = 0.0
    """From drained samplers to new weights in all of them."""
    save_s: float = 0.0
    """Of a state, written aside."""

    def step_s(self, num_sequences: int) -> float:
        """Seconds of an engine step."""
        points = self.decode
        if len(points) == 1:
            return points[0][1]
        i = min(max(bisect_left(points, (num_sequences, 0.0)), 1), len(points) - 1)
        (n0, s0), (n1, s1) = points[i - 1], points[i]
        return max(0.0, s0 + (num_sequences - n0) * (s1 - s0) / (n1 - n0))


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What there is to run on; the learner has devices of its own."""

    num_slots: int
    """Envs; slot i asks sampler i % num_samplers."""
    num_samplers: int = 1
    max_num_seqs: int = 64
    cores: float = math.inf
    """Shared in equal parts by all that computes on CPUs; none gets more than one."""
    engine_on_cores: bool = False
    """A sampler's steps take a core, instead of a device of its own."""
    steps_at_once: int = 1
    """Engine steps at most between two looks at what waits; above 1 coarser, and quicker to simulate."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step by phases, seconds; they add up to `seconds`."""

    rollout_s: float
    """The learner has waited so long for its groups."""
    save_wait_s: float
    """For the state before, which is still being written."""
    learn_s: float
    sync_s: float
    """Draining included."""
    tail_s: float
    """Of the rollout, with a slot that found no more work."""
    staleness: int
    """Learner steps between the begin of its oldest episode and its use."""

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.rollout_s + self.save_wait_s + self.learn_s + self.sync_s


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """What happened."""

    steps: tuple[Step, ...]
    sampler_busy: float
    """Share of the time that a sampler computed, over all of them."""
    learner_busy: float

    def mean(self, name: str) -> float:
        """Of a field of `Step`, over the steps."""
        return sum(getattr(step, name) for step in self.steps) / len(self.steps)
