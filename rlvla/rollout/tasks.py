"""Which tasks and initial states a run plays."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field

from rlvla.config import EnvConfig, EpisodeConfig, EvaluateConfig
from rlvla.protocols import Env
from rlvla.rollout.env_server import make_env
from rlvla.types import Group, TaskSpec, derive_seed


@dataclass(kw_only=True)
class TaskStream:
    """Endless tasks: the env's tasks in turn, each with a train initial state; resumable from `num_settled`."""

    config: EnvConfig
    seed: int
    position: int = 0
    """Tasks drawn so far."""
    num_settled: int = 0
    """Those of them whose groups steps have taken: a run that resumes draws the others again."""
    surplus: list[Group] = field(default_factory=list)
    """Groups with signal that were sampled and not yet learned from."""
    suite: str = field(init=False)
    """The env's."""

    def __post_init__(self) -> None:
        """Asks one env for its tasks and states, then closes it."""
        env = make_env(self.config)
        self.suite = env.suite
        self._task_ids = task_ids(env, self.config)
        self._states = {task: state_ids(env, task, "train") for task in self._task_ids}
        env.close()

    def take(self, count: int) -> list[TaskSpec]:
        """The next tasks; the k-th of a run is the same whatever was taken together."""
        return [self._draw() for _ in range(count)]

    def _draw(self) -> TaskSpec:
        task_id = self._task_ids[self.position % len(self._task_ids)]
        seed = derive_seed(self.seed, self.position)
        states = self._states[task_id]
        self.position += 1
        return TaskSpec(suite=self.suite, task_id=task_id, init_state_id=states[seed % len(states)], seed=seed)


def task_ids(env: Env, config: EnvConfig) -> list[int]:
    """Ids of the configured task names; raises ValueError naming one that the env lacks."""
    for name in config.tasks:
        if name not in env.task_names:
            raise ValueError(f"env.tasks names {name!r}; {config.id} has {', '.join(env.task_names)}")
    return [env.task_names.index(name) for name in config.tasks or env.task_names]


def most_images(config: EnvConfig, episode: EpisodeConfig) -> int:
    """Images in one context at most: a view of each camera, and a crop of each tool call.

    Constructs the env, without a reset.
    """
    env = make_env(config)
    num_cameras = env.observation_space["images"].shape[0]
    env.close()
    return num_cameras + episode.max_tool_calls


def state_ids(env: Env, task_id: int, split: str) -> Sequence[int]:
    """The initial states of a task for a split, as plain integers, be they NumPy's in the env.

    Raises:
        ValueError: an id is no integer; the message names it.
    """
    ids = env.init_state_ids(task_id, split)
    if isinstance(ids, range):  # may be long
        return ids
    try:
        return tuple(operator.index(id_) for id_ in ids)
    except TypeError as error:
        raise ValueError(
            f"init_state_ids({task_id}, {split!r}) of suite {env.suite}: {error}: ids are integers"
        ) from None


def trial_states(env: Env, task_id: int, config: EvaluateConfig) -> list[int]:
    """The initial states of a task that an evaluation plays; raises ValueError when its split has fewer."""
    states = list(state_ids(env, task_id, config.split)[: config.num_trials])
    if len(states) < config.num_trials:
        name = env.task_names[task_id]
        raise ValueError(f"num_trials is {config.num_trials}, task {name!r} has {len(states)} {config.split} states")
    return states
