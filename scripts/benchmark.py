"""How fast rlvla is on this machine, against what people would otherwise write, on one model and one set of envs.

python scripts/benchmark.py [--model outputs/demo/sft/checkpoint] [--json benchmark.json]

Measured, each as the median over `--repeats` runs after one warm-up:

- rollout: our Ray actors with vLLM, trajectories/s and env steps/s; against a lockstep rollout with
  `transformers.generate` as in SimpleVLA-RL (`benchmark_lockstep.py` says exactly what it does), and against the same
  envs with random actions and no policy, which is the simulator's limit;
- learner: tokens/s of our DeepSpeed learner; against a plain torch loop over padded batches (`benchmark_padded.py`) and
  against TRL's GRPO loss on the same tokens (`benchmark_trl.py`);
- weight sync: seconds, and as a share of a whole step (rollout + learn + sync).

The learning rate is 0, so that every repeat runs the same policy while all the work of an update is done.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmark_result import Run, machine, software, summarise, table
from rlvla.config import GRPOConfig, load

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "recipes/configs/grpo_tiny_tabletop.yaml"


def _name(path: Path) -> str:
    """The path as seen from the repository, so that a result tells nothing of the machine's folders."""
    return os.path.relpath(path.resolve(), ROOT)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; raises SystemExit naming the option that is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "outputs/demo/sft/checkpoint", help="policy checkpoint")
    parser.add_argument("--config", type=Path, default=CONFIG, help="GRPO config: env, limits, cluster, learner")
    parser.add_argument("--tasks", nargs="+", help="instead of the config's, e.g. press pick: episodes of mixed length")
    parser.add_argument("--num-trajectories", type=int, default=64, help="in one run; a multiple of the group size")
    parser.add_argument("--repeats", type=int, default=3, help="measured runs of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of tasks and sampling")
    parser.add_argument("--json", type=Path, help="also write the result here")
    args = parser.parse_args(argv)
    if not (args.model / "config.json").is_file():
        parser.error(f"--model: {args.model} holds no checkpoint; run scripts/demo.py or recipes/sft.py first")
    if args.repeats < 1:
        parser.error(f"--repeats is {args.repeats}: measure at least once")
    return args


def configure(args: argparse.Namespace) -> GRPOConfig:
    """The config of all measurements; raises SystemExit when it is wrong or the trajectories make no whole groups."""
    cfg = load(GRPOConfig, ["--config", str(args.config)])
    if args.num_trajectories < 1 or args.num_trajectories % cfg.group_size:
        raise SystemExit(
            f"--num-trajectories is {args.num_trajectories}: {args.config} has groups of {cfg.group_size}, "
            "choose a multiple of that"
        )
    return replace(
        cfg,
        model=args.model,
        env=replace(cfg.env, tasks=tuple(args.tasks)) if args.tasks else cfg.env,
        groups_per_step=args.num_trajectories // cfg.group_size,
        minibatch_trajectories=min(cfg.minibatch_trajectories, args.num_trajectories),
        max_waves=1,
        learner=replace(cfg.learner, lr=0.0),
        num_steps=args.repeats + 1,
        seed=args.seed,
    )


def repeated(what: str, repeats: int, run: Callable[[int], Run]) -> list[Run]:
    """Run `run(0)` to warm up, then `run(1)` .. `run(repeats)`, which count; a bar shows the progress."""
    bar = tqdm(range(repeats + 1), desc=f"{what:20s}", unit="run", dynamic_ncols=True)
    return [run(i) for i in bar][1:]


def measure(cfg: GRPOConfig, repeats: int) -> dict[str, Any]:
    """Run everything, one after the other, and return the medians and ratios."""
    import torch
    import transformers

    from benchmark_lockstep import LockstepRollout
    from benchmark_ours import Ours, jobs_of, measure_simulator, num_decisions
    from benchmark_padded import PaddedLearner
    from benchmark_trl import measure_trl
    from rlvla.rollout.tasks import TaskStream

    transformers.utils.logging.disable_progress_bar()  # of loading weights; ours are enough
    stream = TaskStream(config=cfg.env, seed=cfg.seed)
    tasks = [stream.take(cfg.groups_per_step) for _ in range(repeats + 1)]
    jobs = [jobs_of(step, cfg.group_size) for step in tasks]
    runs: dict[str, list[Run]] = {}
    with Ours(cfg) as ours:
        runs["step"] = repeated("ours", repeats, lambda i: ours.step(tasks[i]))
        steps = ours.groups
    torch.set_num_threads(cfg.cluster.threads)  # as our sampler and learner
    runs["simulator"] = repeated("bare simulator", repeats, lambda i: measure_simulator(cfg, jobs[i]))
    with LockstepRollout(cfg, num_rows=len(jobs[0])) as lockstep:
        runs["lockstep"] = repeated("lockstep rollout", repeats, lambda i: lockstep.run(jobs[i]))
    horizon = num_decisions(cfg)
    learner = PaddedLearner(cfg)
    runs["padded"] = repeated("padded learner", repeats, lambda i: learner.run_padded(steps[i], horizon))
    runs["longest"] = repeated("longest-row learner", repeats, lambda i: learner.run_longest(steps[i]))
    trl, reason = measure_trl(cfg, lambda run: repeated("TRL", repeats, lambda i: run(steps[i])))
    runs["trl"] = trl
    return summarise(runs) | {"trl_reason": reason, "decisions_to_horizon": horizon}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the JSON."""
    args = parse(argv)
    cfg = configure(args)
    # Before torch, Mesa and transformers are loaded: as `rlvla.cluster.cluster` sets them for its actors.
    os.environ.setdefault("LP_NUM_THREADS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    result = measure(cfg, args.repeats) | {
        "num_trajectories": args.num_trajectories,
        "repeats": args.repeats,
        "seed": args.seed,
        "model": _name(args.model),
        "config": _name(args.config),
        "tasks": list(cfg.env.tasks),
        "machine": machine(cfg.cluster.threads),
        **software(),
    }
    print(table(result))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=2) + "\n")
        print(f"written to {args.json}")


if __name__ == "__main__":
    main()
