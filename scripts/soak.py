"""Soak test: GRPO for an hour while a random fault strikes every minute; nothing may be lost, leak or hang.

python scripts/soak.py --model outputs/demo/sft/checkpoint [--minutes 60] [--every 60] [--seed 0] [--output FOLDER]

Faults: an env process killed or hung, the process that envs are forked from, a rollout actor, a sampler, a learner, the
driver killed, the driver preempted (SIGTERM), a bit flipped in the newest checkpoint. A run that a fault has ended is
started again with the same command. `soak.json` says what was struck, what became of every trajectory and of memory,
`soak.svg` shows memory; the exit code is 1 when something was lost, duplicated, orphaned or stuck.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from rlvla.config import provenance
from soak_report import chart, judge, memory_slopes
from soak_run import EXIT_S, FAULTS, SoakRun

CONFIG: dict[str, Any] = {
    "env": {"id": "rlvla/Tabletop-v0", "tasks": ["press"], "kwargs": {"zoom_source": "render"}, "deadline_s": 10.0},
    "episode": {"temperature": 0.6, "max_tool_calls": 3, "max_think_tokens": 40, "max_turn_tokens": 256},
    "cluster": {"envs_per_actor": 16, "envs_per_process": 4, "max_restarts": 1000},
    "reward": [{"fn": "success"}, {"fn": "format", "weight": 0.1}],
    "learner": {"lr": 1e-5},
    "groups_per_step": 4,
    "group_size": 4,
    "minibatch_trajectories": 16,
    "num_steps": 1_000_000,
    "save_every": 1,
    "plan": {"chunk_length": 5},
}
"""Small steps, so that an hour has many, each followed by a checkpoint."""
LOOK_S = 2.0
"""Between two looks at the processes, seconds."""
STALL_S = 300.0
"""Without a new step for so long a run counts as stuck, seconds; starting up takes half a minute."""


def main() -> None:
    """Strike for as long as asked, then write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="checkpoint to go on from, such as the demo's SFT")
    parser.add_argument("--minutes", type=float, default=60.0)
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
    run = SoakRun(config=config, output=args.output)
    events = soak(run, 60 * args.minutes, args.every, random.Random(args.seed))
    result = {
        "minutes": args.minutes,
        "every_s": args.every,
        "seed": args.seed,
        "faults": dict(Counter(event["fault"] for event in events if event["fault"] in FAULTS)),
        **judge(args.output / "run", events),
        "memory": memory_slopes(run.samples),
        "events": events,
        "provenance": provenance(),
    }
    (args.output / "soak.json").write_text(json.dumps(result, indent=2) + "\n")
    (args.output / "soak.svg").write_text(chart(run.samples, events))
    print(json.dumps({key: value for key, value in result.items() if key not in ("events", "provenance")}, indent=2))
    if result["problems"]:
        sys.exit(1)


def soak(run: SoakRun, seconds: float, every: float, rng: random.Random) -> list[dict[str, Any]]:
    """Run and strike; every event with its second, the fault or what followed, and details."""
    events: list[dict[str, Any]] = []

    def note(fault: str, **details: Any) -> None:
        events.append({"second": round(time.monotonic() - run.began, 1), "fault": fault, **details})

    run.start()
    next_fault = every * rng.uniform(0.5, 1.5)
    num_steps, moved = 0, run.began
    with tqdm(total=round(seconds), unit="s", desc="soak", mininterval=5) as bar:
        while (now := time.monotonic() - run.began) < seconds:
            bar.update(round(now) - bar.n)
            time.sleep(LOOK_S)
            run.look()
            assert run.driver is not None
            if (code := run.driver.poll()) is not None:
                note("ended", code=code, orphans=run.orphans())
                run.start()
                moved = time.monotonic()
            if (count := len(run.lines())) != num_steps:
                num_steps, moved = count, time.monotonic()
            elif time.monotonic() - moved > STALL_S:
                note("stuck", step=num_steps)
                run.driver.kill()
            if now > next_fault:
                fault = rng.choice(sorted(FAULTS))
                if deed := FAULTS[fault](run, rng):
                    note(fault, deed=deed, step=num_steps)
                    next_fault = now + every * rng.uniform(0.5, 1.5)
    note("end of soak", code=run.end(), orphans=run.orphans(), exit_s=EXIT_S)
    return events


if __name__ == "__main__":
    main()
