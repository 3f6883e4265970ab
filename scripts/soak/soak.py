"""Soak test: GRPO for an hour while a random fault strikes every minute; nothing may be lost, leak or hang.

python scripts/soak/soak.py --model outputs/demo/sft/checkpoint [--minutes 60] [--calm 30] [--seed 0]

Faults, all of them in random order before one comes again: an env process killed or hung, likewise the process that
envs are forked from, a rollout actor, a sampler, a learner or the driver killed, the driver preempted (SIGTERM) or
interrupted (SIGINT), a bit flipped in the newest checkpoint. A run that a fault has ended is started again with the
same command. Behind them comes a stretch without faults, for processes to live long enough to show whether their memory
grows. `soak.json` says what was struck, what became of every trajectory and of memory, `soak.svg` shows memory; the
exit code is 1 when something was lost, duplicated, orphaned or stuck, or memory grows.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

from rlvla.durable.provenance import provenance
from strikes import FAULTS, ROOT, SoakRun
from verdict import chart, judge, memory_slopes, unexplained_ends

STEPS = (
    *("--num-steps", "1000000", "--save-every", "1"),
    *("--groups-per-step", "4", "--group-size", "4", "--minibatch-trajectories", "16", "--learner.lr", "1e-5"),
    *("--env.deadline-s", "10", "--env.reset-deadline-s", "60", "--cluster.max-restarts", "1000"),
    *("--cluster.envs-per-actor", "16", "--cluster.envs-per-process", "4"),
)
"""Small steps, so that an hour has many, each followed by a checkpoint."""
LOOK_S = 2.0
"""Between two looks at the processes, seconds."""
STALL_S = 300.0
"""Without a new step for so long a run counts as stuck, seconds. Starting up takes half a minute, and an env that hangs
is noticed after `reset_deadline_s` at most."""
MAX_UNEXPLAINED = 3
"""Ends of the driver that no fault explains, after which the soak ends early."""


def main(
    *,
    model: Path,
    config: Path = ROOT / "recipes/configs/grpo_tiny_tabletop.yaml",
    minutes: float = 60.0,
    calm: float = 30.0,
    every: float = 60.0,
    max_staleness: int = 0,
    seed: int = 0,
    output: Path = Path("outputs/soak"),
) -> int:
    """Strike for as long as asked, then write the result; 1 when there is a problem.

    Args:
        model: checkpoint to go on from, such as the demo's SFT.
        config: of GRPO; `STEPS` overrides it.
        minutes: with faults, from the first step on.
        calm: minutes without faults behind those.
        every: seconds between faults, on average.
        max_staleness: of the run.
        seed: of the faults.
        output: folder to make.
    """
    if output.exists():
        raise SystemExit(f"{output} exists: move it away, or name another folder with --output")
    output.mkdir(parents=True)
    flags = ("--config", str(config), *STEPS, "--max-staleness", str(max_staleness), "--model", str(model))
    soak = Soak(run=SoakRun(flags=flags, output=output), rng=random.Random(seed), every=every)
    try:
        soak.go(60 * minutes, 60 * calm)
    finally:  # whatever broke off, what there is says why
        soak.run.kill()
        memory = memory_slopes(soak.run.samples)
        result = {
            **{
                "minutes": minutes,
                "calm_minutes": calm,
                "every_s": every,
                "max_staleness": max_staleness,
                "seed": seed,
            },
            "faults": dict(Counter(event["fault"] for event in soak.events if event["fault"] in FAULTS)),
            **judge(output / "run", soak.events, memory),
            "memory": memory,
        }
        whole = result | {"events": soak.events, "provenance": provenance()}
        (output / "soak.json").write_text(json.dumps(whole, indent=2) + "\n")
        (output / "soak.svg").write_text(chart(soak.run.samples, soak.events))
    print(json.dumps(result, indent=2))
    return int(bool(result["problems"]))


@dataclass(kw_only=True)
class Soak:
    """Runs, strikes, and writes down what follows."""

    run: SoakRun
    rng: random.Random
    every: float
    """Seconds between faults, on average."""
    events: list[dict[str, Any]] = field(default_factory=list)
    """Each with its second, the fault or what followed, and details."""
    lines: list[str] = field(default_factory=list)
    """Of the run's metrics when it was last looked at."""
    moved: float = 0.0
    """When there last was a new step."""
    bag: list[str] = field(default_factory=list)
    """Faults that are still to come before one comes again."""
    next_fault: float | None = None
    """None while the run starts up: a fault is to meet a step."""

    def go(self, seconds: float, calm_s: float) -> None:
        """From the first step on strike for `seconds`, let it run for `calm_s` more, then end it as a preemption."""
        self._start()
        began, has_begun = time.monotonic() + STALL_S, False
        with tqdm(total=round(seconds + calm_s), unit="s", desc="soak", mininterval=5) as bar:
            while (now := time.monotonic()) < began + seconds + calm_s:
                if len(unexplained_ends(self.events)) >= MAX_UNEXPLAINED:
                    break
                if self.lines and not has_begun:
                    began, has_begun = now, True
                bar.update(max(0, round(now - began) - bar.n))
                time.sleep(LOOK_S)
                self._look()
                if now < began + seconds and self.next_fault is not None and now > self.next_fault:
                    self.strike()
        code = self.run.end()
        self.see_lines()
        self._note("end of soak", code=code, orphans=self.run.orphans(wait=True))

    def _start(self) -> None:
        self.run.start()
        self.moved, self.next_fault = time.monotonic(), None

    def _look(self) -> None:
        self.run.look()
        if orphans := self.run.orphans():
            self._note("orphans", orphans=orphans)
        self.see_lines()
        if (code := self.run.driver.poll()) is not None:
            self._note("ended", code=code)
            self._start()
        elif time.monotonic() - self.moved > STALL_S:
            self._note("stuck")
            self.run.kill()

    def see_lines(self) -> None:
        """Note steps that are gone, since the run went on from an older state, and whether there is a new one."""
        lines = self.run.lines()
        if gone := set(self.lines) - set(lines):
            self._note("rewound", steps=len(gone))
        if set(lines) - set(self.lines):
            self.moved = time.monotonic()
            if self.next_fault is None:
                self._plan_fault()
        self.lines = lines

    def strike(self) -> None:
        """The next fault that is possible now."""
        if not self.bag:
            self.bag = self.rng.sample(sorted(FAULTS), len(FAULTS))
        for fault in self.bag:
            if deed := FAULTS[fault](self.run, self.rng):
                self.bag.remove(fault)
                self._note(fault, deed=deed)
                self._plan_fault()
                return

    def _plan_fault(self) -> None:
        self.next_fault = time.monotonic() + self.every * self.rng.uniform(0.5, 1.5)

    def _note(self, fault: str, **details: Any) -> None:
        second = round(time.monotonic() - self.run.began, 1)
        self.events.append({"second": second, "step": len(self.lines), "fault": fault, **details})


if __name__ == "__main__":
    raise SystemExit(tyro.cli(main, description=__doc__))
