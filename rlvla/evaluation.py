"""Evaluation as a protocol: held-out initial states, one trial each, and all that moves the result in the result."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlvla.cluster import Cluster
from rlvla.config import EvaluateConfig, provenance, write_resolved
from rlvla.episode import derive_seed
from rlvla.metrics import rollout_metrics, wilson_interval
from rlvla.rollout import Job, make_env, task_ids
from rlvla.storage import save_trajectories
from rlvla.types import EndReason, Group, TaskSpec, Trajectory


def evaluate(cfg: EvaluateConfig) -> dict[str, Any]:
    """Play `cfg.num_trials` held-out states of every task; write `summary.json` and some trajectories.

    Raises:
        FileNotFoundError: `model` names no checkpoint.
        ValueError: the env offers too few held-out states, or some that are also trained on.
    """
    if not (cfg.model / "config.json").is_file():
        raise FileNotFoundError(f"model: {cfg.model} holds no checkpoint; run recipes/sft.py or recipes/grpo.py first")
    names, tasks = _held_out(cfg)
    write_resolved(cfg, cfg.output)
    with Cluster(cfg) as cluster:
        started = time.perf_counter()
        trajectories = cluster.play([Job(task=task, member=0) for task in tasks])
        seconds = time.perf_counter() - started
    summary = summarise(names, trajectories) | {
        "protocol": _protocol(cfg),
        "seconds": round(seconds, 1),
        **provenance(),
    }
    (cfg.output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    save_trajectories(cfg.output / "trajectories.jsonl", _to_show(trajectories, cfg.save_trajectories))
    return summary


def summarise(task_names: dict[int, str], trajectories: Sequence[Trajectory]) -> dict[str, Any]:
    """Success with its interval per task and in all, and how the policy behaved."""
    by_task = {name: [t for t in trajectories if t.task.task_id == task_id] for task_id, name in task_names.items()}
    groups = [Group(task=t.task, trajectories=(t,)) for t in trajectories]
    latencies = [turn.latency_s for t in trajectories for turn in t.turns]
    behaviour = rollout_metrics(groups)
    return {
        **success_rate(trajectories),
        "tasks": {name: success_rate(members) for name, members in by_task.items()},
        "format_rate": behaviour["format_rate"],
        "tool_calls_per_turn": behaviour["tool_calls_per_turn"],
        "bad_call_rate": behaviour["bad_call_rate"],
        "tokens_per_decision": behaviour["response_tokens"],
        "latency_per_decision_s": {
            "p50": float(np.median(latencies)),
            "p95": float(np.quantile(latencies, 0.95)),
        },
        "ends": {name.removeprefix("end/"): v for name, v in behaviour.items() if name.startswith("end/")},
    }


def success_rate(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """`rate`, Wilson 95 % interval `low`, `high`, `num_trials` and `num_env_errors` (crashed, not counted)."""
    valid = [t for t in trajectories if t.end is not EndReason.ENV_ERROR]
    successes = sum(t.success for t in valid)
    low, high = wilson_interval(successes, len(valid))
    rate = successes / len(valid) if valid else float("nan")
    return {
        "rate": rate,
        "low": low,
        "high": high,
        "num_trials": len(valid),
        "num_env_errors": len(trajectories) - len(valid),
    }


def line(name: str, result: dict[str, Any]) -> str:
    """One line to read: `press 61.5 % [54.6, 68.0] of 200`."""
    return (
        f"{name:24s} {100 * result['rate']:5.1f} % "
        f"[{100 * result['low']:.1f}, {100 * result['high']:.1f}] of {result['num_trials']}"
    )


def _held_out(cfg: EvaluateConfig) -> tuple[dict[int, str], list[TaskSpec]]:
    env = make_env(cfg.env)
    tasks = []
    names = {task_id: env.task_names[task_id] for task_id in task_ids(env, cfg.env)}
    for task_id, name in names.items():
        states = list(env.init_state_ids(task_id, "evaluate"))[: cfg.num_trials]
        if len(states) < cfg.num_trials:
            raise ValueError(f"num_trials is {cfg.num_trials}, task {name!r} has {len(states)} held-out states")
        train = env.init_state_ids(task_id, "train")
        if leaked := [state for state in states if state in train]:
            raise ValueError(f"task {name!r}: initial states {leaked[:5]} are in the train split too")
        tasks += [
            TaskSpec(suite=env.suite, task_id=task_id, init_state_id=state, seed=derive_seed(cfg.seed, state))
            for state in states
        ]
    env.close()
    return names, tasks


def _protocol(cfg: EvaluateConfig) -> dict[str, Any]:
    return {
        "split": "evaluate",
        "trials_per_task": cfg.num_trials,
        "decoding": "greedy" if cfg.episode.temperature == 0 else f"sampled at {cfg.episode.temperature}",
        "use_zoom": cfg.episode.use_zoom,
        "use_thought": cfg.episode.use_thought,
        "concurrent_episodes": cfg.cluster.num_rollout_actors * cfg.cluster.envs_per_actor,
        "seed": cfg.seed,
    }


def _to_show(trajectories: Sequence[Trajectory], count: int) -> list[Trajectory]:
    """Failures and successes in turn, so that a report shows both."""
    failures = [t for t in trajectories if not t.success][: count // 2]
    successes = [t for t in trajectories if t.success][: count - len(failures)]
    return successes + failures
