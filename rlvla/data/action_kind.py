"""Whether recorded actions are deltas or absolute, as far as the numbers tell: what says otherwise is no proof.

Who takes absolute actions for deltas holds still by a command that sends the arm to the origin.
"""

from __future__ import annotations

import numpy as np

from rlvla.config import ActionKind

MIN_FRAMES = 20
"""Of an episode that can contradict; shorter ones look like anything."""
MAX_LAG = 5
"""Env steps after which the robot is where an absolute action sent it: a tenth of a second at ALOHA's 50 Hz."""
FOLLOWS = 0.3
"""Distance of actions and states, in standard deviations of the states, below which one follows the other."""
CORRELATES = 0.8
"""Correlation of actions with the states' steps from which on they are those steps."""
MOVES = 0.1
"""A dimension moves whose standard deviation is this share of the greatest."""
FAR, NEVER_AT_REST = 20.0, 0.5
"""Deltas are not this many times longer on average than their steps, with none shorter than this share of the longest:
a robot that only moves on and on comes to no end. LIBERO's scripted experts: 11 times, and some rest."""


def contradiction(actions: np.ndarray, state: np.ndarray, kind: ActionKind | None) -> str:
    """What the numbers of an episode say against a kind of actions.

    Args:
        actions: [T, A], the gripper last.
        state: [T, P]; its first dimensions may be what the first ones of the actions move.
        kind: that somebody says they are; None: nobody does, and they are taken for deltas.

    Returns:
        In words, with numbers; empty where nothing does. Where somebody says it, only the state contradicts.
    """
    if len(actions) < MIN_FRAMES:
        return ""
    size = min(actions.shape[1] - 1, state.shape[1])
    acted, seen = actions[:, :size].astype(np.float64), state[:, :size].astype(np.float64)
    spread = seen.std(axis=0)
    moves = (spread > 0) & (spread >= MOVES * spread.max(initial=0)) & (acted.std(axis=0) > 0)
    acted, seen = acted[:, moves], seen[:, moves]  # the dimensions that both have and in which both move
    wrong = _are_places(acted, seen) if moves.any() else ""
    if kind == "absolute":
        return "" if wrong or not moves.any() else _are_steps(acted, seen)
    return wrong or ("" if kind else _are_far_from_rest(actions))


def _are_places(actions: np.ndarray, state: np.ndarray) -> str:
    end = len(state) - MAX_LAG
    gaps = [np.sqrt(((actions[:end] - state[lag : end + lag]) ** 2).mean(axis=0)) for lag in range(MAX_LAG + 1)]
    shares = np.min(gaps, axis=0) / state.std(axis=0)
    near = shares < FOLLOWS
    if near.mean() < 0.5:
        return ""
    return (
        f"they are absolute: in {near.sum()} of the {near.size} dimensions that move, the state is within "
        f"{shares[near].max():.2f} of its standard deviation where the action sent it"
    )


def _are_steps(actions: np.ndarray, state: np.ndarray) -> str:
    steps = np.diff(state, axis=0)
    values = [_correlation(actions[: len(steps) - lag], steps[lag:]) for lag in range(MAX_LAG + 1)]
    best, places = np.max(values, axis=0), np.abs(_correlation(actions[:-1], state[1:]))
    like = (best >= CORRELATES) & (places < best)
    if like.mean() < 0.5:
        return ""
    return (
        f"they are deltas: in {like.sum()} of the {like.size} dimensions that move, they correlate by "
        f"{best[like].min():.2f} or more with the steps of the state"
    )


def _are_far_from_rest(actions: np.ndarray) -> str:
    arm = actions[:, :-1].astype(np.float64)
    lengths, step = np.linalg.norm(arm, axis=1), float(np.median(np.linalg.norm(np.diff(arm, axis=0), axis=1)))
    mean, nearest = float(np.linalg.norm(arm.mean(axis=0))), float(lengths.min() / max(lengths.max(), 1e-12))
    if step == 0 or mean < FAR * step or nearest < NEVER_AT_REST:
        return ""
    return (
        f"they may be absolute: their mean is {mean:.3g} long, {mean / step:.0f} times their median step of {step:.2g}"
        f", and the shortest has {nearest:.2f} of the length of the longest"
    )


def _correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[D], of columns; 0 where one does not move."""
    first, second = first - first.mean(axis=0), second - second.mean(axis=0)
    scale = np.sqrt((first**2).sum(axis=0) * (second**2).sum(axis=0))
    return np.where(scale > 0, (first * second).sum(axis=0) / np.where(scale > 0, scale, 1), 0)
