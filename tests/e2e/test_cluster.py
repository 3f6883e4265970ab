"""Two Ray nodes on this machine: the recipe joins them by their address, and the actors spread over both."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster as RayNodes
from ray.util import placement_group_table

from rlvla.cluster.cluster import Cluster
from rlvla.config import ClusterConfig, EnvConfig, EpisodeConfig, EvaluateConfig, SamplerConfig
from rlvla.rollout.collect import Job, stream
from rlvla.rollout.tasks import TaskStream


@pytest.fixture
def two_nodes():
    nodes = RayNodes(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes.add_node(num_cpus=1)
    yield nodes.address
    ray.shutdown()
    nodes.shutdown()


@pytest.mark.timeout(300)
def test_one_run_on_two_nodes(two_nodes: str, tiny_policy: Path) -> None:
    config = ClusterConfig(
        address=two_nodes, placement="STRICT_SPREAD", sampler_cpus=1, rollout_cpus=1, envs_per_actor=2, threads=1
    )
    env = EnvConfig(tasks=("press",))
    tasks = TaskStream(config=env, seed=0)
    episode = EpisodeConfig(max_turn_tokens=96, max_think_tokens=8)
    sampler = SamplerConfig(backend="transformers")
    cfg = EvaluateConfig(model=tiny_policy, cluster=config, env=env, episode=episode, sampler=sampler)
    with Cluster(cfg) as cluster:
        jobs = [Job(task=task, member=member) for task in tasks.take(2) for member in range(2)]
        played = dict(stream(cluster, jobs))
        assert all(image.shape == (64, 64, 3) for t in played.values() for turn in t.turns for image in turn.images)
        nodes = {*placement_group_table(cluster.placement)["bundles_to_node_id"].values()}
    assert len(nodes) == 2
    assert played.keys() == {*jobs}
    assert all(turn.num_sampled_tokens for t in played.values() for turn in t.turns)
