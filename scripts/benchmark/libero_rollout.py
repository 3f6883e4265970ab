"""Whole episodes of LIBERO with a policy: ours, the rollout that peers use, and the bare simulator, in one run.

python scripts/benchmark/libero_rollout.py [--model outputs/sft_tiny_libero-object-parallel/checkpoint] [--output FILE]

The policy is any checkpoint that writes the markup; `make benchmark` makes a tiny one, which draws a chunk at once, as
SimpleVLA-RL's OpenVLA-OFT does. Its actions are sampled and then replaced by recorded ones (`replay.py`), so that
episodes end as those of a policy with `1 - failures` success: the scripted expert's, mean 92 env steps in
libero_object, or the horizon. All play the same episodes, on the same cores, with the same chunks, horizon, physics and
pictures (256 pixels, with reflections); states are equal to the bit.

- ours: Ray actors and vLLM, as in recipes/grpo.py;
- lockstep: SimpleVLA-RL's rollout with LIBERO's own env (`official.py`, `lockstep.py`): a process and an env made anew
  for each trajectory, two cameras at each env step, `transformers.generate` over the whole batch, all waiting for each
  other. `rollout_libero_vs_lockstep` = `vs_own_env` * `own_env_vs_lockstep`: what scheduling and engine bring, and what
  the env brings;
- own_env: the same lockstep loop with our env, to tell these two apart;
- simulator: our env processes without a policy, with as many pictures and zooms as the decisions of ours took, at the
  best of several numbers of processes. `libero_share_of_limit` is ours by that.

Each run, the one that warms up included, has initial states of its own: the engine's caches hold none of its prompts.
The warm-up, which is alike for all, is one batch of the lockstep.

CPU seconds are told by kind of process. `cpu_per_trajectory` is their sum: its ratio holds on a busy machine too.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tyro

import replay
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
from rlvla.rollout.collect import Job
from rlvla.types import EndReason, TaskSpec, Trajectory, derive_seed
from rlvla_envs.libero.camera import CAMERAS

TRAIN_STATES = 40
"""Of each task, docs/libero.md."""


def main(
    *,
    model: Path = ROOT / "outputs/sft_tiny_libero-object-parallel/checkpoint",
    config: Path = ROOT / "recipes/configs/grpo_tiny_libero-object.yaml",
    num_trajectories: int = 16,
    failures: float = 0.25,
    lockstep_rows: int = 8,
    envs: int = 8,
    limit_envs: tuple[int, ...] = (2, 3, 4),
    repeats: int = 1,
    seed: int = 0,
    output: Path | None = None,
) -> None:
    """Measure, print the table, write the JSON.

    Args:
        model: policy checkpoint.
        config: GRPO config: suite and tasks, limits of a turn, cluster.
        num_trajectories: in one run, whole batches of the lockstep; each from an initial state of its own, of which a
            task has 40 for all runs and the warm-up.
        failures: share of them that do not end before the horizon.
        lockstep_rows: trajectories of a batch of the lockstep, each in a process of 1 to 2 GB.
        envs: of ours, each in a process.
        limit_envs: numbers of processes that the bare simulator is tried with.
        repeats: measured runs of each kind.
        seed: of states and sampling.
        output: also write the result here, as JSON.
    """
    set_environment()
    name = checkpoint_name(model)
    if repeats < 1 or num_trajectories < 1 or num_trajectories % lockstep_rows or not 0 <= failures <= 1:
        raise SystemExit(
            f"--repeats {repeats}, --num-trajectories {num_trajectories}, --lockstep-rows {lockstep_rows}, --failures "
            f"{failures}: at least one run, of whole batches, with a share between 0 and 1"
        )
    with tempfile.TemporaryDirectory(prefix="benchmark-libero-") as folder:
        cfg = configure(load(GRPOConfig, ["--config", str(config)]), model, Path(folder) / "recording.npz", envs, seed)
        jobs = deal(draw_jobs(cfg, num_trajectories * (repeats + 1)), repeats, lockstep_rows)
        write_recording(cfg, jobs, failures)
        runs = measure_all(cfg, jobs, lockstep_rows, limit_envs)
    result = summarise(runs) | {"num_trajectories": num_trajectories, "failures": failures, "repeats": repeats}
    result |= {"lockstep_rows": lockstep_rows, "envs": envs, "seed": seed, "model": name, "tasks": list(cfg.env.tasks)}
    result["config"] = os.path.relpath(config.resolve(), ROOT)
    print(render(result))
    write_result(result, output, cfg.cluster.threads)


def configure(cfg: GRPOConfig, model: Path, recording: Path, envs: int, seed: int) -> GRPOConfig:
    """Of ours: the pictures that published policies see, and recorded actions."""
    kwargs = {key: value for key, value in cfg.env.kwargs.items() if key not in ("view_size", "reflections")}
    env = replace(
        cfg.env,
        id=replay.OURS,
        imports=(*cfg.env.imports, "replay"),
        kwargs={**kwargs, "recording": str(recording)},
    )
    cluster = replace(cfg.cluster, num_rollout_actors=1, envs_per_actor=envs, envs_per_process=1)
    # Nearly greedy: a malformed turn would end one loop's episode and not another's.
    episode = replace(cfg.episode, temperature=0.1)
    return replace(cfg, model=model, env=env, episode=episode, cluster=cluster, seed=seed)


def draw_jobs(cfg: GRPOConfig, number: int) -> list[Job]:
    """One job for each trajectory, task after task, hence group after group as a GRPO step has them.

    Each starts from another initial state: members of a group would all end at the same time.
    """
    from rlvla.rollout.env_server import make_env
    from rlvla.rollout.tasks import task_ids

    probe: Any = make_env(replace(cfg.env, id="rlvla/Libero-v0", kwargs=_bare(cfg)))
    ids = task_ids(probe, cfg.env)
    if number > len(ids) * TRAIN_STATES:
        raise SystemExit(
            f"--num-trajectories and --repeats: {number} initial states are needed, one for a trajectory of a run "
            f"and the warm-up, and {len(ids)} tasks have {len(ids) * TRAIN_STATES} train states"
        )
    drawn = [(ids[i * len(ids) // number], i) for i in range(number)]
    return [
        Job(
            task=TaskSpec(
                suite=probe.suite, task_id=task_id, init_state_id=i % TRAIN_STATES, seed=derive_seed(cfg.seed, i)
            ),
            member=0,
        )
        for task_id, i in drawn
    ]


def deal(jobs: Sequence[Job], repeats: int, warm_up: int) -> list[list[Job]]:
    """Those of the warm-up, as many as that, and those of each run, all of them from every task alike."""
    first, *others = (list(jobs[i :: repeats + 1]) for i in range(repeats + 1))
    return [first[:: len(first) // warm_up], *others]


def write_recording(cfg: GRPOConfig, runs: Sequence[Sequence[Job]], failures: float) -> None:
    """Play the expert; in each run this share of its episodes fails."""
    fails = {
        (job.task.task_id, job.task.init_state_id): int(failures * (i + 1)) > int(failures * i)
        for jobs in runs
        for i, job in enumerate(jobs)
    }
    episodes = sorted(fails)
    recording = replay.record(_bare(cfg), episodes, fails=[fails[episode] for episode in episodes])
    replay.write(Path(cfg.env.kwargs["recording"]), recording)


def measure_all(
    cfg: GRPOConfig, jobs: Sequence[Sequence[Job]], lockstep_rows: int, limit_envs: Sequence[int]
) -> dict[str, list[Run]]:
    """Run everything, one after the other, on jobs of `deal`; the runs by name."""
    import torch

    from lockstep import LockstepRollout
    from ours import Ours, measure_simulator

    played: list[list[Trajectory]] = []

    repeats = len(jobs) - 1

    def play(ours: Ours, index: int) -> Run:
        trajectories, run = ours.rollout(jobs[index])
        require_acted(trajectories)
        played.append(trajectories)
        return run

    with Ours(cfg) as ours:
        runs = {"ours": measure("ours", repeats, lambda i: play(ours, i))}
    num_cameras = len(cfg.env.kwargs.get("cameras", CAMERAS[:1]))
    zooms = [
        {i: [len(turn.images) - num_cameras for turn in t.turns] for i, t in enumerate(trajectories)}
        for trajectories in played
    ]
    tried = [
        measure(f"simulator, {num} envs", repeats, lambda i, num=num: measure_simulator(cfg, jobs[i], zooms[i], num))
        for num in limit_envs
    ]
    runs["simulator"] = max(tried, key=lambda of_one: medians(of_one)["trajectories_per_s"])
    torch.set_num_threads(cfg.cluster.threads)
    for name, env_id in {"own_env": replay.OURS, "lockstep": replay.OFFICIAL}.items():
        one = replace(cfg, env=replace(cfg.env, id=env_id))
        with LockstepRollout(one, lockstep_rows, renews_envs=True) as lockstep:
            runs[name] = measure(name, repeats, lambda i, lockstep=lockstep: lockstep.run(jobs[i]))
    return runs


def require_acted(trajectories: Sequence[Trajectory]) -> None:
    """Ask for another policy before the lockstep plays for half an hour.

    Raises:
        SystemExit: an episode ended in another way than its recorded actions do.
    """
    ends = Counter(t.end for t in trajectories if t.end not in (EndReason.SUCCESS, EndReason.MAX_ENV_STEPS))
    if ends:
        others = ", ".join(f"{num} {end.value}" for end, num in ends.items())
        raise SystemExit(
            f"--model: of {len(trajectories)} episodes ended {others}; name a policy that writes the markup"
        )


def summarise(runs: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """Medians, ratios, and verdicts on the targets.

    Raises:
        ValueError: the loops did not play the same episodes.
    """
    result: dict[str, Any] = {name: medians(of_name) for name, of_name in runs.items()}
    played = {name: result[name]["to_horizon"] for name in ("ours", "own_env", "lockstep")}
    if len(set(played.values())) > 1:
        raise ValueError(f"the episodes did not end alike: shares that reached the horizon are {played}")
    result["rollout_busy_cores"] = busy_cores(result["ours"])
    for name, of_name in runs.items():
        spent = [sum(v for key, v in run.facts.items() if key.startswith("cpu_s/")) for run in of_name]
        result[name]["cpu_per_trajectory"] = sum(spent) / sum(run.counts["trajectories"] for run in of_name)
    speeds = {name: result[name]["trajectories_per_s"] for name in runs}
    cpu_s = {name: result[name]["cpu_per_trajectory"] for name in runs}
    result |= {
        "rollout_libero_vs_lockstep": speeds["ours"] / speeds["lockstep"],
        "vs_own_env": speeds["ours"] / speeds["own_env"],
        "own_env_vs_lockstep": speeds["own_env"] / speeds["lockstep"],
        "libero_share_of_limit": speeds["ours"] / speeds["simulator"],
        "cpu_vs_lockstep": cpu_s["lockstep"] / cpu_s["ours"],
        "cpu_share_of_limit": cpu_s["simulator"] / cpu_s["ours"],
    }
    return result | {"targets": verdicts(result)}


def render(result: Mapping[str, Any]) -> str:
    """The result in columns."""
    rows: list[tuple[object, ...]] = [("", "trajectories/s", "env steps/s", "CPU s a trajectory", "of it, envs")]
    for name in ("ours", "own_env", "lockstep", "simulator"):
        found = result[name]
        share = found.get("cpu_s/envs", 0.0) / max(1e-9, sum(v for k, v in found.items() if k.startswith("cpu_s/")))
        rows.append((name, found["trajectories_per_s"], found["env_steps_per_s"], found["cpu_per_trajectory"], share))
    ratios = ("vs_own_env", "own_env_vs_lockstep", "cpu_vs_lockstep", "cpu_share_of_limit")
    lines = [f"ours, {told(result['rollout_busy_cores'])}", *(f"{name} {result[name]:.2f}" for name in ratios)]
    lines += [f"{name} {result[name]:.2f}{verdict(name, result[name])}" for name in result["targets"]]
    return "\n".join([table(rows), *lines])


def _bare(cfg: GRPOConfig) -> dict[str, Any]:
    """Arguments of `LiberoEnv` alone."""
    return {key: value for key, value in cfg.env.kwargs.items() if key != "recording"}


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
