"""Expert demonstrations -> a LeRobot v3 data set for the cold start.

With thought and zoom annotation, of an expert in a simulator:

    python recipes/annotate.py --config recipes/configs/annotate_tiny_tabletop.yaml

Without, of episodes that somebody has recorded (docs/demonstrations.md):

    python recipes/annotate.py --source libero_spatial_no_noops --output outputs/demos --chunk-length 8
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from rlvla import dataset
from rlvla.config import AnnotateConfig, load, write_resolved
from rlvla.demonstrations import decisions
from rlvla.plugins import resolve
from rlvla.read_hdf5 import open_hdf5
from rlvla.read_lerobot import open_lerobot
from rlvla.rollout import make_env, task_ids
from rlvla.types import Demonstration


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What a data set is made of."""

    robot: str
    fps: float
    """Decisions a second."""
    num_episodes: int
    episodes: Iterator[Sequence[Demonstration]]
    suites: tuple[str, ...] = ()
    """On whose train initial states they were recorded, as far as is known."""


def main(cfg: AnnotateConfig) -> None:
    """Write `cfg.output`."""
    recording = of_expert(cfg) if cfg.source is None else of_source(cfg, cfg.source)
    bar = tqdm(recording.episodes, total=recording.num_episodes, desc="annotate", unit="episode", mininterval=2)
    count = dataset.write(cfg.output, bar, robot=recording.robot, fps=recording.fps, suites=recording.suites)
    write_resolved(cfg, cfg.output)
    print(f"{cfg.output}: {count} episodes")


def of_expert(cfg: AnnotateConfig) -> Recording:
    """Episodes that `cfg.expert` plays and annotates in `cfg.env`."""
    num_episodes = 2000 if cfg.num_episodes is None else cfg.num_episodes
    env = make_env(cfg.env)
    episodes = _play(cfg, env, num_episodes)
    return Recording(robot=cfg.env.id, fps=1.0, num_episodes=num_episodes, episodes=episodes, suites=(env.suite,))


def of_source(cfg: AnnotateConfig, path: Path) -> Recording:
    """Episodes of a LeRobot folder, or of LIBERO's HDF5 files, as decisions without a thought."""
    is_lerobot = (path / "meta").is_dir()
    source = (open_lerobot if is_lerobot else open_hdf5)(path, cfg.read)
    num_episodes = source.num_episodes if cfg.num_episodes is None else min(cfg.num_episodes, source.num_episodes)
    read = cfg.read
    episodes = (
        decisions(
            episode,
            chunk_length=cfg.chunk_length,
            stride=read.stride,
            center_crop=read.center_crop,
            view_size=read.view_size,
        )
        for episode in itertools.islice(source.episodes, num_episodes)
    )
    fps = source.fps / (read.stride or cfg.chunk_length)
    return Recording(robot=source.robot, fps=fps, num_episodes=num_episodes, episodes=episodes)


def _play(cfg: AnnotateConfig, env: Any, num_episodes: int) -> Iterator[list[Demonstration]]:
    """Successful demonstrations from the train split's initial states, as many, or as the states allow."""
    expert = resolve(cfg.expert)
    rng = np.random.default_rng(cfg.seed)
    attempts = (
        expert(env, task, state, cfg.chunk_length, rng, **cfg.expert_kwargs) for task, state in _starts(cfg, env, rng)
    )
    yield from itertools.islice((episode for episode in attempts if episode is not None), num_episodes)
    env.close()


def _starts(cfg: AnnotateConfig, env: Any, rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    """(task id, initial state id) of the train split, each once: task after task in turn."""
    tasks = task_ids(env, cfg.env)
    states = [[(task, int(state)) for state in rng.permutation(env.init_state_ids(task, "train"))] for task in tasks]
    for starts in itertools.zip_longest(*states):
        yield from (start for start in starts if start is not None)


if __name__ == "__main__":
    main(load(AnnotateConfig))
