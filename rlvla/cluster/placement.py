"""Which actor gets which CPUs and GPUs: the bundles of a run's placement group, and each actor's place in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlvla.config import ClusterConfig


@dataclass(frozen=True, kw_only=True)
class Place:
    """What one actor reserves, and in which bundle."""

    bundle: int
    cpus: float
    gpus: float

    def options(self, group: PlacementGroup) -> dict[str, Any]:
        """As Ray's options of an actor. It sees the GPUs that it is given (CUDA_VISIBLE_DEVICES), all of one node."""
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=self.bundle)
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, "scheduling_strategy": strategy}


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where all actors of a run go. A bundle lies on one node."""

    bundles: Sequence[dict[str, float]]
    """Amount of `CPU` and `GPU` in each."""
    samplers: Sequence[Place]
    rollout_actors: Sequence[Place]
    learners: Sequence[Place]


def place(config: ClusterConfig, num_learners: int) -> Placement:
    """A bundle for each actor; where a learner rank reserves a share of a GPU, one whole GPU for it and a sampler.

    Two bundles of half a GPU each may lie on one GPU. As shares of a bundle of their own, a sampler's and a learner
    rank's do; and no two learner ranks, which NCCL refuses ("Duplicate GPU detected").

    Args:
        config: numbers of actors, and what each reserves.
        num_learners: ranks; 0 in an evaluation.

    Raises:
        ValueError: ranks share a GPU, and the shares or numbers do not make pairs; the message names the keys.
    """
    is_colocated = num_learners > 0 and 0 < config.learner_gpus < 1
    if is_colocated:
        _require_pairs(config, num_learners)
    bundles: list[dict[str, float]] = []

    def add(count: int, cpus: float, gpus: float) -> list[Place]:
        first = len(bundles)
        amounts = {"CPU": cpus, "GPU": gpus}
        bundles.extend({name: amount for name, amount in amounts.items() if amount} for _ in range(count))
        return [Place(bundle=first + i, cpus=cpus, gpus=gpus) for i in range(count)]

    samplers = add(config.num_samplers, config.sampler_cpus, config.sampler_gpus)
    rollout_actors = add(config.num_rollout_actors, config.rollout_cpus, 0.0)
    if is_colocated:
        pair = {"CPU": config.sampler_cpus + config.learner_cpus, "GPU": 1.0}
        bundles[: len(samplers)] = [pair for _ in samplers]
        learners = [
            Place(bundle=sampler.bundle, cpus=config.learner_cpus, gpus=config.learner_gpus) for sampler in samplers
        ]
    else:
        learners = add(num_learners, config.learner_cpus, config.learner_gpus)
    return Placement(bundles=bundles, samplers=samplers, rollout_actors=rollout_actors, learners=learners)


def _require_pairs(config: ClusterConfig, num_learners: int) -> None:
    ways_out = (
        "give each a share, together at most 1 (0.5 and 0.5), and as many samplers as learners; or each rank a GPU of "
        "its own (cluster.learner_gpus 1)"
    )
    says = f"cluster.learner_gpus is {config.learner_gpus:g}: a learner rank shares its GPU with one sampler, but"
    if config.num_samplers != num_learners:
        raise ValueError(
            f"{says} cluster.num_samplers is {config.num_samplers} and cluster.num_learners {num_learners}: {ways_out}"
        )
    if not 0 < config.sampler_gpus < 1 or round(config.sampler_gpus + config.learner_gpus, 4) > 1:
        raise ValueError(f"{says} cluster.sampler_gpus is {config.sampler_gpus:g}: {ways_out}")


def require_room(config: ClusterConfig, num_learners: int, there: Mapping[str, float], where: str) -> None:
    """See that what a machine or a cluster has, by Ray's names, is as much as all actors reserve.

    Raises:
        ValueError: it has less, or as `place` does; the message names the keys.
    """
    bundles = place(config, num_learners).bundles
    for name in ("CPU", "GPU"):
        wanted = round(sum(bundle.get(name, 0.0) for bundle in bundles), 4)
        if wanted > there.get(name, 0):
            kind = f"{name.lower()}s"
            raise ValueError(
                f"cluster: {config.num_samplers} samplers, {config.num_rollout_actors} rollout actors and "
                f"{num_learners} learners reserve {wanted:g} {kind}, {where} has {there.get(name, 0):g}: lower "
                f"cluster.*_{kind} or their numbers, or join a larger cluster (cluster.address)"
            )


def reserve(placement: Placement, config: ClusterConfig) -> PlacementGroup:
    """Ray's placement group of these bundles.

    Raises:
        ValueError: as `require_room` does.
        RuntimeError: the bundles do not fit onto the nodes.
    """
    require_room(config, len(placement.learners), ray.cluster_resources(), "the Ray cluster")
    group = placement_group(list(placement.bundles), strategy=config.placement)
    if not group.wait(60):
        raise RuntimeError(
            f"Ray could not place {placement.bundles} with cluster.placement {config.placement} within 60 s"
        )
    return group
