"""Where takes come from: an expert in a simulator, or episodes that somebody has recorded."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rlvla.annotation.store import Store
from rlvla.annotation.take import Take
from rlvla.config import AnnotateConfig
from rlvla.data.demonstrations import Source, decisions
from rlvla.data.read_hdf5 import open_hdf5
from rlvla.data.read_lerobot import open_lerobot
from rlvla.plugins import Plugin, load
from rlvla.rollout.env_server import make_env
from rlvla.rollout.tasks import state_ids, task_ids
from rlvla.types import Decision


def load_expert(cfg: AnnotateConfig) -> Plugin:
    """The function that `expert` names; raises PluginError saying what is wrong with it."""
    called, named = ("env", "task_id", "init_state_id"), ("chunk_length", "stride", "rng")
    return load("expert", cfg.expert, called, named, cfg.expert_kwargs)


class ExpertSource:
    """Successful episodes from the train split's initial states, as many as wanted, or as the states allow.

    Made, read and closed in one thread, since an env belongs to the thread that made it.
    """

    def __init__(self, cfg: AnnotateConfig) -> None:
        """Makes the env; raises PluginError, see `load_expert`."""
        self._cfg = cfg
        self._expert = load_expert(cfg)
        self._env: Any = make_env(cfg.env)
        self._stride = cfg.stride or cfg.chunk_length
        self._fps = float(self._env.metadata.get("render_fps") or 1)
        self.robot, self.suites = cfg.env.id, (self._env.suite,)
        self.fps = self._fps / self._stride
        self.num_takes = 2000 if cfg.num_episodes is None else cfg.num_episodes

    def takes(self, store: Store) -> Iterator[Take]:
        """Those that the store does not hold, in order; it is told of starts from which the expert fails."""
        num_takes = 0
        for index, (task, state) in enumerate(self._starts()):
            if num_takes == self.num_takes:
                return
            if store.failed(index):
                continue
            if not store.is_complete(index):
                take = self._play(index, task, state)
                if take is None:
                    store.put_failure(index)
                    continue
                yield take
            num_takes += 1

    def _play(self, index: int, task: int, state: int) -> Take | None:
        cfg = self._cfg
        name = f"{self._env.suite}, task {self._env.task_names[task]}, initial state {state}"
        expert, rng = self._expert.at(name), np.random.default_rng((cfg.seed, index))
        played = expert(self._env, task, state, chunk_length=cfg.chunk_length, stride=self._stride, rng=rng)
        if played is None:
            return None
        is_list = isinstance(played, list | tuple)
        if not is_list or not played or not all(isinstance(decision, Decision) for decision in played):
            came = next((d for d in played if not isinstance(d, Decision)), played) if is_list else played
            raise expert.wrong(came, "a list of at least one rlvla.types.Decision, or None where it failed")
        return Take(index=index, name=name, decisions=tuple(played), stride=self._stride, fps=self._fps)

    def _starts(self) -> Iterator[tuple[int, int]]:
        """(task id, initial state id) of the train split, each once: task after task in turn."""
        rng = np.random.default_rng(self._cfg.seed)
        tasks = task_ids(self._env, self._cfg.env)
        states = [[(task, int(s)) for s in rng.permutation(state_ids(self._env, task, "train"))] for task in tasks]
        for starts in itertools.zip_longest(*states):
            yield from (start for start in starts if start is not None)

    def close(self) -> None:
        """Close the env; what the takes' `zoom` needs stays open until then."""
        self._env.close()


class RecordedSource:
    """Episodes of a LeRobot folder, or of LIBERO's HDF5 files."""

    suites: tuple[str, ...] = ()
    """On whose train initial states they were recorded: nobody knows."""

    def __init__(self, cfg: AnnotateConfig, path: Path) -> None:
        """Opens the files; see the readers for what they raise."""
        self._cfg = cfg
        is_lerobot = (path / "meta").is_dir()
        self._source: Source = (open_lerobot if is_lerobot else open_hdf5)(path, cfg.read)
        self._stride = cfg.stride or cfg.chunk_length
        self.robot, self.fps = self._source.robot, self._source.fps / self._stride
        num_episodes = self._source.num_episodes
        self.num_takes = num_episodes if cfg.num_episodes is None else min(cfg.num_episodes, num_episodes)

    def takes(self, store: Store) -> Iterator[Take]:
        """Those that the store does not hold, in order."""
        cfg = self._cfg
        for index, episode in enumerate(itertools.islice(self._source.episodes, self.num_takes)):
            if store.is_complete(index):
                continue
            cut = decisions(
                episode,
                chunk_length=cfg.chunk_length,
                stride=self._stride,
                center_crop=cfg.read.center_crop,
                view_size=cfg.read.view_size,
            )
            yield Take(index=index, name=episode.name, decisions=tuple(cut), stride=self._stride, fps=episode.fps)

    def close(self) -> None:
        """Nothing stays open."""


TakeSource = ExpertSource | RecordedSource


def open_source(cfg: AnnotateConfig) -> TakeSource:
    """`cfg.source`, or else `cfg.expert` in `cfg.env`."""
    return ExpertSource(cfg) if cfg.source is None else RecordedSource(cfg, cfg.source)
