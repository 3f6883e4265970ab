"""Which processes run where: Ray, one placement group, and the actors of a run. On one machine or on many."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlvla.config import ClusterConfig, EvaluateConfig, GRPOConfig
from rlvla.interrupts import kept_handlers
from rlvla.prompt import vllm_obstacle
from rlvla.rollout import Job, RolloutActor, SamplerActor
from rlvla.types import Group, Trajectory
from rlvla.weight_sync import sync_weights

ENVIRONMENT = {"TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore", "LP_NUM_THREADS": "1"}
"""Of every actor: no chatter, and no thread storm of Mesa's software renderer."""
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", "VLLM_HOST_IP": "127.0.0.1"}
"""Likewise on one machine: what learner ranks and vLLM's workers tell each other stays on it."""


class LearnerActor:
    """One DeepSpeed rank as a Ray actor."""

    def __init__(self) -> None:
        self._learner: Any = None

    def address(self) -> str:
        """`host:port`, free just now, where the ranks may meet."""
        host = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((host, 0))
            return f"{host}:{probe.getsockname()[1]}"

    def start(self, cfg: GRPOConfig, *, rank: int, world: int, master: str) -> None:
        """Join the process group and load the model."""
        import torch

        from rlvla.learner import Learner  # DeepSpeed, in the learner's process only

        torch.set_num_threads(cfg.cluster.threads)
        self._learner = Learner(
            cfg.model,
            cfg.learner,
            cfg.loss,
            temperature=cfg.episode.temperature,
            action_temperature=cfg.episode.action_temperature,
            total_steps=cfg.num_steps * cfg.num_epochs * cfg.minibatches_per_step,
            minibatch_trajectories=cfg.minibatch_trajectories,
            num_epochs=cfg.num_epochs,
            mask_context_full=cfg.mask_context_full,
            seed=cfg.seed,
            rank=rank,
            world=world,
            master=master,
        )

    def call(self, method: str, *args: Any) -> Any:
        """Run a method of the learner."""
        return getattr(self._learner, method)(*args)

    def weights(self) -> Any:
        """See `Learner.weights`."""
        return self.call("weights")


class Cluster:
    """The actors of one run. Use as a context manager, so that nothing outlives it."""

    def __init__(self, cfg: GRPOConfig | EvaluateConfig) -> None:
        """Start Ray (or join it), place and start samplers, rollout actors and, for GRPO, learners.

        Raises:
            ValueError: vLLM cannot serve the checkpoint; the message names the key that chooses another sampler.
            RuntimeError: the cluster does not have what the config reserves; the message lists both.
        """
        config = cfg.cluster
        if cfg.sampler.backend == "vllm" and (reason := vllm_obstacle(cfg.model)):
            raise ValueError(reason)
        self._owns_ray = start_ray(config)
        num_learners = config.num_learners if isinstance(cfg, GRPOConfig) else 0
        self._bundles = _bundles(config, num_learners)
        self.placement = _reserve(self._bundles, config)
        self._next_bundle = 0
        model = cfg.model.resolve()
        self.samplers = [
            self._actor(
                SamplerActor,
                model,
                cfg.sampler,
                max_images=1 + cfg.episode.max_tool_calls,
                max_model_len=cfg.episode.max_turn_tokens + 1,  # behind a block of actions vLLM wants to sample a token
                seed=cfg.seed,
            )
            for _ in range(config.num_samplers)
        ]
        self._rollout_actors = [
            self._actor(
                RolloutActor,
                self.samplers[i % config.num_samplers],
                model,
                cfg.env,
                cfg.episode,
                num_envs=config.envs_per_actor,
                envs_per_process=config.envs_per_process,
            )
            for i in range(config.num_rollout_actors)
        ]
        self._learners: list[Any] = [self._actor(LearnerActor) for _ in range(num_learners)]
        if self._learners:
            master = ray.get(self._learners[0].address.remote())
            ray.get(
                [
                    learner.start.remote(cfg, rank=rank, world=num_learners, master=master)
                    for rank, learner in enumerate(self._learners)
                ]
            )
        # What keeps an actor from starting is told now, not in the first rollout.
        ray.get([actor.__ray_ready__.remote() for actor in (*self.samplers, *self._rollout_actors)])

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Whoever failed or was interrupted may be in the midst of something and would not answer.
        self.close(is_asked=kind is None)

    def _actor(self, cls: type, *args: Any, **kwargs: Any) -> Any:
        """Start `cls` as an actor on the next bundle."""
        bundle = self._bundles[self._next_bundle]
        options = {
            "num_cpus": bundle["CPU"],
            "num_gpus": bundle.get("GPU", 0),
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                self.placement, placement_group_bundle_index=self._next_bundle
            ),
        }
        if cls is SamplerActor:  # every episode of every rollout actor may wait for it at once
            options["max_concurrency"] = 10_000
        self._next_bundle += 1
        return ray.remote(cls).options(**options).remote(*args, **kwargs)

    def play(self, jobs: Sequence[Job]) -> list[Trajectory]:
        """Play jobs on all rollout actors; trajectories in the jobs' order."""
        num = len(self._rollout_actors)
        parts = ray.get([actor.run.remote(jobs[i::num]) for i, actor in enumerate(self._rollout_actors)])
        trajectories: list[Any] = [None] * len(jobs)
        for i, part in enumerate(parts):
            trajectories[i::num] = part
        return trajectories

    def stream(self, jobs: Sequence[Job]) -> Iterator[Trajectory]:
        """Play jobs on all rollout actors; trajectories as they end."""
        num = len(self._rollout_actors)
        streams: list[Any] = [actor.stream.remote(jobs[i::num]) for i, actor in enumerate(self._rollout_actors)]
        while streams:
            ready: Any = ray.wait(streams, num_returns=1)[0][0]
            try:
                _, trajectory = ray.get(next(ready))
            except StopIteration:
                streams.remove(ready)
            else:
                yield trajectory

    def learn(self, groups: Sequence[Group]) -> dict[str, float]:
        """One learner step over all ranks; rank 0's metrics."""
        return self._all_learners("step", ray.put(list(groups)))

    def sync(self, policy_version: int) -> None:
        """Give the samplers the learner's weights."""
        sync_weights(self._learners, self.samplers, policy_version)

    def save(self, path: Path) -> None:
        """Write the policy in Hugging Face format."""
        self._all_learners("save", path.resolve())

    def save_state(self, path: Path) -> None:
        """Write all that an exact resume needs of the learner."""
        self._all_learners("save_state", path.resolve())

    def load_state(self, path: Path) -> None:
        """Go on from `save_state`."""
        self._all_learners("load_state", path.resolve())

    def _all_learners(self, method: str, *args: Any) -> Any:
        return ray.get([learner.call.remote(method, *args) for learner in self._learners])[0]

    def close(self, *, is_asked: bool = True) -> None:
        """End every actor, give the reservation back, and end Ray if we started it.

        Args:
            is_asked: let the actors close what they hold, before they are killed.
        """
        if is_asked:
            ray.get([actor.close.remote() for actor in (*self._rollout_actors, *self.samplers)])
            if self._learners:
                self._all_learners("close")
        for actor in (*self._rollout_actors, *self.samplers, *self._learners):
            ray.kill(actor)
        remove_placement_group(self.placement)
        if self._owns_ray:
            ray.shutdown()


