"""What the driver of a GRPO step holds: trajectories, whose pictures lie in Ray's object store.

python scripts/benchmark/driver.py [--num-trajectories 512] [--num-turns 40] [--output driver_benchmark.json]

Rollout actors make trajectories up, of so many turns with so many pictures; nothing else does. `Dispatcher` and
`Collector` take them as in a run, and two ranks look at the pictures of their rows.

- `driver_mb`: the most memory that was the driver's own in that time, libraries included, object store left out;
- `driver_grows_mb`: the same less what it held before the step;
- `store_mb`: in the object store. `copies_of_a_frame`: by the pictures' bytes; no picture may lie there twice.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
import tyro

from measuring import Peaks, store_stats, table, write_result
from rlvla.cluster.cluster import start_ray
from rlvla.cluster.dispatch import Dispatcher, Watch, get_all
from rlvla.cluster.frames import without_frames
from rlvla.config import ClusterConfig, EnvConfig, GRPOConfig
from rlvla.rollout.collect import Collector, Job
from rlvla.rollout.tasks import TaskStream
from rlvla.types import EndReason, Group, Segment, SegmentKind, Trajectory, Turn

GROUP_SIZE = 8
NUM_RANKS = 2
NUM_SLOTS = 4
"""Envs of the actor; there is no simulator in them."""
SAMPLE_S = 0.05


def main(
    *,
    num_trajectories: int = 512,
    num_turns: int = 40,
    num_pictures: int = 2,
    side: int = 256,
    num_tokens: int = 400,
    store_gb: float = 10.0,
    output: Path | None = None,
) -> None:
    """Measure, print a table, write the result.

    Args:
        num_trajectories: a step.
        num_turns: of each.
        num_pictures: of each turn.
        side: of a picture, px.
        num_tokens: of each turn.
        store_gb: Ray's object store.
        output: also write the result here, as JSON.
    """
    start_ray(ClusterConfig(), object_store_memory=int(store_gb * 2**30))
    shape = {"num_turns": num_turns, "num_pictures": num_pictures, "side": side, "num_tokens": num_tokens}
    step = measure_step(num_trajectories, shape)
    ray.shutdown()
    frames_mb = num_trajectories * num_turns * num_pictures * side**2 * 3 / 2**20
    result = {
        **step,
        "frames_mb": frames_mb,
        "copies_of_a_frame": step["store_mb"] / frames_mb,
        "driver_mb_per_trajectory": step["driver_grows_mb"] / num_trajectories,
    }
    print(table([[key, float(value)] for key, value in result.items()]))
    write_result({**result, "num_trajectories": num_trajectories, **shape}, output)


class Maker:
    """A RolloutActor that makes up what it plays."""

    def __init__(self, shape: dict[str, int]) -> None:
        self._shape = shape
        self._node = ray.get_runtime_context().get_node_id()

    async def play(self, env: int, job: Job) -> Any:
        """See `RolloutActor.play`."""
        light, frames = without_frames(make(job, **self._shape))
        return (light, self._node), frames

    async def status(self, deadline_s: float) -> tuple[str, str]:
        """See `RolloutActor.status`."""
        return "", self._node

    async def wait_end(self) -> None:
        """See `RolloutActor.wait_end`."""
        await asyncio.Event().wait()


def make(job: Job, *, num_turns: int, num_pictures: int, side: int, num_tokens: int) -> Trajectory:
    """Noise that no two jobs share."""
    rng = np.random.default_rng([job.task.seed, job.member])
    turns = []
    for _ in range(num_turns):
        frames = rng.integers(0, 256, (num_pictures, side, side, 3), np.uint8)
        turns.append(
            Turn(
                token_ids=np.zeros(num_tokens, np.int32),
                sampler_logprobs=np.zeros(num_tokens, np.float32),
                segments=(
                    Segment(kind=SegmentKind.PROMPT, start=0, end=num_tokens // 2),
                    Segment(kind=SegmentKind.ACT, start=num_tokens // 2, end=num_tokens),
                ),
                images=tuple(frames),
                actions=np.zeros((8, 7), np.float32),
                policy_version=0,
            )
        )
    return Trajectory(task=job.task, turns=tuple(turns), end=EndReason.SUCCESS, num_env_steps=8 * num_turns)


class Rank:
    """Looks at the pictures of its share of the rows, as a learner rank does."""

    def look(self, groups: Sequence[Group], rank: int) -> int:
        """A sum over them."""
        turns = [turn for group in groups for t in group.trajectories for turn in t.turns]
        return sum(int(image[0, 0, 0]) for turn in turns[rank::NUM_RANKS] for image in turn.images)


def measure_step(num_trajectories: int, shape: dict[str, int]) -> dict[str, float]:
    """Roll out and hand over; the driver's own MB meanwhile, and what is beside them."""
    maker: Any = ray.remote(num_cpus=0)(Maker).remote(shape)
    dispatcher = Dispatcher([maker], NUM_SLOTS, lambda: None, Watch(900.0, {}))
    tasks = TaskStream(config=EnvConfig(tasks=("press",)), seed=0)
    config = GRPOConfig(groups_per_step=num_trajectories // GROUP_SIZE, group_size=GROUP_SIZE)
    with Peaks(lambda: {"mb": own_mb()}, SAMPLE_S) as peaks:
        started = time.perf_counter()
        groups, _ = Collector(dispatcher, tasks, judge, config).collect(0)
        collected = time.perf_counter()
        ranks: Any = [ray.remote(num_cpus=0)(Rank).remote() for _ in range(NUM_RANKS)]
        handed = ray.put(groups)
        calls = [actor.look.remote(handed, rank) for rank, actor in enumerate(ranks)]
        get_all(calls, 3600.0, dispatcher.wait)
        looked = time.perf_counter()
    return {
        "driver_mb": peaks.most["mb"],
        "driver_grows_mb": peaks.grown["mb"],
        "store_mb": store_mb(),
        "collect_s": collected - started,
        "hand_over_s": looked - collected,
    }


def judge(group: Group) -> Group:
    """An advantage for each."""
    signs = itertools.cycle((1.0, -1.0))
    scored = [replace(t, reward=1.0, advantage=sign) for t, sign in zip(group.trajectories, signs, strict=False)]
    return replace(group, trajectories=tuple(scored))


def own_mb() -> float:
    """Memory that is this process's alone."""
    return psutil.Process().memory_full_info().uss / 2**20


def store_mb() -> float:
    """What Ray's object store holds, on the disk or not."""
    store = store_stats()
    return (store.object_store_bytes_used + store.spilled_bytes_total) / 2**20


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
