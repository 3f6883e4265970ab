"""The output folder of a GRPO run: resolved config, metrics, checkpoints to resume from, the finished policy.

outputs/grpo/config.yaml identity.json provenance.json metrics.jsonl ids.jsonl started.jsonl summary.json lock
             trajectories.jsonl checkpoint/ state/step-000050/ (driver.json surplus.jsonl learner/ manifest.json)
"""

from __future__ import annotations

import itertools
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rlvla.cluster.cluster import Cluster
from rlvla.config import GRPOConfig, write_resolved
from rlvla.durable.files import claim, differences, hold, sync_lines, write_json
from rlvla.durable.interrupts import Interrupts
from rlvla.durable.random_state import random_state, seed_random, set_random_state
from rlvla.durable.sealed import appear_sealed, forget_old, newest_whole
from rlvla.durable.trajectories import load_trajectories, save_trajectories
from rlvla.policies.family import note_trained
from rlvla.protocols import Stateful
from rlvla.rollout.collect import Job, Play
from rlvla.rollout.tasks import TaskStream
from rlvla.run import disk, identity
from rlvla.run.ledger import Ledger
from rlvla.run.metrics import MetricsLogger, PhaseTimer, read_metrics
from rlvla.run.skipping import FutileCount, SkipCount
from rlvla.types import Group, Trajectory

SHOWN = ("success", "format_rate", "tool_calls_per_turn", "response_tokens", "kl", "mismatch_kl")
"""The metrics beside the progress bar."""