def start_ray(config: ClusterConfig) -> bool:
    """Start Ray on loopback, or join the cluster at `config.address`; returns whether it is ours to shut down.

    Raises:
        ConnectionError: nothing answers at `cluster.address`; the message names it.
    """
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"logging_level": logging.ERROR, "runtime_env": {"env_vars": ENVIRONMENT}}
    if config.address == "local":
        options["runtime_env"] = {"env_vars": ENVIRONMENT | LOOPBACK}
        options |= {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
        # Else Ray takes the host's address in the place of loopback, and its processes listen on every interface.
        ray_constants.ENABLE_RAY_CLUSTER = False
    else:
        _require_answer(config.address)
    with kept_handlers():
        try:
            ray.init(address=config.address, **options)
        except ConnectionError as error:
            raise ConnectionError(f"cluster.address is {config.address!r}: {error}") from error
    return True


def _require_answer(address: str) -> None:
    """Raises ConnectionError where nobody listens at `host:port`; Ray itself would abort the process."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return  # `auto`
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ConnectionError(
            f"cluster.address is {address!r}, where nothing answers ({error}): start Ray there (ray start --head), or "
            "let the run start its own with cluster.address local"
        ) from error


def _bundles(config: ClusterConfig, num_learners: int) -> list[dict[str, float]]:
    """What each actor reserves, in the order in which `Cluster` starts them."""
    sampler = {"CPU": config.sampler_cpus, "GPU": config.sampler_gpus}
    rollout = {"CPU": config.rollout_cpus}
    learner = {"CPU": config.learner_cpus, "GPU": config.learner_gpus}
    bundles = [sampler] * config.num_samplers + [rollout] * config.num_rollout_actors + [learner] * num_learners
    return [{name: amount for name, amount in bundle.items() if amount} for bundle in bundles]


def _reserve(bundles: list[dict[str, float]], config: ClusterConfig) -> PlacementGroup:
    wanted = {name: sum(b.get(name, 0) for b in bundles) for name in ("CPU", "GPU")}
    there = ray.cluster_resources()
    if any(amount > there.get(name, 0) for name, amount in wanted.items()):
        raise RuntimeError(
            f"the config reserves {wanted}, the Ray cluster has CPU {there.get('CPU', 0)}, GPU {there.get('GPU', 0)}: "
            f"lower cluster.*_cpus / *_gpus or the number of actors, or join a larger cluster (cluster.address)"
        )
    group = placement_group(bundles, strategy=config.placement)
    if not group.wait(60):
        raise RuntimeError(f"Ray could not place {bundles} with cluster.placement {config.placement} within 60 s")
    return group
