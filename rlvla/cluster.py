"""Which processes run where: Ray, one placement group, and the actors of a run. On one machine or on many."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray.exceptions import RayActorError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlvla.config import ClusterConfig, EvaluateConfig, GRPOConfig
from rlvla.dispatch import Dispatcher, get_all, wait_for
from rlvla.interrupts import kept_handlers
from rlvla.prompt import vllm_obstacle
from rlvla.rollout import Job, RolloutActor, SamplerActor, most_images
from rlvla.types import Group, Trajectory
from rlvla.weight_sync import sync_weights

ENVIRONMENT = {"TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore", "LP_NUM_THREADS": "1"}
"""Of every actor: no chatter, and no thread storm of Mesa's software renderer."""
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", "VLLM_HOST_IP": "127.0.0.1"}
"""Likewise on one machine: what learner ranks and vLLM's workers tell each other stays on it."""


class ProcessLostError(RuntimeError):
    """A process died, or could not start, and the run cannot go on without it: the message says which."""


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
            mode=cfg.episode.mode,
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

    def changes(self) -> Any:
        """See `Learner.changes`."""
        return self.call("changes")


class Cluster:
    """The actors of one run. Use as a context manager, so that nothing outlives it."""

    def __init__(self, cfg: GRPOConfig | EvaluateConfig) -> None:
        """Start Ray (or join it), place and start samplers, rollout actors and, for GRPO, learners.

        Raises:
            ValueError: vLLM cannot serve the checkpoint; the message names the key that chooses another sampler.
            RuntimeError: the cluster does not have what the config reserves; the message lists both.
            ProcessLostError: an actor died or could not start; the message names it and says why.
        """
        config = cfg.cluster
        if cfg.sampler.backend == "vllm" and (reason := vllm_obstacle(cfg.model)):
            raise ValueError(reason)
        max_images = most_images(cfg.env, cfg.episode)
        self._owns_ray = start_ray(config)
        num_learners = config.num_learners if isinstance(cfg, GRPOConfig) else 0
        self._bundles = _bundles(config, num_learners)
        self.placement = _reserve(self._bundles, config, reserved(config, num_learners))
        self._next_bundle = 0
        self._max_restarts = config.max_restarts
        self._policy_version = 0
        self._names: dict[str, str] = {}
        model = cfg.model.resolve()
        self.samplers = [
            self._actor(
                SamplerActor,
                model,
                cfg.sampler,
                max_images=max_images,
                max_model_len=cfg.episode.max_turn_tokens + 1,  # behind a block of actions vLLM wants to sample a token
                seed=cfg.seed,
                lora=cfg.learner.lora if isinstance(cfg, GRPOConfig) else None,
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
        self._dispatcher = Dispatcher(self._rollout_actors, self._revive_samplers)
        self._learners: list[Any] = [self._actor(LearnerActor) for _ in range(num_learners)]
        try:
            self._wait_until_started(cfg)
        except BaseException:
            self._end()
            raise

    def _wait_until_started(self, cfg: GRPOConfig | EvaluateConfig) -> None:
        with self._naming_the_dead():
            if isinstance(cfg, GRPOConfig):
                master = ray.get(self._learners[0].address.remote())
                world = len(self._learners)
                get_all(
                    [
                        learner.start.remote(cfg, rank=rank, world=world, master=master)
                        for rank, learner in enumerate(self._learners)
                    ]
                )
            # What keeps an actor from starting is told now, not in the first rollout.
            self._revive_samplers()
            ray.get([wait_for(actor.is_ready) for actor in self._rollout_actors])

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None:  # whoever failed or was interrupted may be in the midst of something and would not answer
            self._close_actors()
        self._end()

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
        if cls is not LearnerActor:  # a rank that is started anew would not find its way into the process group
            options["max_restarts"] = self._max_restarts
        actor = ray.remote(cls).options(**options).remote(*args, **kwargs)
        self._names[actor._actor_id.hex()] = f"{cls.__name__} (cluster bundle {self._next_bundle})"
        self._next_bundle += 1
        return actor

    def play(self, jobs: Sequence[Job]) -> list[Trajectory]:
        """Play jobs on all rollout actors; trajectories in the jobs' order. Errors as of `stream`."""
        with self._naming_the_dead():
            trajectories = dict(self._dispatcher.stream(jobs))
        return [trajectories[index] for index in range(len(jobs))]

    def stream(self, jobs: Sequence[Job]) -> Iterator[Trajectory]:
        """Play jobs on all rollout actors; trajectories as they end.

        What a rollout actor had finished when it died is kept, and the rest played again by its successor; when a
        sampler dies, the episodes that it served are played again once its successor has the current weights.

        Raises:
            ProcessLostError: one of them died more than `cluster.max_restarts` times.
        """
        with self._naming_the_dead():
            for _, trajectory in self._dispatcher.stream(jobs):
                yield trajectory

    def take_resampled(self) -> list[Job]:
        """The jobs that were given out again since the last call because a process died, once for each time."""
        resampled, self._dispatcher.resampled = self._dispatcher.resampled, []
        return resampled

    def _revive_samplers(self) -> None:
        """Return when every sampler serves the current weights: the checkpoint's, or those of the last `sync`."""
        is_open = ray.get([wait_for(sampler.is_open) for sampler in self.samplers])
        closed = [sampler for sampler, serves in zip(self.samplers, is_open, strict=True) if not serves]
        if self._policy_version and closed:
            sync_weights(self._learners, closed, self._policy_version)
        ray.get([wait_for(sampler.open) for sampler in closed if not self._policy_version])

    def learn(self, groups: Sequence[Group]) -> dict[str, float]:
        """One learner step over all ranks; rank 0's metrics.

        Raises:
            ProcessLostError: a rank died.
        """
        return self._all_learners("step", ray.put(list(groups)))

    def sync(self, policy_version: int) -> None:
        """Give the samplers the learner's weights; raises ProcessLostError as `learn` and `stream` do."""
        self._policy_version = policy_version
        with self._naming_the_dead():
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
        with self._naming_the_dead():
            return get_all([learner.call.remote(method, *args) for learner in self._learners])[0]

    @contextmanager
    def _naming_the_dead(self) -> Iterator[None]:
        """Raise ProcessLostError where Ray says that an actor is gone for good."""
        try:
            yield
        except RayActorError as error:
            name = self._names.get(str(error.actor_id), "an actor")
            if error.actor_init_failed:
                raise ProcessLostError(f"{name} could not start: {error}") from error
            if name.startswith(LearnerActor.__name__):
                raise ProcessLostError(
                    f"{name} died: start the same command again, and the run resumes from its last checkpoint. {error}"
                ) from error
            raise ProcessLostError(
                f"{name} died more than {self._max_restarts} times (cluster.max_restarts): look into its log, then "
                f"start the same command again, and the run resumes from its last checkpoint. {error}"
            ) from error

    def close(self) -> None:
        """End every actor, give the reservation back, and end Ray if we started it."""
        self._close_actors()
        self._end()

    def _close_actors(self) -> None:
        closing = [actor.close.remote() for actor in (*self._rollout_actors, *self.samplers)]
        closing += [learner.call.remote("close") for learner in self._learners]
        for closed in closing:
            with suppress(RayActorError):  # one that has died has nothing left to close
                ray.get(closed)

    def _end(self) -> None:
        """Kill what runs, be it in the middle of something: a rank whose peer died waits for it forever."""
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


def reserved(config: ClusterConfig, num_learners: int) -> dict[str, float]:
    """CPUs and GPUs that all actors reserve together, by Ray's names."""
    counts = (config.num_samplers, config.num_rollout_actors, num_learners)
    amounts = {
        "CPU": (config.sampler_cpus, config.rollout_cpus, config.learner_cpus),
        "GPU": (config.sampler_gpus, 0.0, config.learner_gpus),
    }
    return {kind: sum(n * amount for n, amount in zip(counts, each, strict=True)) for kind, each in amounts.items()}


def _bundles(config: ClusterConfig, num_learners: int) -> list[dict[str, float]]:
    """What each actor reserves, in the order in which `Cluster` starts them."""
    sampler = {"CPU": config.sampler_cpus, "GPU": config.sampler_gpus}
    rollout = {"CPU": config.rollout_cpus}
    learner = {"CPU": config.learner_cpus, "GPU": config.learner_gpus}
    bundles = [sampler] * config.num_samplers + [rollout] * config.num_rollout_actors + [learner] * num_learners
    return [{name: amount for name, amount in bundle.items() if amount} for bundle in bundles]


def _reserve(bundles: list[dict[str, float]], config: ClusterConfig, wanted: dict[str, float]) -> PlacementGroup:
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
