"""Some steps of GRPO as a discrete-event simulation: what waits for what, given what each thing costs by itself.

Env slots take episodes from one queue, of the scene that they have where there is one. Samplers batch requests as vLLM
does: all that wait are admitted at the next engine step. The learner takes whole groups in the order of their tasks,
and at most `(max_staleness + 1) * groups_per_step` groups are out at once. Behind each update every sampler ends what
runs and takes the weights; the state is written while rollouts go on.

Nothing here draws at random: the groups that are handed in decide all.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlvla.plan.costs import Costs, Episode, Machine, Pass, Simulated, Step


def simulate(
    costs: Costs,
    machine: Machine,
    groups: Sequence[Sequence[Episode]],
    groups_per_step: int,
    *,
    max_staleness: int = 0,
    save_every: int = 0,
    settle: bool = False,
) -> Simulated:
    """Play all groups and learn from them, `groups_per_step` at a time.

    Args:
        costs: of each thing.
        machine: where it runs.
        groups: episodes of each group, in the order of their tasks; those that make no whole step are not learned from.
        groups_per_step: that a step takes.
        max_staleness: see the module.
        save_every: steps between states; 0: none.
        settle: leave out the first `max_staleness + 1` steps, whose groups are all given out at the start, and the last
            `max_staleness`, beside which no later ones are played.

    Raises:
        ValueError: no step is left of so few groups.
    """
    first, last = (max_staleness + 1, max_staleness) if settle else (0, 0)
    if len(groups) < (needed := (first + last + 1) * groups_per_step):
        raise ValueError(f"{len(groups)} groups, a step of {groups_per_step} needs {needed}")
    simulation = _Simulation(costs, machine, groups, groups_per_step, max_staleness, save_every)
    simulation.run()
    return simulation.result(first, last)


_Process = Generator[tuple[str, Any], None, None]
"""Yields what it waits for: "cpu" or "wait", seconds; "ask", (engine, request); "wake", None: to be let go on."""


@dataclass(eq=False)
class _Engine:
    """One sampler: continuous batching."""

    process: _Process = field(init=False)
    waiting: deque[tuple[_Process, Pass]] = field(default_factory=deque)
    running: list[tuple[int, int, _Process]] = field(default_factory=list)
    num_steps: int = 0
    busy_s: float = 0.0
    is_awake: bool = False
    is_loading: bool = False


class _Cores:
    """Equal shares for all. Time runs in work done by a job that was always there, so that ends keep their order."""

    def __init__(self, cores: float) -> None:
        self._cores, self._done, self._now = cores, 0.0, 0.0
        self._ends: list[tuple[float, int, Any]] = []
        self._count = itertools.count()

    def _rate(self) -> float:
        return min(1.0, self._cores / max(1, len(self._ends)))

    def _advance(self, now: float) -> None:
        self._done += (now - self._now) * self._rate()
        self._now = now

    def add(self, now: float, seconds: float, process: Any) -> None:
        """Begin a job of so many CPU seconds."""
        self._advance(now)
        heapq.heappush(self._ends, (self._done + seconds, next(self._count), process))

    def next_end(self) -> float:
        """When the next job ends, if none comes before that."""
        if not self._ends:
            return math.inf
        return self._now + max(0.0, self._ends[0][0] - self._done) / self._rate()

    def pop(self, now: float) -> Any:
        """The process whose job ends now."""
        self._advance(now)
        return heapq.heappop(self._ends)[2]


class _Simulation:
    def __init__(
        self,
        costs: Costs,
        machine: Machine,
        groups: Sequence[Sequence[Episode]],
        groups_per_step: int,
        max_staleness: int,
        save_every: int,
    ) -> None:
        self._costs, self._machine, self._groups = costs, machine, groups
        self._groups_per_step, self._limit = groups_per_step, (max_staleness + 1) * groups_per_step
        self._save_every = save_every
        self._step_s = [costs.step_s(num) for num in range(machine.max_num_seqs + 1)]
        self._now, self._count = 0.0, itertools.count()
        self._timers: list[tuple[float, int, _Process]] = []
        self._cores = _Cores(machine.cores)
        self._engines = [_Engine() for _ in range(machine.num_samplers)]
        for engine in self._engines:
            engine.process = self._serve(engine)
        self._learner = self._learn()
        self._queue: dict[int, deque[tuple[int, int, Episode]]] = {}
        self._idle = list(range(machine.num_slots))
        self._scenes: dict[int, int] = {}
        self._left = [len(group) for group in groups]
        self._begun = [0] * len(groups)
        self._given = 0
        self._awaited = range(0)
        self._starved_at = math.inf
        self._steps: list[Step] = []
        self._ends = [(0.0, 0.0)]

    def run(self) -> None:
        """Until nothing is left to happen."""
        self._give()
        self._go_on(self._learner)
        while (until := min(self._timers[0][0] if self._timers else math.inf, self._cores.next_end())) < math.inf:
            is_timer = bool(self._timers) and self._timers[0][0] <= until
            self._now = until
            self._go_on(heapq.heappop(self._timers)[2] if is_timer else self._cores.pop(until))

    def result(self, first: int, last: int) -> Simulated:
        """Without so many steps at both ends."""
        end = len(self._steps) - last
        steps = tuple(self._steps[first:end])
        seconds, busy_s = (b - a for a, b in zip(self._ends[first], self._ends[end], strict=True))
        return Simulated(
            steps=steps,
            sampler_busy=busy_s / len(self._engines) / seconds,
            learner_busy=sum(step.learn_s for step in steps) / seconds,
        )

    def _go_on(self, process: _Process) -> None:
        """Let a process run to where it waits next."""
        what: Any  # the kind says
        kind, what = next(process, ("wake", None))
        if kind == "cpu":
            self._cores.add(self._now, what, process)
        elif kind == "wait":
            heapq.heappush(self._timers, (self._now + what, next(self._count), process))
        elif kind == "ask":
            engine, asked = what
            engine.waiting.append((process, asked))
            self._wake(engine)

    def _wake(self, engine: _Engine) -> None:
        if not engine.is_awake:
            engine.is_awake = True
            self._go_on(engine.process)

    # Rollouts

    def _give(self) -> None:
        """Groups into the queue, as many as may be out, and envs to them."""
        num_steps = len(self._steps)
        for index in range(self._given, min(len(self._groups), num_steps * self._groups_per_step + self._limit)):
            self._given, self._begun[index] = index + 1, num_steps
            for episode in self._groups[index]:
                self._queue.setdefault(episode.scene, deque()).append((next(self._count), index, episode))
        self._starved_at = math.inf
        idle, self._idle = self._idle, []
        for slot in idle:
            self._take(slot)

    def _take(self, slot: int) -> None:
        """The next one of the slot's scene, else of all."""
        scene = self._scenes.get(slot, -1)
        if scene not in self._queue:
            if not self._queue:
                self._idle.append(slot)
                return
            scene = min(self._queue, key=lambda name: self._queue[name][0][0])
        _, index, episode = self._queue[scene].popleft()
        if not self._queue[scene]:
            del self._queue[scene]
        self._go_on(self._play(slot, index, episode))

    def _play(self, slot: int, index: int, episode: Episode) -> _Process:
        costs, engine = self._costs, self._engines[slot % len(self._engines)]
        is_new = self._scenes.get(slot) != episode.scene
        self._scenes[slot] = episode.scene
        cpu_s = costs.reset_s + costs.scene_s * is_new  # what follows one another on a core, until the next request
        for turn in episode.turns:
            for asked in turn:
                yield "cpu", cpu_s + costs.request_s
                yield "ask", (engine, asked)
                cpu_s = costs.zoom_s * asked.zooms
            cpu_s += costs.turn_s + costs.chunk_s
        yield "cpu", cpu_s
        self._left[index] -= 1
        self._take(slot)
        if self._idle and self._idle[-1] == slot:
            self._starved_at = min(self._starved_at, self._now)
        if index in self._awaited and not any(self._left[i] for i in self._awaited):
            self._go_on(self._learner)

    def _serve(self, engine: _Engine) -> _Process:
        """Engine steps while there is something to do; sleeps in between."""
        machine = self._machine
        while True:
            if engine.is_loading and not engine.running:
                yield "wait", self._costs.sync_s
                engine.is_loading = False
                if not any(other.is_loading for other in self._engines):
                    self._go_on(self._learner)
                continue
            seconds = self._admit(engine)
            if not engine.running:
                engine.is_awake = False
                yield "wake", None
                continue
            num_steps = min(machine.steps_at_once, engine.running[0][0] - engine.num_steps)
            seconds += num_steps * self._step_s[len(engine.running)]
            engine.busy_s += seconds
            yield "cpu" if machine.engine_on_cores else "wait", seconds
            engine.num_steps += num_steps
            while engine.running and engine.running[0][0] <= engine.num_steps:
                self._go_on(heapq.heappop(engine.running)[2])

    def _admit(self, engine: _Engine) -> float:
        """Begin what waits, as far as the batch has room; the seconds that their contexts take."""
        costs, seconds = self._costs, 0.0
        while engine.waiting and not engine.is_loading and len(engine.running) < self._machine.max_num_seqs:
            process, asked = engine.waiting.popleft()
            heapq.heappush(engine.running, (engine.num_steps + asked.num_steps, next(self._count), process))
            seconds += costs.admit_s + costs.new_token_s * asked.num_new_tokens + costs.picture_s * asked.num_pictures
        return seconds

    # Learner

    def _learn(self) -> _Process:
        saved_at = 0.0
        for first in range(0, len(self._groups) - self._groups_per_step + 1, self._groups_per_step):
            taken, times = range(first, first + self._groups_per_step), [self._now]
            if any(self._left[index] for index in taken):
                self._awaited = taken
                yield "wake", None
                self._awaited = range(0)
            times.append(self._now)
            tail_s = min(self._now - times[0], max(0.0, self._now - self._starved_at))
            yield "wait", max(0.0, saved_at - self._now)
            times.append(self._now)
            yield "wait", self._learn_s(taken)
            times.append(self._now)
            for engine in self._engines:
                engine.is_loading = True
            for engine in self._engines:
                self._wake(engine)
            yield "wake", None
            times.append(self._now)
            staleness = len(self._steps) - min(self._begun[index] for index in taken)
            names = ("rollout_s", "save_wait_s", "learn_s", "sync_s")
            phases = dict(zip(names, (b - a for a, b in itertools.pairwise(times)), strict=True))
            self._steps.append(Step(**phases, tail_s=tail_s, staleness=staleness))
            self._ends.append((self._now, sum(engine.busy_s for engine in self._engines)))
            if self._save_every and len(self._steps) % self._save_every == 0:
                saved_at = self._now + self._costs.save_s
            self._give()

    def _learn_s(self, taken: Sequence[int]) -> float:
        costs, episodes = self._costs, [episode for index in taken for episode in self._groups[index]]
        tokens = costs.learn_token_s * sum(episode.num_tokens for episode in episodes)
        return tokens + costs.learn_picture_s * sum(episode.num_pictures for episode in episodes)
