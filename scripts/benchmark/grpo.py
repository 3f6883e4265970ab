"""How fast rlvla is on this machine, against what people would otherwise write, on one model and one set of envs.

python scripts/benchmark/grpo.py [--model outputs/demo/sft/checkpoint] [--output benchmark.json]

Measured, each as the median over `--repeats` runs after one warm-up:

- rollout: our Ray actors with vLLM, trajectories/s and env steps/s; against a lockstep rollout with
  `transformers.generate` as in SimpleVLA-RL (`lockstep.py` says exactly what it does), and against the same envs with
  random actions and no policy, which is the simulator's limit;
- learner: tokens/s of our DeepSpeed learner; against a plain torch loop over padded batches and against TRL's GRPO loss
  on the same tokens (`learners.py`), and the share that it reaches of the FLOP/s of plain matrix products (`gemm.py`);
- weight sync: seconds, and as a share of a whole step (rollout + learn + sync);
- what bounds the rollout: cores that envs, sampler and the rest kept busy in it (`--tasks press pick` for episodes of
  mixed length).

The learning rate is 0, so that every repeat runs the same policy while all the work of an update is done; a step is one
update.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import tyro

from cpu import busy_cores, told
from measuring import (
    ROOT,
    Run,
    checkpoint_name,
    measure,
    medians,
    set_environment,
    table,
    verdict,
    verdicts,
    write_result,
)
from rlvla.config import GRPOConfig, load


def main(
    *,
    model: Path = ROOT / "outputs/demo/sft/checkpoint",
    config: Path = ROOT / "recipes/configs/grpo_tiny_tabletop.yaml",
    tasks: tuple[str, ...] = (),
    num_trajectories: int = 64,
    repeats: int = 3,
    seed: int = 0,
    output: Path | None = None,
) -> None:
    """Measure, print the table, write the JSON.

    Args:
        model: policy checkpoint.
        config: GRPO config: env, limits, cluster, learner.
        tasks: instead of the config's, e.g. press pick: episodes of mixed length.
        num_trajectories: in one run; a multiple of the group size.
        repeats: measured runs of each kind.
        seed: of tasks and sampling.
        output: also write the result here, as JSON.
    """
    set_environment()
    name = checkpoint_name(model)
    cfg = configure(model, config, tasks, num_trajectories, repeats, seed)
    runs, facts = measure_all(cfg, repeats)
    result = summarise(runs) | facts | {"num_trajectories": num_trajectories, "repeats": repeats, "seed": seed}
    result |= {"model": name, "config": os.path.relpath(config.resolve(), ROOT), "tasks": list(cfg.env.tasks)}
    print(render(result))
    write_result(result, output, cfg.cluster.threads)


def configure(
    model: Path, config: Path, tasks: Sequence[str], num_trajectories: int, repeats: int, seed: int
) -> GRPOConfig:
    """The config of all measurements; raises SystemExit when it is wrong or the trajectories make no whole groups."""
    cfg = load(GRPOConfig, ["--config", str(config)])
    if repeats < 1:
        raise SystemExit(f"--repeats is {repeats}: measure at least once")
    if num_trajectories < 1 or num_trajectories % cfg.group_size:
        raise SystemExit(
            f"--num-trajectories is {num_trajectories}: {config} has groups of {cfg.group_size}, "
            "choose a multiple of that"
        )
    return replace(
        cfg,
        model=model,
        env=replace(cfg.env, tasks=tuple(tasks)) if tasks else cfg.env,
        groups_per_step=num_trajectories // cfg.group_size,
        minibatch_trajectories=num_trajectories,
        num_epochs=1,
        max_waves=1,
        learner=replace(cfg.learner, lr=0.0),
        num_steps=repeats + 1,
        seed=seed,
    )


def measure_all(cfg: GRPOConfig, repeats: int) -> tuple[dict[str, list[Run]], dict[str, Any]]:
    """Run everything, one after the other; the runs by name, and what else there is to say."""
    import torch
    import transformers

    from gemm import PlainGemm
    from learners import PaddedLearner, measure_trl
    from lockstep import LockstepRollout
    from ours import Ours, jobs_of, measure_simulator, num_decisions
    from rlvla.rollout.tasks import TaskStream

    transformers.utils.logging.disable_progress_bar()  # of loading weights; ours are enough
    stream = TaskStream(config=cfg.env, seed=cfg.seed)
    tasks = [stream.take(cfg.groups_per_step) for _ in range(repeats + 1)]
    jobs = [jobs_of(step, cfg.group_size) for step in tasks]
    with Ours(cfg) as ours:
        steps = measure("ours", repeats, lambda i: ours.step(tasks[i]))
        groups = ours.groups
    runs = {name: [step[name] for step in steps] for name in steps[0]}
    torch.set_num_threads(cfg.cluster.threads)  # as our sampler and learner
    runs["simulator"] = measure("bare simulator", repeats, lambda i: measure_simulator(cfg, jobs[i]))
    with LockstepRollout(cfg, num_rows=len(jobs[0])) as lockstep:
        runs["lockstep"] = measure("lockstep rollout", repeats, lambda i: lockstep.run(jobs[i]))
    horizon = num_decisions(cfg)
    learner = PaddedLearner(cfg)
    runs["padded"] = measure("padded learner", repeats, lambda i: learner.run_padded(groups[i], horizon))
    runs["longest"] = measure("longest-row learner", repeats, lambda i: learner.run_longest(groups[i]))
    runs["trl"], reason = measure_trl(cfg, lambda run: measure("TRL", repeats, lambda i: run(groups[i])))
    gemm = PlainGemm(cfg)
    runs["learner"] = [with_flop(run, gemm.flop(groups[i + 1])) for i, run in enumerate(runs["learner"])]
    tokens = [len(turn.token_ids) for group in groups[0] for t in group.trajectories for turn in t.turns]
    num_tokens = round(sum(tokens) / len(tokens) * cfg.learner.micro_batch_rows)
    runs["gemm"] = measure("plain products", repeats, lambda i: gemm.run(num_tokens))
    return runs, {"trl_reason": reason, "decisions_to_horizon": horizon}


def with_flop(run: Run, flop: float) -> Run:
    """The run, with what it had to compute."""
    return replace(run, counts={**run.counts, "flop": flop})


def summarise(runs: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """Medians, ratios, and verdicts on the targets.

    Args:
        runs: `step`, its parts `rollout`, `learner` and `sync`, and `lockstep`, `simulator`, `padded`, `longest`,
            `gemm`, and `trl`, which may be empty.
    """
    result: dict[str, Any] = {name: medians(of_name) if of_name else None for name, of_name in runs.items()}
    rollout, tokens = result["rollout"], result["learner"]["tokens_per_s"]
    result |= {
        "rollout_vs_lockstep": rollout["trajectories_per_s"] / result["lockstep"]["trajectories_per_s"],
        "rollout_vs_simulator": rollout["env_steps_per_s"] / result["simulator"]["env_steps_per_s"],
        "rollout_busy_cores": busy_cores(rollout),
        "learner_vs_gemm": result["learner"]["flop_per_s"] / result["gemm"]["flop_per_s"],
        "sync_seconds": median(result["sync"]["seconds"]),
        "sync_fraction": median(s.seconds / step.seconds for s, step in zip(runs["sync"], runs["step"], strict=True)),
    }
    for other in ("padded", "longest", "trl"):
        result[f"learner_vs_{other}"] = tokens / result[other]["tokens_per_s"] if result[other] else None
    return result | {"targets": verdicts(result)}


def render(result: Mapping[str, Any]) -> str:
    """The result in columns."""
    rows: list[tuple[object, ...]] = [("", "trajectories/s", "env steps/s", "tokens/s", "seconds", "ours is")]
    for name, ratio in (("rollout", ""), ("lockstep", "rollout_vs_lockstep"), ("simulator", "rollout_vs_simulator")):
        found = result[name]
        rows.append((name, found["trajectories_per_s"], found["env_steps_per_s"], "", "", _told(ratio, result)))
    for name in ("learner", "padded", "longest", "trl"):
        speed = f"{result[name]['tokens_per_s']:.0f}" if result[name] else "-"
        rows.append((name, "", "", speed, "", "" if name == "learner" else _told(f"learner_vs_{name}", result)))
    rows.append(("plain products", "", "", "", "", f"{result['learner_vs_gemm']:.1%} of their FLOP/s"))
    rows.append(("weight sync", "", "", "", result["sync_seconds"], _told("sync_fraction", result)))
    bound = f"\nrollout, {told(result['rollout_busy_cores'])}"
    return table(rows) + bound + (f"\nTRL was not measured: {result['trl_reason']}" if result["trl_reason"] else "")


def _told(name: str, result: Mapping[str, Any]) -> str:
    if not name or result[name] is None:
        return ""
    value = f"{result[name]:.2%} of a step" if name == "sync_fraction" else f"{result[name]:.2f}x"
    return value + verdict(name, result[name])


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
