"""What a GRPO step holds outside the GPUs, moves, and writes: frames, pixels, simulators, weights, states."""

from __future__ import annotations

from rlvla.config import GRPOConfig
from rlvla.learner.pixels import THREADS
from rlvla.plan.estimate import DISK, ENV_COSTS, num_gpus, num_nodes, state_bytes, sync_bytes, sync_s
from rlvla.plan.memory import BYTES, GIB
from rlvla.plan.model import ModelFigures
from rlvla.plan.text import Lines, duration, size
from rlvla.plan.turn import TurnTokens
from rlvla.plan.world import World

PROCESS = {"cpu": GIB, "gpu": 4 * GIB}
"""Main memory of the driver, a sampler or a learner rank beside what is counted: 0.4 to 0.9 GiB in
docs/results/soak.json; with CUDA assumed."""
ROLLOUT_ACTOR = 0.35 * GIB
"""Of a rollout actor without its envs, docs/results/soak.json."""
PREPARE_S = 2e-8
"""CPU for each number of a prepared picture: 4.1 ms of 196,608 for Idefics3, 4.6 ms of 393,216 for Qwen2.5-VL, of
256 px, on a busy core of an AMD EPYC."""


def bucket_bytes(cfg: GRPOConfig) -> float:
    """In which weights travel."""
    return cfg.cluster.bucket_mb * 2**20


def frame_bytes(cfg: GRPOConfig, turn: TurnTokens, world: World, num_turns: int) -> float:
    """Frames of the trajectories that are out at once, cameras and zooms, each once in its node's object store.

    Dynamic sampling holds those of all of a step's waves until its end, and up to a step's surplus beside them.
    """
    height, width = world.view_shape
    num_waves = cfg.max_staleness + cfg.max_waves + (cfg.max_waves > 1)
    pictures = num_waves * cfg.groups_per_step * cfg.group_size * num_turns * turn.num_images
    return float(pictures * height * width * 3)


def pixel_bytes(cfg: GRPOConfig, figures: ModelFigures, turn: TurnTokens, num_turns: int) -> float:
    """Prepared pictures that the learner's ranks hold, in the policy's dtype, see `rlvla.learner.pixels`.

    Of a step with several updates all, of one with a single update those of some micro-batches.
    """
    rows = cfg.groups_per_step * cfg.group_size * num_turns
    if cfg.minibatches_per_step * cfg.num_epochs == 1:
        rows = min(rows, (THREADS + 1) * cfg.learner.micro_batch_rows * cfg.cluster.num_learners)
    return float(rows * turn.num_images * figures.values_per_image * BYTES[cfg.learner.dtype])


def main_memory(
    cfg: GRPOConfig,
    figures: ModelFigures,
    turn: TurnTokens,
    world: World,
    num_turns: int,
    on_cpu: float,
) -> dict[str, float]:
    """Bytes over all nodes, by what they are for.

    `turn` has every limit used up, `num_turns` is of the longest episode, and `on_cpu` what learner ranks and samplers
    take of it where there is no GPU.
    """
    cluster = cfg.cluster
    frames = frame_bytes(cfg, turn, world, num_turns)
    env = ENV_COSTS.get(cfg.env.id)
    kind = "gpu" if num_gpus(cfg) else "cpu"
    parts = {
        "frames": frames,
        # A rank on another node than the rollout holds a copy of its rows' frames while it prepares them.
        "frames of other nodes": frames if num_nodes(cfg) > 1 else 0.0,
        "prepared pixels": pixel_bytes(cfg, figures, turn, num_turns),
        "envs": cluster.num_rollout_actors * cluster.envs_per_actor * env.memory_gib * GIB if env else 0.0,
        "processes": PROCESS[kind] * (1 + cluster.num_samplers + cluster.num_learners)
        + ROLLOUT_ACTOR * cluster.num_rollout_actors,
        "learner and samplers": on_cpu,
        "two buckets": min(2 * bucket_bytes(cfg), sync_bytes(figures, cfg)) * num_nodes(cfg),
    }
    return {name: amount for name, amount in parts.items() if amount}


def host_lines(cfg: GRPOConfig, figures: ModelFigures, turn: TurnTokens, num_turns: int, learner_s: float) -> Lines:
    """Weights, pictures, states: bytes, and seconds at assumed speeds."""
    weights, what = sync_bytes(figures, cfg), "adapter" if figures.num_adapter_parameters else "weights"
    bucket = size(bucket_bytes(cfg))
    sync = f"{what} of {size(weights)} through Ray's store, in buckets of {bucket}: {duration(sync_s(figures, cfg))}"
    pictures = cfg.groups_per_step * cfg.group_size * num_turns * turn.num_images
    seconds = pictures * figures.values_per_image * PREPARE_S
    prepare = (
        f"{pictures:,} at most, {duration(seconds)} of a core to prepare them for the learner, which waits with less "
        f"than {seconds / learner_s:.2f} cores; as much for the samplers"
    )
    lines = [("sync", sync), ("pictures", prepare)]
    if cfg.save_every:
        state, nodes = state_bytes(figures, cfg), num_nodes(cfg)
        lines.append((
            "states",
            f"{size(state)} every {cfg.save_every} step(s), {cfg.keep_states + 1} on the disk at most; written in "
            f"{duration(state / nodes / DISK)} at {DISK / 1e9:g} GB/s a node, while rollouts go on",
        ))  # fmt: skip
    return tuple(lines)


def memory_line(parts: dict[str, float], nodes: int) -> str:
    """`310 GiB a node: frames 12 GiB, ...`."""
    where = "" if nodes == 1 else f" on each of {nodes} nodes"
    named = ", ".join(f"{name} {size(amount / nodes)}" for name, amount in parts.items())
    return f"{size(sum(parts.values()) / nodes)}{where}: {named}"
