"""A GPU run before there is one: assumed episodes, and costs from data sheets and stated shares of them.

Measured ones take their place where there are any (`rlvla.plan.measured`). Every number here that is not a data sheet's
is assumed, or says where it was measured.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from rlvla.config import EpisodeConfig, GRPOConfig
from rlvla.plan.costs import Costs, Decision, Episode, Machine, Pass
from rlvla.plan.memory import BYTES
from rlvla.plan.model import ModelFigures
from rlvla.plan.simulation import Simulated, simulate
from rlvla.plan.turn import DEVICES, REACHED, TurnTokens, flop, num_forwards
from rlvla.plan.world import World

DECODE_REACHED = 0.6
"""Share of a device's memory bandwidth that decoding reaches; assumed."""
LINK_REACHED = 0.8
"""Share of a link's bandwidth that NCCL reaches in buckets of 256 MiB; assumed."""
NETWORK = 50e9
"""Between nodes, bytes/s for each GPU: InfiniBand NDR, 400 Gbit/s; assumed."""
DISK = 2e9
"""Bytes/s that a node writes; assumed, of a local NVMe disk."""
GPUS_PER_NODE = 8
EAGER_LAYER_S = 5e-4
"""Launching the kernels of a block without CUDA graphs, which a small batch waits for; assumed."""
REPLAY_S = 1e-3
"""Of a step of the engine beside the model: scheduling, and with CUDA graphs the replay; assumed."""
SLEEP_S = 2.0
"""A colocated sampler gives its memory back and takes it again; assumed."""
REQUEST_S, TURN_S = 2e-3, 2e-3
"""CPU around a request and a turn; scripts/benchmark/step_costs.py measures them."""


@dataclass(frozen=True, kw_only=True)
class EnvCosts:
    """Of an env on one core, seconds."""

    reset_s: float
    scene_s: float
    step_s: float
    zoom_s: float
    memory_gib: float
    """Of one env with its renderer, less what it has before its first scene."""


ENV_COSTS = {
    # docs/results/libero_benchmark.json: one camera, 43.3 env steps/s, reset 0.23 s; the second camera 14 ms a picture.
    # check_libero.py builds, resets, steps and renders 130 tasks in 8.1 minutes of CPU time. Memory: median over
    # them, as they change; 1.3 to 1.8 GiB while a process stays in a task.
    "rlvla/Libero-v0": EnvCosts(reset_s=0.23, scene_s=3.5, step_s=1 / 43.3, zoom_s=0.014, memory_gib=2.0),
    # docs/results/benchmark.json: 762 env steps/s on two cores, resets among them. Memory: 17 MB among eight.
    "rlvla/Tabletop-v0": EnvCosts(reset_s=2 / 762, scene_s=0.0, step_s=2 / 762, zoom_s=2 / 762, memory_gib=0.02),
}
"""By env id, measured on cores of an AMD EPYC without a GPU."""


@dataclass(frozen=True, kw_only=True)
class Habits:
    """What a policy is assumed to do with its limits."""

    thought: float = 0.5
    """Length of a thought or call, of what it may have."""
    zoom: float = 0.5
    """Zooms of a turn, of what it may make."""
    success: float = 0.5
    """Episodes that end before their horizon."""
    earliest: float = 0.3
    """They do so anywhere from here to the end, of the horizon."""

    def __str__(self) -> str:
        """To print."""
        return (
            f"assumed: thoughts and calls {self.thought:.0%} of their limits, zooms {self.zoom:.0%}; "
            f"{self.success:.0%} of the episodes succeed, {self.earliest:.0%} to 100% of the horizon in"
        )


HABITS = Habits()


def assumed_turn(
    figures: ModelFigures, turn: TurnTokens, world: World, episode: EpisodeConfig, habits: Habits, num_zooms: int
) -> tuple[Decision, int]:
    """A turn with so many zooms, and the tokens of its row."""
    image, thought = figures.tokens_per_image, round(habits.thought * episode.max_think_tokens) + 2
    call = round(habits.thought * turn.call)
    think = thought if episode.mode != "act" else 0
    num_actions = world.chunk_length * world.action_size
    contexts = [turn.prompt, *[image + 2] * num_zooms]
    texts = [*[think + call] * num_zooms, think + (0 if turn.block else num_actions + 2)]
    passes = [
        Pass(num_new_tokens=context, num_pictures=1 if i else world.num_images, num_steps=text, zooms=i < num_zooms)
        for i, (context, text) in enumerate(zip(contexts, texts, strict=True))
        if text
    ]
    if turn.block:
        new = turn.block if passes else turn.block + turn.prompt
        passes.append(Pass(num_new_tokens=new, num_pictures=0 if passes else world.num_images, num_steps=1))
    length = sum(contexts) + sum(texts) + (num_actions + 2 if turn.block else 0)
    return Decision(passes=tuple(passes)), min(turn.limit, length)


