"""Some steps of GRPO as a discrete-event simulation: what waits for what, given what each thing costs by itself.

Env slots take episodes from one queue, longest expected first, of the scene that they have where there is one. Samplers
batch requests as vLLM does: all that wait are admitted at the next engine step. The learner takes whole groups in the
order of their tasks, and at most `(max_staleness + 1) * groups_per_step` groups are out at once. Behind each update
every sampler ends what runs and takes the weights; the state is written while rollouts go on.

Nothing here draws at random: the groups that are handed in decide all.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

from rlvla.plan.cores import Cores
from rlvla.plan.costs import Costs, Episode, Machine, Pass, Simulated, Step


def simulate(
    costs: Costs,
    machine: Machine,
    groups: Sequence[Sequence[Episode]],
    groups_per_step: int,
    *,
    max_staleness: int = 0,
    has_signal: Sequence[bool] | None = None,
    save_every: int = 0,
) -> Simulated:
    """Play all groups and learn from them, `groups_per_step` at a time.

    Args:
        costs: of each thing.
        machine: where it runs.
        groups: episodes of each group, in the order of their tasks; those that make no whole step are not learned from.
        groups_per_step: that a step takes.
        max_staleness: see the module.
        has_signal: by group; one without is dropped when it ends, and another given out at once. None: all have.
        save_every: steps between states; 0: none.

    Raises:
        ValueError: async samplers cannot share devices with the learner, or no step can be made of so few groups.
    """
    if machine.is_colocated and max_staleness:
        raise ValueError("max_staleness: samplers that sleep while the learner works roll nothing out meanwhile")
    if len(groups) < groups_per_step:
        raise ValueError(f"{len(groups)} groups make no step of {groups_per_step}")
    signal = has_signal or [True] * len(groups)
    return _Simulation(costs, machine, groups, groups_per_step, max_staleness, signal, save_every).run()


_Process = Generator["_Work", None, None]


@dataclass(frozen=True)
class _Work:
    """What a process waits for: CPU seconds, seconds, a request, or with none of them until it is woken."""

    cpu: float | None = None
    wait: float | None = None
    request: tuple[_Engine, Pass] | None = None


@dataclass(eq=False)
class _Engine:
    """One sampler: continuous batching."""

    waiting: deque[tuple[_Process, Pass]] = field(default_factory=deque)
    running: list[tuple[int, int, _Process]] = field(default_factory=list)
    num_steps: int = 0
    busy_s: float = 0.0
    is_awake: bool = False
    is_loading: bool = False
    process: _Process | None = None


class _Simulation:
    def __init__(
        self,
        costs: Costs,
        machine: Machine,
        groups: Sequence[Sequence[Episode]],
        groups_per_step: int,
        max_staleness: int,
        has_signal: Sequence[bool],
        save_every: int,
    ) -> None:
        self._costs, self._machine, self._groups = costs, machine, groups
        self._groups_per_step, self._limit = groups_per_step, (max_staleness + 1) * groups_per_step
        self._has_signal, self._save_every = has_signal, save_every
        self._step_s = [costs.step_s(num) for num in range(machine.max_num_seqs + 1)]
        self._now, self._count = 0.0, itertools.count()
        self._timers: list[tuple[float, int, _Process]] = []
        self._cores = Cores(machine.cores)
        self._engines = [_Engine() for _ in range(machine.num_samplers)]
        self._queue: dict[int, list[tuple[float, int, int, Episode]]] = {}
        self._idle = list(range(machine.num_slots))
        self._scenes: dict[int, int] = {}
        self._left = [len(group) for group in groups]
        self._begun = [0] * len(groups)
        self._given = self._released = self._decided = self._version = self._num_ended = 0
        self._ready: list[int] = []
        self._starved_at: float | None = None
        self._steps: list[Step] = []
        self._learner_s = 0.0
        self._learner_waits = False

    def run(self) -> Simulated:
        """Until nothing is left to happen."""
        for engine in self._engines:
            engine.process = self._serve(engine)
            next(engine.process)
        self._give()
        self._learner = self._learn()
        self._go_on(self._learner)
        while (until := min(self._timers[0][0] if self._timers else math.inf, self._cores.next_end())) < math.inf:
            is_timer = bool(self._timers) and self._timers[0][0] <= until
            self._now = until
            self._go_on(heapq.heappop(self._timers)[2] if is_timer else self._cores.pop(until))
        total, num = self._now or math.inf, self._machine.num_samplers
        return Simulated(
            steps=tuple(self._steps),
            num_episodes=self._num_ended,
            sampler_busy=sum(engine.busy_s for engine in self._engines) / num / total,
            learner_busy=self._learner_s / total,
            core_busy=self._cores.busy_s / self._machine.cores / total,
        )

    def _go_on(self, process: _Process) -> None:
        """Let a process run to where it waits next."""
        work = next(process, None)
        if work is None:
            return
        if work.cpu is not None:
            self._cores.add(self._now, work.cpu, process)
        elif work.wait is not None:
            heapq.heappush(self._timers, (self._now + work.wait, next(self._count), process))
        elif work.request is not None:
            engine, asked = work.request
            engine.waiting.append((process, asked))
            self._wake(engine)

    def _wake(self, engine: _Engine) -> None:
        if not engine.is_awake and engine.process is not None:
            engine.is_awake = True
            self._go_on(engine.process)

    # Rollouts

    def _give(self) -> None:
        """Groups into the queue, as many as may be out, and envs to them."""
        while self._given < len(self._groups) and self._given - self._released < self._limit:
            index = self._given
            self._given += 1
            self._begun[index] = self._version
            for episode in self._groups[index]:
                entry = (-episode.expected, next(self._count), index, episode)
                heapq.heappush(self._queue.setdefault(episode.scene, []), entry)
        self._starved_at = None
        idle, self._idle = self._idle, []
        for slot in idle:
            self._take(slot)

    def _take(self, slot: int) -> None:
        """The longest expected of the slot's scene, else of all."""
        scene = self._scenes.get(slot, -1)
        if scene not in self._queue:
            if not self._queue:
                self._idle.append(slot)
                return
            scene = min(self._queue, key=lambda name: self._queue[name][0][:2])
        *_, index, episode = heapq.heappop(self._queue[scene])
        if not self._queue[scene]:
            del self._queue[scene]
        self._go_on(self._play(slot, index, episode))

    def _play(self, slot: int, index: int, episode: Episode) -> _Process:
        costs, engine = self._costs, self._engines[slot % len(self._engines)]
        is_new = self._scenes.get(slot) != episode.scene
        self._scenes[slot] = episode.scene
        cpu_s = costs.reset_s + costs.scene_s * is_new  # what follows one another on a core, until the next request
        for turn in episode.turns:
            for asked in turn.passes:
                yield _Work(cpu=cpu_s + costs.request_s)
                yield _Work(request=(engine, asked))
                cpu_s = costs.zoom_s * asked.zooms
            cpu_s += costs.turn_s + costs.chunk_s * turn.chunk_share
        yield _Work(cpu=cpu_s)
        self._num_ended += 1
        self._left[index] -= 1
        if not self._left[index]:
            self._decide()
        self._take(slot)
        if self._starved_at is None and self._idle and self._idle[-1] == slot:
            self._starved_at = self._now

    def _decide(self) -> None:
        """Take the groups that have ended, in their order; drop those without signal, and let others begin."""
        num_released = self._released
        while self._decided < self._given and not self._left[self._decided]:
            if self._has_signal[self._decided]:
                self._ready.append(self._decided)
            else:
                self._released += 1
            self._decided += 1
        if self._released > num_released:
            self._give()
        if self._learner_waits and len(self._ready) >= self._groups_per_step:
            self._learner_waits = False
            self._go_on(self._learner)

    def _serve(self, engine: _Engine) -> _Process:
        """Engine steps while there is something to do; sleeps in between."""
        while True:
            if engine.is_loading and not engine.running:
                yield _Work(wait=self._costs.sync_s)
                engine.is_loading = False
                if not any(other.is_loading for other in self._engines):
                    self._go_on(self._learner)
                continue
            seconds = self._admit(engine)
            if not engine.running:
                engine.is_awake = False
                yield _Work()
                continue
            seconds += self._step_s[len(engine.running)]
            engine.busy_s += seconds
            yield _Work(cpu=seconds) if self._machine.engine_on_cores else _Work(wait=seconds)
            engine.num_steps += 1
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

    def _learn(self) -> _Process:
        started = saved_at = 0.0
        while True:
            while len(self._ready) < self._groups_per_step:
                self._learner_waits = True
                yield _Work()
            taken, self._ready = self._ready[: self._groups_per_step], self._ready[self._groups_per_step :]
            times = [started, self._now]
            tail_s = self._now - self._starved_at if self._starved_at is not None else 0.0
            yield _Work(wait=max(0.0, saved_at - self._now))
            times.append(self._now)
            yield from self._update(self._learn_s(taken))
            times.append(self._now)
            for engine in self._engines:
                engine.is_loading = True
            for engine in self._engines:
                self._wake(engine)
            yield _Work()
            times.append(self._now)
            staleness = max(self._version - self._begun[index] for index in taken)
            phases = [later - earlier for earlier, later in itertools.pairwise(times)]
            names = ("rollout_s", "save_wait_s", "learn_s", "sync_s")
            tail_s = min(tail_s, phases[0])
            self._steps.append(Step(**dict(zip(names, phases, strict=True)), tail_s=tail_s, staleness=staleness))
            self._version += 1
            if self._save_every and self._version % self._save_every == 0:
                saved_at = self._now + self._costs.save_s
            self._released += len(taken)
            started = self._now
            self._give()

    def _learn_s(self, taken: Sequence[int]) -> float:
        costs, episodes = self._costs, [episode for index in taken for episode in self._groups[index]]
        tokens = costs.learn_token_s * sum(episode.num_tokens for episode in episodes)
        return costs.learn_s + tokens + costs.learn_picture_s * sum(episode.num_pictures for episode in episodes)

    def _update(self, seconds: float) -> _Process:
        """The learner's work: on its own device, or as so many threads on the cores."""
        self._learner_s += seconds
        if not self._machine.learner_cores:
            yield _Work(wait=seconds)
            return
        threads = [self._thread(seconds) for _ in range(self._machine.learner_cores)]
        self._num_threads = len(threads)
        for thread in threads:
            self._go_on(thread)
        yield _Work()

    def _thread(self, seconds: float) -> _Process:
        yield _Work(cpu=seconds)
        self._num_threads -= 1
        if not self._num_threads:
            self._go_on(self._learner)
