"""GRPO over whole trajectories, from sparse task success: rollout -> score -> advantages -> learn -> sync -> again.

python recipes/grpo.py --config recipes/configs/grpo_tiny_tabletop.yaml [--dry-run]
"""

from __future__ import annotations

import rlvla_reward
from rlvla import plan
from rlvla.cluster.cluster import Cluster
from rlvla.config import GRPOConfig, load
from rlvla.durable.interrupts import Interrupts
from rlvla.learner.advantage import with_advantages
from rlvla.rollout.collect import collect
from rlvla.rollout.tasks import TaskStream
from rlvla.run.grpo import GRPORun
from rlvla.run.metrics import PhaseTimer, rollout_metrics
from rlvla.run.preflight import check_grpo
from rlvla.types import Group


def main(cfg: GRPOConfig) -> None:
    """Train for `cfg.num_steps` steps; an interrupted run goes on from its last checkpoint."""
    reward = rlvla_reward.build(cfg.reward)
    if cfg.dry_run:
        print(plan.of_grpo(cfg, reward.weights))
        return
    check_grpo(cfg)
    tasks = TaskStream(config=cfg.env, seed=cfg.seed)

    def judge(group: Group) -> Group:
        scored = reward.score(group)
        return with_advantages(scored, cfg.advantage, reward.weights, mask_context_full=cfg.mask_context_full)

    with Interrupts() as interrupts, GRPORun(cfg, reward) as run, Cluster(cfg) as cluster:
        interrupts.defer()
        first = run.resume(cluster, tasks)
        for step in run.progress(first):
            timer = PhaseTimer()
            with timer.phase("rollout"), run.droppable(step, cluster, tasks, interrupts):
                groups, sampled = collect(run.counted(step, cluster.play), tasks, run.judged(judge), cfg)
            run.require_signal(step, groups, sampled, cluster, tasks)
            with timer.phase("learn"):
                learned = cluster.learn(groups)
            with timer.phase("sync"):
                cluster.sync(policy_version=step + 1)
            metrics = {**rollout_metrics(sampled), **learned}
            run.log(step, metrics, timer)
            run.account(step, groups, sampled, cluster)
            run.guard(step, groups or sampled, metrics)
            run.keep(step, sampled, cluster, tasks)
        run.finish(cluster, tasks)


if __name__ == "__main__":
    main(load(GRPOConfig))
