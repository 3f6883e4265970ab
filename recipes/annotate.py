"""Expert demonstrations with thought and zoom annotation -> a LeRobot v3 data set for the cold start.

python recipes/annotate.py --config recipes/configs/annotate_tabletop.yaml
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator

import gymnasium
import numpy as np
from tqdm import tqdm

from rlvla import dataset
from rlvla.config import AnnotateConfig, load, write_resolved
from rlvla.plugins import resolve
from rlvla.types import Demonstration


def main(cfg: AnnotateConfig) -> None:
    """Record `cfg.num_episodes` successful episodes."""
    bar = tqdm(episodes(cfg), total=cfg.num_episodes, desc="annotate", unit="episode", mininterval=2)
    count = dataset.write(cfg.output, bar, robot=cfg.env.id, fps=1.0)
    write_resolved(cfg, cfg.output)
    print(f"{cfg.output}: {count} episodes")


def episodes(cfg: AnnotateConfig) -> Iterator[list[Demonstration]]:
    """Successful demonstrations from the train split's initial states, task after task in turn."""
    for module in cfg.env.imports:
        importlib.import_module(module)
    env = gymnasium.make(cfg.env.id, disable_env_checker=True, **cfg.env.kwargs).unwrapped
    expert = resolve(cfg.expert)
    task_ids = [env.task_names.index(name) for name in cfg.env.tasks or env.task_names]
    rng = np.random.default_rng(cfg.seed)
    states = {task: iter(rng.permutation(env.init_state_ids(task, "train"))) for task in task_ids}
    attempts = (
        expert(env, task, int(next(states[task])), cfg.chunk_length, rng, **cfg.expert_kwargs)
        for task in itertools.cycle(task_ids)
    )
    yield from itertools.islice((episode for episode in attempts if episode is not None), cfg.num_episodes)
    env.close()


if __name__ == "__main__":
    main(load(AnnotateConfig))
