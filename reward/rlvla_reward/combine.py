"""R = sum of weight * term: from the config's list of terms to rewards in a group."""

from __future__ import annotations

import json
import math
import numbers
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
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

    @property
    def makes_signal(self) -> bool:
        """What the config says, else what the function's own `makes_signal` says, else True.

        Raises:
            RewardError: the function's own is neither True nor False.
        """
        own = getattr(self.fn, "makes_signal", True)
        if not isinstance(own, bool):
            raise RewardError(f"{self}: its `makes_signal` is {own!r}: make it True or False")
        return own if self.config.makes_signal is None else self.config.makes_signal

    @property
    def has_state(self) -> bool:
        """Whether what it returns depends on what it was called with before."""
        return isinstance(self.fn, Stateful)

    def __call__(self, trajectory: Trajectory) -> float:
        """The unweighted term, as the function returns it.

        Raises:
            RewardError: the function fails or returns no number; the message names the task.
        """
        where = self._of(trajectory)
        with naming(where):
            value = self.fn(trajectory, **self.config.kwargs)
        if not isinstance(value, numbers.Real | np.bool_):
            raise wrong(where, value, "a number")
        try:
            return float(value)
        except OverflowError:  # an integer beyond what a float holds
            return math.inf

    def finite(self, trajectory: Trajectory) -> float:
        """The term, which `begin` may have told already; NaN, with a warning, where it is not finite."""
        known = trajectory.reward_terms.get(self.name) if trajectory.reward is None else None
        number = self(trajectory) if known is None else known
        if math.isfinite(number):
            return number
        effect = "its group is left out" if self.config.weight else "its weight is 0"
        warnings.warn(f"{self._of(trajectory)}: returned {number}; {effect}", stacklevel=2)
        return math.nan

    def _of(self, trajectory: Trajectory) -> str:
        task = trajectory.task
        return f"{self}, task {task.suite} {task.task_id}, initial state {task.init_state_id}, seed {task.seed}"


@dataclass(frozen=True, kw_only=True)
class Reward:
    """The weighted sum of terms."""

    terms: tuple[Term, ...]

    @property
    def weights(self) -> Mapping[str, float]:
        """Weight by the term's name, in the config's order."""
        return {term.name: term.config.weight for term in self.terms}

    @property
    def signal(self) -> tuple[str, ...]:
        """Names of the terms that make signal (`RewardTermConfig.makes_signal`); where none does, of all."""
        weighted = [term for term in self.terms if term.config.weight]
        return tuple(term.name for term in [t for t in weighted if t.makes_signal] or weighted)

    def begin(self, trajectory: Trajectory) -> Trajectory:
        """Fill `reward_terms` with the terms without a state: in any process and any order, hence beside the frames.

        A term that fails is left to `score`, where its error stops the run.
        """
        if trajectory.end is EndReason.ENV_ERROR:
            return trajectory
        terms = {}
        for term in self.terms:
            if not term.has_state:
                with suppress(RewardError):
                    terms[term.name] = term(trajectory)
        return replace(trajectory, reward_terms=terms)

    def score(self, group: Group) -> Group:
        """Fill `reward`, `signal` and `reward_terms` of every trajectory; one whose simulator crashed stays without.

        A term of weight 0 is kept among `reward_terms` and has no part in the sums, whatever it is.

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
        return [term for term in self.terms if term.has_state]

    def _score_one(self, trajectory: Trajectory) -> Trajectory:
        if trajectory.end is EndReason.ENV_ERROR:
            return replace(trajectory, reward=None, signal=None, reward_terms={})
        terms = {term.name: term.finite(trajectory) for term in self.terms}
        weighted = {name: weight * terms[name] for name, weight in self.weights.items() if weight}
        signal = sum(weighted[name] for name in self.signal)
        return replace(trajectory, reward=sum(weighted.values()), signal=signal, reward_terms=terms)


def begin(terms: Sequence[RewardTermConfig]) -> Callable[[Trajectory], Trajectory]:
    """`Reward.begin` of a config's terms. Errors as of `build`."""
    return build(terms).begin


def build(terms: Sequence[RewardTermConfig]) -> Reward:
    """Resolve the terms of a config.

    Args:
        terms: `fn` is a name in `BUILTIN`, `"module:function"` or `"path/to/file.py:function"`.

    Raises:
        RewardError: no term, two terms of one name, something that is no plain function, keyword arguments that the
            function does not take, a `makes_signal` that is no bool, or a state that is not JSON or only half there.
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
    _ = reward.signal  # what declares it wrongly is told now
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
