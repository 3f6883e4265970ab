"""Soak test: GRPO for an hour while a random fault strikes every minute; nothing may be lost, leak or hang.

python scripts/soak.py --model outputs/demo/sft/checkpoint [--minutes 60] [--calm 30] [--every 60] [--seed 0]
                       [--output outputs/soak]

Faults, all of them in random order before one comes again: an env process killed or hung, likewise the process that
envs are forked from, a rollout actor, a sampler, a learner or the driver killed, the driver preempted (SIGTERM) or
interrupted (SIGINT), a bit flipped in the newest checkpoint. A run that a fault has ended is started again with the
same command. Behind them comes a stretch without faults, for processes to live long enough to show whether their memory
grows. `soak.json` says what was struck, what became of every trajectory and of memory, `soak.svg` shows memory; the
exit code is 1 when something was lost, duplicated, orphaned or stuck, or memory grows.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from rlvla.config import provenance
from soak_report import chart, judge, memory_slopes, unexplained_ends
from soak_run import FAULTS, SoakRun

CONFIG: dict[str, Any] = {
    "env": {
        "id": "rlvla/Tabletop-v0",
        "tasks": ["press"],
        "kwargs": {"zoom_source": "render"},
        "deadline_s": 10.0,
        "reset_deadline_s": 60.0,
    },
    "episode": {"temperature": 0.6, "max_tool_calls": 3, "max_think_tokens": 40, "max_turn_tokens": 256},
    "cluster": {"envs_per_actor": 16, "envs_per_process": 4, "max_restarts": 1000},
    "reward": [{"fn": "success"}, {"fn": "format", "weight": 0.1}],
    "learner": {"lr": 1e-5},
    "groups_per_step": 4,
    "group_size": 4,
    "minibatch_trajectories": 16,
    "num_steps": 1_000_000,
    "save_every": 1,
}
"""Small steps, so that an hour has many, each followed by a checkpoint."""
LOOK_S = 2.0
"""Between two looks at the processes, seconds."""
STALL_S = 300.0
"""Without a new step for so long a run counts as stuck, seconds. Starting up takes half a minute, and an env that hangs
is noticed after `reset_deadline_s` at most."""
MAX_UNEXPLAINED = 3
"""Ends of the driver that no fault explains, after which the soak ends early."""


def main() -> None:
    """Strike for as long as asked, then write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="checkpoint to go on from, such as the demo's SFT")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--calm", type=float, default=30.0, help="minutes without faults behind those")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between faults, on average")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs/soak"))
    args = parser.parse_args()
    if args.output.exists():
        raise SystemExit(f"{args.output} exists: move it away, or name another folder with --output")
    args.output.mkdir(parents=True)
    config = args.output / "grpo.yaml"
    paths = {"model": str(args.model.resolve()), "output": str((args.output / "run").resolve())}
    config.write_text(yaml.safe_dump(CONFIG | paths))
    soak = Soak(run=SoakRun(config=config, output=args.output), rng=random.Random(args.seed), every=args.every)
    try:
        soak.go(60 * args.minutes, 60 * args.calm)
    finally:  # whatever broke off, what there is says why
        soak.run.kill()
        result = write_result(soak, args)
    print(json.dumps({key: value for key, value in result.items() if key not in ("events", "provenance")}, indent=2))
    if result["problems"]:
        sys.exit(1)


def write_result(soak: Soak, args: argparse.Namespace) -> dict[str, Any]:
    """`soak.json` and `soak.svg`; returns the former."""
    memory = memory_slopes(soak.run.samples)
    result = {
        "minutes": args.minutes,
        "calm_minutes": args.calm,
        "every_s": args.every,
        "seed": args.seed,
        "faults": dict(Counter(event["fault"] for event in soak.events if event["fault"] in FAULTS)),
        **judge(args.output / "run", soak.events, memory),
        "memory": memory,
        "events": soak.events,
        "provenance": provenance(),
    }
    (args.output / "soak.json").write_text(json.dumps(result, indent=2) + "\n")
    (args.output / "soak.svg").write_text(chart(soak.run.samples, soak.events))
    return result


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
        """Strike for `seconds`, let it run for `calm_s` more, then end the run as a preemption does."""
        began = self.run.began
        end = began + seconds + calm_s
        self._start()
        with tqdm(total=round(seconds + calm_s), unit="s", desc="soak", mininterval=5) as bar:
            while (now := time.monotonic()) < end and self._num_unexplained() < MAX_UNEXPLAINED:
                bar.update(round(now - began) - bar.n)
                time.sleep(LOOK_S)
                self._look()
                if now < began + seconds and self.next_fault is not None and now > self.next_fault:
                    self._strike()
        code = self.run.end()
        self._see_lines()
        self._note("end of soak", code=code, orphans=self.run.orphans(wait=True))

    def _start(self) -> None:
        self.run.start()
        self.moved, self.next_fault = time.monotonic(), None

    def _look(self) -> None:
        self.run.look()
        if orphans := self.run.orphans():
            self._note("orphans", orphans=orphans)
        self._see_lines()
        assert self.run.driver is not None
        if (code := self.run.driver.poll()) is not None:
            self._note("ended", code=code)
            self._start()
        elif time.monotonic() - self.moved > STALL_S:
            self._note("stuck")
            self.run.kill()

    def _see_lines(self) -> None:
        """Note steps that are gone, since the run went on from an older state, and whether there is a new one."""
        lines = self.run.lines()
        if gone := set(self.lines) - set(lines):
            self._note("rewound", steps=len(gone))
        if set(lines) - set(self.lines):
            self.moved = time.monotonic()
            if self.next_fault is None:
                self._plan_fault()
        self.lines = lines

    def _strike(self) -> None:
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

    def _num_unexplained(self) -> int:
        return len(unexplained_ends(self.events))

    def _note(self, fault: str, **details: Any) -> None:
        second = round(time.monotonic() - self.run.began, 1)
        self.events.append({"second": second, "step": len(self.lines), "fault": fault, **details})


if __name__ == "__main__":
    main()