class GRPORun:
    """Where a run writes and from where it resumes.

    Args:
        cfg: of the run.
        reward: whose state is in the checkpoints.
    """

    def __init__(self, cfg: GRPOConfig, reward: Stateful) -> None:
        """Ready the output folder.

        Raises:
            FileNotFoundError: there is no checkpoint to start from; the message names `model`.
            OSError: `output` cannot be written to, or its disk is too full; the message names it.
            ValueError: another run writes there; likewise.
        """
        if not (cfg.model / "config.json").is_file():
            raise FileNotFoundError(f"model: {cfg.model} holds no checkpoint; run recipes/sft.py first")
        self._cfg = cfg
        self._reward = reward
        # What a group's rewards come from, the code as it is loaded now: its file may be edited while the run goes on.
        self._scored_by = identity.of(cfg, [field.name for field in fields(cfg) if field.name != "reward"])
        self._ledger = Ledger(cfg.output)
        self._started = time.perf_counter()
        self._saved = 0
        self._skipped = SkipCount(cfg.learner.max_skipped_steps)
        self._futile = FutileCount(cfg.max_futile_steps)
        claim(cfg.output, num_bytes=disk.of_grpo(cfg))
        hold(cfg.output)
        identity.note(cfg)
        write_resolved(cfg, cfg.output)

    def __enter__(self) -> GRPORun:
        self._logger = MetricsLogger(self._cfg.output, self._cfg.log)
        self._bar = tqdm(total=self._cfg.num_steps, desc="grpo", unit="step", dynamic_ncols=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        self._logger.close()

    def resume(self, cluster: Cluster, tasks: TaskStream) -> int:
        """Go on from the newest whole checkpoint under `state/`, if there is one; returns the first step to run."""
        newest = newest_whole(self._cfg.output / "state")
        if newest is None:
            seed_random(self._cfg.seed)
            self._ledger.rewind(0)
            return 0
        step, folder = newest
        cluster.load_state(folder / "learner")
        cluster.sync(policy_version=step)
        driver = json.loads((folder / "driver.json").read_text())
        tasks.surplus = self._surplus(folder / "surplus.jsonl", scored_by=driver["scored_by"])
        tasks.position = driver["position"]
        self._reward.load_state_dict(driver["reward"])
        set_random_state(driver["random"])
        self._logger.rewind(step)
        self._ledger.rewind(step)
        self._saved = step
        return step

    def _surplus(self, file: Path, scored_by: Any) -> list[Group]:
        """The groups that wait to be learned from; none where the reward has been changed, which gave them theirs."""
        groups = _regroup(load_trajectories(file))
        # A list is the config alone, of a state that an earlier version wrote.
        before = identity.flatten({"reward": scored_by}) if isinstance(scored_by, list) else scored_by
        if groups and differences(before, self._scored_by):
            warnings.warn(
                f"{file}: {len(groups)} groups were scored by another `reward` and are left out", stacklevel=3
            )
            return []
        return groups

    def counted(self, step: int, play: Play) -> Play:
        """`play`, and before that the ids of what it plays are written down."""
        batches = itertools.count()

        def counted(jobs: Sequence[Job]) -> list[Trajectory]:
            self._ledger.start(step, next(batches), [(job.task, job.member) for job in jobs])
            return play(jobs)

        return counted

    def judged(self, judge: Callable[[Group], Group]) -> Callable[[Group], Group]:
        """`judge`; the last group that it raised on, or gave a reward that is not finite, is in `bad_reward.jsonl`."""
        file = self._cfg.output / "bad_reward.jsonl"

        def judged(group: Group) -> Group:
            try:
                group = judge(group)
            except Exception:
                save_trajectories(file, group.trajectories)
                raise
            if not group.is_finite:
                save_trajectories(file, group.trajectories)
            return group

        return judged

    @contextmanager
    def droppable(self, step: int, cluster: Cluster, tasks: TaskStream, interrupts: Interrupts) -> Iterator[None]:
        """The part of a step that an interrupt cuts short: the step is dropped, and the state before it saved."""
        position, surplus = tasks.position, tasks.surplus
        before = json.dumps({"reward": self._reward.state_dict(), "random": random_state()})  # a copy to its depth
        try:
            with interrupts.immediate():
                yield
        except KeyboardInterrupt:
            if self._saved != step:
                tasks.position, tasks.surplus = position, surplus
                drawn = json.loads(before)
                self._reward.load_state_dict(drawn["reward"])
                set_random_state(drawn["random"])
                self._checkpoint(step, cluster, tasks)
            tqdm.write(f"stopped before step {step}: run the same command again to go on from there", sys.stderr)
            raise

    def require_signal(
        self, step: int, groups: Sequence[Group], sampled: Sequence[Group], cluster: Cluster, tasks: TaskStream
    ) -> None:
        """See that there is something to learn from; where the run stops, what it has learned and sampled is kept.

        Raises:
            RuntimeError: `max_futile_steps` in a row had nothing, or the first one nothing at all; the message says
                what was seen.
        """
        if self._futile.is_too_much(step, [*groups, *sampled]):
            file = self._cfg.output / f"bad_step_{step}.jsonl"
            save_trajectories(file, [t for group in sampled for t in group.trajectories])
            if self._saved != step:  # 0 where nothing has been learned
                self._checkpoint(step, cluster, tasks)
            raise self._futile.error(step, sampled, file)

    def guard(self, step: int, groups: Sequence[Group], metrics: Mapping[str, float]) -> None:
        """Keep what a step's skipped updates were to be made from, in `bad_step_<step>.jsonl`.

        A step that learned nothing, as groups were left out whose rewards are not finite, counts as one that skipped.

        Raises:
            FloatingPointError: it is one step in a row too many; the message names the file and the key.
        """
        if not metrics["skipped_updates"] and (metrics["num_rows"] or not metrics["groups_not_finite"]):
            self._skipped.forget()
            return
        file = self._cfg.output / f"bad_step_{step}.jsonl"
        save_trajectories(file, [t for group in groups for t in group.trajectories])
        self._skipped.add(step, file)

    def progress(self, first: int) -> Iterator[int]:
        """The steps from `first` on, shown as a bar."""
        self._bar.update(first)
        for step in range(first, self._cfg.num_steps):
            yield step
            self._bar.update()

    def log(self, step: int, metrics: Mapping[str, float], timer: PhaseTimer) -> None:
        """Write a step's metrics to every sink, rates and time by phase among them."""
        seconds = timer.metrics()
        trajectories_per_s = metrics["num_trajectories"] / seconds["time/rollout_s"]
        rates = {
            "trajectories_per_s": trajectories_per_s,
            # Absent when the simulator crashed in every trajectory.
            "env_steps_per_s": trajectories_per_s * metrics.get("num_env_steps", 0.0),
        }
        everything = {**metrics, **rates, **seconds}
        self._logger.log(step, everything)
        self._bar.set_postfix({name: f"{everything[name]:.3g}" for name in SHOWN if name in everything})

    def account(self, step: int, learned: Sequence[Group], sampled: Sequence[Group], cluster: Cluster) -> None:
        """Write the ids of a step's trajectories: learned from, sampled, begun again."""
        resampled = [(job.task, job.member) for job in cluster.take_resampled()]
        self._ledger.add(step, sampled=sampled, learned=learned, resampled=resampled)

    def keep(self, step: int, sampled: Sequence[Group], cluster: Cluster, tasks: TaskStream) -> None:
        """Keep some trajectories of the last step for the report, and checkpoint when it is due.

        In this order, since a run that goes on from the state of the last step has none to keep any more.
        """
        cfg = self._cfg
        if step + 1 == cfg.num_steps:
            trajectories = [t for group in sampled for t in group.trajectories[:1]]
            save_trajectories(cfg.output / "trajectories.jsonl", trajectories[: cfg.save_trajectories])
        if cfg.save_every and (step + 1) % cfg.save_every == 0:
            self._checkpoint(step + 1, cluster, tasks)

    def finish(self, cluster: Cluster, tasks: TaskStream) -> None:
        """Write the policy and `summary.json`."""
        with appear_sealed(self._cfg.output / "checkpoint") as folder:
            cluster.save(folder)
            note_trained(folder, tasks.suite)
        lines = read_metrics(self._logger.path)
        success = [value for line in lines if (value := line.get("success")) is not None]
        tenth = max(1, len(success) // 10)
        summary = {
            "steps": self._cfg.num_steps,
            "success_first": _mean(success[:tenth]),
            "success_last": _mean(success[-tenth:]),
            "minutes": round((time.perf_counter() - self._started) / 60, 2),
            "checkpoint": "checkpoint",
        }
        write_json(self._cfg.output / "summary.json", summary)

    def _checkpoint(self, step: int, cluster: Cluster, tasks: TaskStream) -> None:
        """Write all that an exact resume needs; interrupted at any moment, it is not there."""
        sync_lines(self._cfg.output)
        with appear_sealed(self._cfg.output / "state" / f"step-{step:06d}") as folder:
            cluster.save_state(folder / "learner")
            save_trajectories(folder / "surplus.jsonl", [t for group in tasks.surplus for t in group.trajectories])
            driver = {"position": tasks.position, "reward": self._reward.state_dict(), "random": random_state()}
            driver["scored_by"] = self._scored_by
            write_json(folder / "driver.json", driver)
        forget_old(self._cfg.output / "state", self._cfg.keep_states, written=step)
        self._saved = step


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _regroup(trajectories: Sequence[Trajectory]) -> list[Group]:
    """Trajectories saved group after group -> the groups."""
    groups: dict[tuple[int, int, int], list[Trajectory]] = {}
    for trajectory in trajectories:
        task = trajectory.task
        groups.setdefault((task.task_id, task.init_state_id, task.seed), []).append(trajectory)
    return [Group(task=members[0].task, trajectories=tuple(members)) for members in groups.values()]
