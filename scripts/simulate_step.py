"""Simulate steps of GRPO: against a finished run, or for GPUs that are not here.

python scripts/simulate_step.py check [--metrics docs/results/grpo_metrics.jsonl] [--costs docs/results/step_costs.json]
python scripts/simulate_step.py scale --config recipes/configs/grpo_openvla-oft_libero-10.yaml

`check` plays a run's steps again, with as many turns, zooms and tokens as its metrics tell and with costs that were
measured by themselves, and prints what it takes by phase beside what the run took. Both have to come from one machine,
the run from an idle one.

`scale` is what docs/scale.md shows: splits, placements and staleness for 8 and 64 GPUs, by data sheets.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import tyro

from rlvla.config import GRPOConfig, load
from rlvla.plan.costs import Machine, Simulated
from rlvla.plan.estimate import num_gpus
from rlvla.plan.measured import deviations, groups_of, of_metrics, read_costs, read_run
from rlvla.plan.plan import Rollout
from rlvla.plan.simulation import simulate
from rlvla.plan.text import duration
from rlvla.plan.world import of_env

ROOT = Path(__file__).resolve().parents[1]
BAND = 0.15
"""Deviation of a step that is taken for agreement."""
PHASES = ("seconds", "rollout_s", "tail_s", "learn_s", "sync_s")
COLUMNS = ("GPUs", "placement", "staleness", "step", "rollout", "tail", "learner", "sync", "idle")


def check(
    *,
    metrics: Path = ROOT / "docs/results/grpo_metrics.jsonl",
    costs: Path = ROOT / "docs/results/step_costs.json",
    benchmark: Path = ROOT / "docs/results/benchmark.json",
    config: Path = ROOT / "recipes/configs/grpo_tiny_tabletop.yaml",
    cores: float = 2,
) -> int:
    """Compare by phase; exit status 1 where a step deviates by more than 15 %.

    Args:
        metrics: `metrics.jsonl` of a run on CPUs. Steps that took more than twice the median are left out: something
            else ran beside them.
        costs: what scripts/benchmark/step_costs.py wrote.
        benchmark: what scripts/benchmark/grpo.py wrote, for learner and sync.
        config: of the run.
        cores: of its machine.
    """
    lines = read_run(metrics)
    usual = median(line["time/rollout_s"] + line["time/learn_s"] for line in lines)
    quiet = [line for line in lines if line["time/rollout_s"] + line["time/learn_s"] < 2 * usual]
    cfg = load(GRPOConfig, ["--config", str(config)])
    found = deviations(played_again(cfg, quiet, read_costs(costs, benchmark), cores), quiet)
    print(f"{len(quiet)} of {len(lines)} steps")
    for phase, (ours, theirs) in found.items():
        print(f"{phase:8s} simulated {ours:7.3f} s, measured {theirs:7.3f} s: {ours / theirs - 1:+.0%}")
    ours, theirs = found["step"]
    return int(abs(ours / theirs - 1) > BAND)


def played_again(cfg: GRPOConfig, lines: Sequence[dict[str, Any]], costs: Any, cores: float) -> Simulated:
    """The steps of these lines, one after another, on cores that engine, envs and learner share."""
    cluster, world = cfg.cluster, of_env(cfg)
    machine = Machine(
        num_slots=cluster.num_rollout_actors * cluster.envs_per_actor,
        num_samplers=cluster.num_samplers,
        max_num_seqs=cfg.sampler.max_num_seqs,
        cores=cores,
        engine_on_cores=True,
    )
    groups = [
        group
        for line in lines
        for group in groups_of(
            of_metrics(line),
            group_size=cfg.group_size,
            horizon=-(-world.max_env_steps // world.chunk_length),
            max_zooms=cfg.episode.max_tool_calls if cfg.episode.mode == "zoom" else 0,
            num_actions=world.chunk_length * world.action_size,
            at_once=world.acts_at_once,
            num_scenes=world.num_tasks or 1,
        )
    ]
    return simulate(costs, machine, groups, cfg.groups_per_step)


def scale(
    *,
    config: Path = ROOT / "recipes/configs/grpo_openvla-oft_libero-10.yaml",
    gpus: tuple[int, ...] = (8, 64),
    mode: str | None = None,
    kl: bool = True,
    graphs: bool = False,
) -> None:
    """Print a table of splits, placements and staleness.

    Args:
        config: GRPO config with `plan.architecture` and `plan.gpu`; paths count from the repository.
        gpus: in all.
        mode: instead of `episode.mode`.
        kl: with the KL term, hence with a reference that scores.
        graphs: with CUDA graphs instead of `sampler.enforce_eager`.
    """
    cfg = load(GRPOConfig, ["--config", str(config)])
    cfg = replace(
        cfg,
        episode=replace(cfg.episode, **({"mode": mode} if mode else {})),
        loss=replace(cfg.loss, kl_coef=cfg.loss.kl_coef if kl else 0.0),
        sampler=replace(cfg.sampler, enforce_eager=cfg.sampler.enforce_eager and not graphs),
    )
    rollout = Rollout(cfg)
    rows = (row(placed, rollout) for num in gpus for placed in placements(cfg, num))
    for cells in itertools.chain([COLUMNS, ("---",) * len(COLUMNS)], rows):
        print(f"| {' | '.join(cells)} |", flush=True)


def placements(cfg: GRPOConfig, num: int) -> Iterator[GRPOConfig]:
    """Colocated, and several splits apart with a staleness; 32 envs a GPU, but no more than episodes are out."""

    def placed(staleness: int, **keys: Any) -> GRPOConfig:
        out = (staleness + 1) * cfg.groups_per_step * cfg.group_size
        envs = {"num_rollout_actors": min(32 * num, out) // 2, "envs_per_actor": 2}
        return replace(cfg, max_staleness=staleness, cluster=replace(cfg.cluster, **envs, **keys))

    yield placed(0, sampler_gpus=0.5, learner_gpus=0.5, num_samplers=num, num_learners=num)
    for share in (1 / 4, 3 / 8, 1 / 2):
        num_samplers = round(num * share)
        for staleness in (0, 1, 2):
            yield placed(staleness, num_samplers=num_samplers, num_learners=num - num_samplers)


def row(cfg: GRPOConfig, rollout: Rollout) -> tuple[str, ...]:
    """One line of the table: means over the steps."""
    cluster, simulated, total = cfg.cluster, rollout.simulated(cfg), num_gpus(cfg)
    where = "colocated" if cluster.learner_gpus < 1 else f"{cluster.num_samplers} + {cluster.num_learners}"
    busy = cluster.num_samplers * simulated.sampler_busy + cluster.num_learners * simulated.learner_busy
    phases = (duration(simulated.mean(name)) for name in PHASES)
    return (str(total), where, str(cfg.max_staleness), *phases, f"{1 - busy / total:.0%}")


if __name__ == "__main__":
    sys.exit(tyro.extras.subcommand_cli_from_dict({"check": check, "scale": scale}, description=__doc__))
