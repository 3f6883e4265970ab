"""R = sum of weight * term: from the config's list of terms to rewards in a group."""

from __future__ import annotations

import json
import math
import numbers
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rlvla.config import RewardTermConfig
from rlvla.plugins import PluginError, load, naming, wrap, wrong
from rlvla.protocols import Stateful
from rlvla.types import EndReason, Group, Trajectory
from rlvla_reward.format import format_score
from rlvla_reward.success import success

BUILTIN = {"success": success, "format": format_score}
"""Terms that a config may name without a module."""


RewardError = PluginError
"""Of a reward term that cannot be built, or that failed; the message names the term and its function."""


@dataclass(frozen=True, kw_only=True)
class Term:
    """One term, resolved."""

    name: str
    fn: Any
    """(Trajectory, **kwargs) -> float."""
    config: RewardTermConfig

    def __str__(self) -> str:
        return f"reward term {self.name!r} ({self.config.fn})"

    def __call__(self, trajectory: Trajectory) -> float:
        """The unweighted term; NaN, with a warning, if the function returns NaN or infinity.

        Raises:
            RewardError: the function fails or returns no number; the message names the task.
        """
        task = trajectory.task
        where = f"{self}, task {task.suite} {task.task_id}, initial state {task.init_state_id}, seed {task.seed}"
        with naming(where):
            value = self.fn(trajectory, **self.config.kwargs)
        if not isinstance(value, numbers.Real | np.bool_):
            raise wrong(where, value, "a number")
        if not math.isfinite(value):
            warnings.warn(f"{where}: returned {value}; no step learns from it", stacklevel=2)
            return math.nan
        return float(value)


@dataclass(frozen=True, kw_only=True)
class Reward:
    """The weighted sum of terms."""

    terms: tuple[Term, ...]

    @property
    def weights(self) -> Mapping[str, float]:
        """Weight by the term's name, in the config's order."""
        return {term.name: term.config.weight for term in self.terms}

    def score(self, group: Group) -> Group:
        """Fill `reward` and `reward_terms` of every trajectory; one whose simulator crashed stays without.

        Raises:
            RewardError: a term raised, or returned something that is no number.
        """
        return replace(group, trajectories=tuple(self._score_one(t) for t in group.trajectories))

    def state_dict(self) -> dict[str, Any]:
        """State by the name of each term that has one (`rlvla.protocols.Stateful`).

        Raises:
            RewardError: a term raised, or it is not JSON.
        """
        states = {}
        for term in self._stateful:
            with naming(f"{term}: its state_dict()"):
                states[term.name] = term.fn.state_dict()
            try:
                is_same = json.loads(json.dumps(states[term.name])) == states[term.name]
            except (TypeError, ValueError) as error:
                raise RewardError(f"{term}: what its state_dict() returned is not JSON: {error}") from error
            if not is_same:  # a tuple, a key that is a number
                raise RewardError(
                    f"{term}: what its state_dict() returned is not what JSON gives back: use lists and str"
                )
        return states

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            RewardError: other terms have a state now than when it was saved, or a term raised.
        """
        names = [term.name for term in self._stateful]
        if sorted(names) != sorted(state):
            raise RewardError(
                f"the checkpoint holds the state of the reward terms {sorted(state)}, but those with a state are "
                f"{sorted(names)}: resume with the terms that the run began with"
            )
        for term in self._stateful:
            with naming(f"{term}: its load_state_dict()"):
                term.fn.load_state_dict(state[term.name])

    @property
    def _stateful(self) -> list[Term]:
        return [term for term in self.terms if isinstance(term.fn, Stateful)]

    def _score_one(self, trajectory: Trajectory) -> Trajectory:
        if trajectory.end is EndReason.ENV_ERROR:
            return replace(trajectory, reward=None, reward_terms={})
        terms = {term.name: term(trajectory) for term in self.terms}
        total = sum(weight * terms[name] for name, weight in self.weights.items())
        return replace(trajectory, reward=total, reward_terms=terms)


def build(terms: Sequence[RewardTermConfig]) -> Reward:
    """Resolve the terms of a config.

    Args:
        terms: `fn` is a name in `BUILTIN`, `"module:function"` or `"path/to/file.py:function"`.

    Raises:
        RewardError: no term, two terms of one name, something that is no plain function, keyword arguments that the
            function does not take, or a state that is not JSON or only half there.
        PluginError: `fn` names nothing that exists.
    """
    if not terms:
        raise RewardError("reward is empty: name at least one term, for example {fn: success}")
    built = tuple(_build_term(config) for config in terms)
    names = [term.name for term in built]
    for name in names:
        if names.count(name) > 1:
            raise RewardError(f"two reward terms are named {name!r}: give one of them another `name`")
    reward = Reward(terms=built)
    reward.state_dict()  # a state that no checkpoint can hold is told now
    return reward


def _build_term(config: RewardTermConfig) -> Term:
    is_plugin = ":" in config.fn
    if not is_plugin and config.fn not in BUILTIN:
        raise RewardError(
            f"reward term {config.fn!r}: there is no built-in of that name, only {', '.join(BUILTIN)}; "
            f"write a plugin as 'module:function' or 'path/to/file.py:function'"
        )
    name = config.name or config.fn.rpartition(":")[2]
    what, called = f"reward term {name!r}", ("trajectory",)
    if is_plugin:
        fn = load(what, config.fn, called, kwargs=config.kwargs).target
    else:
        fn = wrap(f"{what} ({config.fn})", BUILTIN[config.fn], called, kwargs=config.kwargs).target
    term = Term(name=name, fn=fn, config=config)
    has = [hasattr(fn, method) for method in ("state_dict", "load_state_dict")]
    if any(has) and not all(has):
        raise RewardError(f"{term}: has only one of state_dict() and load_state_dict(): its state would be lost")
    return term