def assumed_groups(
    cfg: GRPOConfig, figures: ModelFigures, turn: TurnTokens, world: World, num_groups: int, habits: Habits = HABITS
) -> list[list[Episode]]:
    """Groups as a policy of these habits plays them; of a seed of their own, the same each time."""
    horizon, rng = -(-world.max_env_steps // world.chunk_length), random.Random(0)
    most = cfg.episode.max_tool_calls if cfg.episode.mode == "zoom" else 0
    kinds = [assumed_turn(figures, turn, world, cfg.episode, habits, n) for n in range(most + 1)]
    reused = assumed_turn(figures, turn, world, replace(cfg.episode, mode="act"), habits, 0)

    def episode(scene: int) -> Episode:
        is_success = rng.random() < habits.success
        length = round(horizon * rng.uniform(habits.earliest, 1)) if is_success else horizon
        turns = [
            reused if i % cfg.episode.think_every else kinds[sum(rng.random() < habits.zoom for _ in range(most))]
            for i in range(max(1, length))
        ]
        return Episode(
            scene=scene,
            expected=horizon,
            turns=tuple(decision for decision, _ in turns),
            num_tokens=sum(num_tokens for _, num_tokens in turns),
        )

    num_tasks = world.num_tasks or 10
    return [[episode(group % num_tasks) for _ in range(cfg.group_size)] for group in range(num_groups)]


def sync_bytes(figures: ModelFigures, cfg: GRPOConfig) -> float:
    """What each sampler is sent: the adapter in float32, or the weights in the samplers' dtype."""
    return figures.num_adapter_parameters * 4 or figures.num_parameters * BYTES[cfg.sampler.dtype]


def transport(cfg: GRPOConfig) -> str:
    """How the weights get from the learner to the samplers."""
    if cfg.plan.gpu == "cpu":
        return "shared memory"
    return "CUDA IPC" if 0 < cfg.cluster.learner_gpus < 1 else "NCCL"


def num_gpus(cfg: GRPOConfig) -> int:
    """Of the whole run; 0 on CPUs."""
    cluster = cfg.cluster
    if cfg.plan.gpu == "cpu":
        return 0
    if 0 < cluster.learner_gpus < 1:
        return cluster.num_learners
    return round(cluster.num_learners * cluster.learner_gpus + cluster.num_samplers * cluster.sampler_gpus)


def num_nodes(cfg: GRPOConfig) -> int:
    """Of `GPUS_PER_NODE`."""
    return max(1, -(-num_gpus(cfg) // GPUS_PER_NODE))


def sync_s(figures: ModelFigures, cfg: GRPOConfig) -> float:
    """From the learner's ranks into every sampler, bucket by bucket; reading, sending and writing overlap.

    Shared memory: written, read and loaded. CUDA IPC: gathered from the ranks, then copied on the device. NCCL:
    gathered, then broadcast; between nodes at the network's speed.
    """
    size, device, how = sync_bytes(figures, cfg), DEVICES[cfg.plan.gpu], transport(cfg)
    if how == "shared memory":
        return 3 * size / device.memory_bandwidth
    link = (device.link_bandwidth if num_nodes(cfg) == 1 else min(device.link_bandwidth, NETWORK)) * LINK_REACHED
    gather = size / link if cfg.cluster.num_learners > 1 and cfg.learner.zero_stage == 3 else 0.0
    if how == "CUDA IPC":
        return SLEEP_S + gather + 2 * size / (DECODE_REACHED * device.memory_bandwidth)
    return gather + size / link


def state_bytes(figures: ModelFigures, cfg: GRPOConfig) -> float:
    """Of a state: trained weights, AdamW's moments, and float32 masters where there are any."""
    size = 4 if figures.num_adapter_parameters else BYTES[cfg.learner.dtype]
    has_masters = cfg.learner.dtype == "bfloat16" or cfg.learner.zero_stage >= 2
    return figures.num_trained_parameters * (size + 8 + 4 * has_masters)


def device_costs(figures: ModelFigures, cfg: GRPOConfig, world: World, num_scorings: int) -> Costs:
    """Of a GPU run, by data sheets.

    A decode step reads all weights of the language model and the KV cache of every sequence, half grown.
    """
    device, env = DEVICES[cfg.plan.gpu], ENV_COSTS[cfg.env.id]
    ranks, wide = cfg.cluster.num_learners, cfg.sampler.tensor_parallel_size
    flops, bandwidth, size = device.flops * REACHED, device.memory_bandwidth * DECODE_REACHED, BYTES[cfg.sampler.dtype]
    text = figures.num_parameters - figures.num_vision_parameters
    launch = figures.text.num_layers * EAGER_LAYER_S if cfg.sampler.enforce_eager else 0.0
    cached = figures.kv_values_per_token * size * cfg.episode.max_turn_tokens / 2

    def step(num: int) -> float:
        reading = (text * size + num * cached) / bandwidth
        return REPLAY_S + max(launch, max(reading, num * 2 * text / flops) / wide)

    return Costs(
        decode=tuple((num, step(num)) for num in (1, 8, 16, 32, 64, 128, 256, 512)),
        reset_s=env.reset_s,
        scene_s=env.scene_s,
        chunk_s=env.step_s * world.chunk_length,
        zoom_s=env.zoom_s,
        request_s=REQUEST_S,
        turn_s=TURN_S,
        new_token_s=flop(figures, 1, 0) / flops / wide,
        picture_s=flop(figures, 0, 1) / flops / wide,
        learn_token_s=num_forwards(cfg.learner, num_scorings) * flop(figures, 1, 0) * cfg.num_epochs / flops / ranks,
        learn_picture_s=num_forwards(cfg.learner, num_scorings) * flop(figures, 0, 1) * cfg.num_epochs / flops / ranks,
        sync_s=sync_s(figures, cfg),
        save_s=state_bytes(figures, cfg) / num_nodes(cfg) / DISK,
    )


def machine(cfg: GRPOConfig) -> Machine:
    """As many cores as the config reserves for rollouts."""
    cluster = cfg.cluster
    return Machine(
        num_slots=cluster.num_rollout_actors * cluster.envs_per_actor,
        num_samplers=cluster.num_samplers,
        max_num_seqs=cfg.sampler.max_num_seqs,
        cores=cluster.num_rollout_actors * cluster.rollout_cpus,
        is_colocated=transport(cfg) == "CUDA IPC",
    )


def estimate(
    cfg: GRPOConfig,
    figures: ModelFigures,
    turn: TurnTokens,
    world: World,
    *,
    num_scorings: int,
    max_staleness: int = 0,
    num_steps: int = 1,
) -> Simulated:
    """Simulate steps of a run on GPUs.

    Raises:
        KeyError: nothing is known of the env's costs.
    """
    costs = device_costs(figures, cfg, world, num_scorings)
    groups = assumed_groups(cfg, figures, turn, world, num_steps * cfg.groups_per_step)
    return simulate(
        costs,
        machine(cfg),
        groups,
        cfg.groups_per_step,
        max_staleness=max_staleness,
        save_every=cfg.save_every,
    )


def better_split(
    cfg: GRPOConfig, now: Simulated, of: Callable[[GRPOConfig], Simulated]
) -> tuple[GRPOConfig, Simulated]:
    """The quickest of some splits of the same GPUs between samplers and learner ranks, the given one among them.

    Tried is the split at which rollout and update, if each took so much less the more GPUs it has, would take least
    together, and then its neighbours, as long as that helps.

    Args:
        cfg: placement `apart`, a GPU for each rank.
        now: what `of` says of it.
        of: simulates a config.
    """
    cluster, (step, *_) = cfg.cluster, now.steps
    wide = max(1, round(cluster.sampler_gpus))
    total = num_gpus(cfg)
    rollout, learn = (
        math.sqrt(s * n) for s, n in ((step.rollout_s, cluster.num_samplers), (step.learn_s, cluster.num_learners))
    )
    found = {cluster.num_samplers: (cfg, now)}

    def seconds(num: int) -> float:
        if not 1 <= num < total / wide:
            return math.inf
        if num not in found:
            split = replace(cluster, num_samplers=num, num_learners=total - num * wide)
            found[num] = (replace(cfg, cluster=split), of(replace(cfg, cluster=split)))
        return found[num][1].step_s

    best = min(max(1, round(total / wide * rollout / (rollout + learn))), math.ceil(total / wide) - 1)
    seconds(best)
    for direction in (-1, 1):
        while seconds(best + direction) < seconds(best):
            best += direction
    return min(found.values(), key=lambda pair: pair[1].step_s)
