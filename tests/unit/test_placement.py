"""Which actor gets which GPU: counted by hand, and as Ray gives out GPUs that are only declared."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray.util.placement_group import PlacementGroup, remove_placement_group

from rlvla.cluster.actors import SamplerActor
from rlvla.cluster.placement import Placement, place, require_room, reserve
from rlvla.config import ClusterConfig, SamplerConfig
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.protocols import SampleRequest
from rlvla.run import preflight
from rlvla.samplers.local import BatchedSampler
from rlvla.samplers.vllm.engine import engine_arguments

CPUS: dict[str, Any] = {"sampler_cpus": 0.1, "rollout_cpus": 0.1, "learner_cpus": 0.1}
SHARED: dict[str, Any] = {"sampler_gpus": 0.5, "learner_gpus": 0.5}


def test_a_pair_of_sampler_and_learner_has_a_whole_gpu_and_nobody_else_a_part_of_it() -> None:
    placement = place(ClusterConfig(num_samplers=2, num_rollout_actors=3, **CPUS, **SHARED), num_learners=2)
    assert placement.bundles == [{"CPU": 0.2, "GPU": 1.0}] * 2 + [{"CPU": 0.1}] * 3
    places = (placement.samplers, placement.rollout_actors, placement.learners)
    assert [[at.bundle for at in some] for some in places] == [[0, 1], [2, 3, 4], [0, 1]]
    assert [[at.gpus for at in some] for some in places] == [[0.5, 0.5], [0, 0, 0], [0.5, 0.5]]


def test_whole_gpus_are_apart_and_an_evaluation_has_no_pairs() -> None:
    apart = ClusterConfig(num_samplers=2, sampler_gpus=2, learner_gpus=1, **CPUS)
    assert [bundle.get("GPU") for bundle in place(apart, num_learners=3).bundles] == [2, 2, None, 1, 1, 1]
    require_room(apart, 3, {"CPU": 0.6, "GPU": 7}, "here")
    for name, wanted in (("CPU", "0.6 cpus"), ("GPU", "7 gpus")):
        with pytest.raises(ValueError, match=f"reserve {wanted}, here has 0.5"):
            require_room(apart, 3, {"CPU": 9, "GPU": 9, name: 0.5}, "here")
    assert [bundle.get("GPU") for bundle in place(ClusterConfig(num_samplers=3, **SHARED), 0).bundles] == [0.5] * 3 + [
        None
    ]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"num_samplers": 2, **SHARED},
            r"num_samplers is 2 and cluster.num_learners 1: .*as many samplers as learners",
        ),
        ({"learner_gpus": 0.5}, r"learner_gpus is 0.5: .*cluster.sampler_gpus is 0: give each a share"),
        ({"learner_gpus": 0.5, "sampler_gpus": 1}, r"cluster.sampler_gpus is 1: .*or each rank a GPU of its own"),
        ({"learner_gpus": 0.5, "sampler_gpus": 0.6}, r"cluster.sampler_gpus is 0.6: .*together at most 1"),
    ],
)
def test_shares_that_make_no_pairs_are_refused_by_name(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        place(ClusterConfig(**keys), num_learners=1)


def test_learner_ranks_that_would_meet_on_the_first_gpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(ValueError, match=r"learner_gpus is 0: all 2 learner ranks .* of this machine's 4 GPUs"):
        preflight._check_resources(ClusterConfig(num_learners=2, **CPUS), 1, num_learners=2)
    preflight._check_resources(ClusterConfig(num_learners=2, learner_gpus=1, **CPUS), 1, num_learners=2)


@pytest.fixture(scope="module")
def eight_gpus() -> Iterator[None]:
    """A Ray that is told of GPUs: it gives them out as real ones."""
    ray.init(num_cpus=8, num_gpus=8, include_dashboard=False, logging_level=logging.ERROR, _node_ip_address="127.0.0.1")
    yield
    ray.shutdown()


def visible() -> list[int]:
    """The GPUs that a process is given, by Ray and by what torch reads."""
    gpus = [int(gpu) for gpu in ray.get_gpu_ids()]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ",".join(map(str, gpus))
    return gpus


@contextmanager
def reserving(config: ClusterConfig, num_learners: int) -> Iterator[tuple[Placement, PlacementGroup]]:
    placement = place(config, num_learners)
    group = reserve(placement, config)
    yield placement, group
    remove_placement_group(group)


@pytest.mark.parametrize(
    ("config", "num_gpus"),
    [
        (ClusterConfig(num_samplers=4, **CPUS, **SHARED), 4),  # each learner with one sampler
        (ClusterConfig(sampler_gpus=2, learner_gpus=1, **CPUS), 6),  # a sampler with all that its engine spans
    ],
)
def test_ray_gives_what_was_placed(eight_gpus: None, config: ClusterConfig, num_gpus: int) -> None:
    """Each asks alone, in a process that is used again: a bundle has GPUs of its own, whoever runs in the others."""
    with reserving(config, 4) as (placement, group):
        look = ray.remote(visible)
        samplers, learners = (
            [ray.get(look.options(**at.options(group)).remote()) for at in places]
            for places in (placement.samplers, placement.learners)
        )
    assert (samplers == learners) == (config.learner_gpus < 1)
    assert [len(gpus) for gpus in learners] == [1] * 4
    assert {len(gpus) for gpus in samplers} == {max(1, config.sampler_gpus)}
    assert len({gpu for gpus in (*samplers, *learners) for gpu in gpus}) == num_gpus


def test_a_cluster_that_is_too_small_is_told_at_once(eight_gpus: None) -> None:
    config = ClusterConfig(sampler_cpus=999.0)
    with pytest.raises(ValueError, match=r"reserve 999.* cpus, the Ray cluster has 8: lower cluster"):
        reserve(place(config, 0), config)


def test_an_engine_that_spans_gpus_starts_its_workers_itself(tmp_path: Path) -> None:
    def backend(size: int) -> object:
        config = SamplerConfig(tensor_parallel_size=size)
        options: dict[str, Any] = {"max_images": 1, "max_model_len": 64, "seed": 0, "parallel_actions": False}
        return engine_arguments(tmp_path, config, **options)["distributed_executor_backend"]

    assert [backend(1), backend(2)] == [None, "mp"]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_an_engine_of_two_workers_serves_inside_a_placement_group(eight_gpus: None, checkpoint: Path) -> None:
    """vLLM finds the group of all actors there; its two workers run on the CPU here."""
    engine = SamplerConfig(tensor_parallel_size=2, max_num_seqs=2, kv_cache_mb=8)
    request = SampleRequest(
        prompt_ids=PolicyProcessor.load(checkpoint).prompt_ids("press the red pad", 1),
        images=(np.zeros((32, 32, 3), np.uint8),),
        stop_ids=(),
        max_tokens=8,
        temperature=0.0,
        seed=0,
    )
    with reserving(ClusterConfig(sampler_gpus=2, **CPUS), 0) as (placement, group):
        actor = ray.remote(**placement.samplers[0].options(group))(SamplerActor)
        sampler: Any = actor.remote(checkpoint, engine, max_images=1, max_model_len=128, seed=0)
        ray.get(sampler.open.remote())
        drawn: Any = ray.get(sampler.sample.remote(request))
        ray.get(sampler.close.remote())
        ray.kill(sampler)
    expected = asyncio.run(BatchedSampler(checkpoint).sample(request))
    assert drawn.token_ids.tolist() == expected.token_ids.tolist()
    assert drawn.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
