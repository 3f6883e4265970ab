"""A finished run as a simulation's input, and what the simulation says against what the run took.

A run's metrics tell how many turns, zooms and tokens there were, and how long each phase took. They do not tell what an
env step, an engine step or a request costs by itself: `scripts/benchmark/step_costs.py` measures these, and
`scripts/benchmark/grpo.py` the learner and the sync.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rlvla.durable.files import read_lines
from rlvla.plan.costs import Costs, Episode, Pass, Simulated


@dataclass(frozen=True, kw_only=True)
class Played:
    """What the episodes of a step were like; means."""

    num_trajectories: int
    num_turns: float
    """Of a trajectory."""
    share_at_horizon: float
    """Trajectories that used all of their env steps."""
    zooms: float
    """Of a turn."""
    response_tokens: float
    """Sampled in a turn, actions among them."""
    row_tokens: float = 0.0
    """Of a row in the learner, its context included."""


def of_metrics(line: Mapping[str, Any]) -> Played:
    """From a line of `metrics.jsonl`. Raises KeyError: it is not of a GRPO step that learned."""
    rows = line["num_rows"]
    return Played(
        num_trajectories=int(line["num_trajectories"]),
        num_turns=line["num_turns"],
        share_at_horizon=line["end/max_env_steps"],
        zooms=line["tool_calls_per_turn"],
        response_tokens=line["response_tokens"],
        row_tokens=line["tokens_per_s"] * line["time/update_s"] / rows if rows else 0.0,
    )


def groups_of(
    played: Played,
    *,
    group_size: int,
    horizon: int,
    max_zooms: int,
    num_actions: int,
    at_once: bool,
    num_scenes: int = 1,
) -> list[list[Episode]]:
    """Groups of episodes with these means, dealt with a seed of their own, the same each time.

    Those at the horizon have `horizon` turns. Others share the rest as in an urn: who has more turns gets the next one
    more likely, which spreads them as widely as episodes that end by chance.

    Args:
        played: means.
        group_size: of a group; the last one may be smaller.
        horizon: turns at most.
        max_zooms: of a turn.
        num_actions: tokens of a chunk.
        at_once: they are drawn in one engine step, not one after another.
        num_scenes: that the groups go through.
    """
    rng, count = random.Random(0), played.num_trajectories
    lengths = _lengths(rng, played, horizon)
    num_turns = sum(lengths)
    zooms = [0] * num_turns
    for _ in range(min(round(played.zooms * num_turns), max_zooms * num_turns)):
        zooms[rng.choice([i for i, num in enumerate(zooms) if num < max_zooms])] += 1
    text = max(1, round(played.response_tokens - num_actions))
    dealt = iter(zooms)

    def turn(num_zooms: int) -> tuple[Pass, ...]:
        share = max(1, round(text / (num_zooms + 1)))
        last = share if at_once else share + num_actions
        passes = [
            Pass(num_new_tokens=0, num_pictures=1, num_steps=last if i == num_zooms else share, zooms=i < num_zooms)
            for i in range(num_zooms + 1)
        ]
        if at_once:
            passes.append(Pass(num_new_tokens=num_actions + 1, num_pictures=0, num_steps=1))
        return tuple(passes)

    episodes = [
        Episode(
            scene=i // group_size % num_scenes,
            turns=tuple(turn(next(dealt)) for _ in range(length)),
            num_tokens=round(played.row_tokens * length),
        )
        for i, length in enumerate(lengths)
    ]
    return [episodes[i : i + group_size] for i in range(0, count, group_size)]


def _lengths(rng: random.Random, played: Played, horizon: int) -> list[int]:
    """Turns of each episode."""
    count = played.num_trajectories
    num_full = round(played.share_at_horizon * count) if horizon > 1 else 0
    lengths = [horizon] * num_full + [1] * (count - num_full)
    for _ in range(round(played.num_turns * count) - sum(lengths)):
        open_ = [i for i in range(num_full, count) if lengths[i] < horizon]
        if not open_:
            break
        lengths[rng.choices(open_, [lengths[i] for i in open_])[0]] += 1
    rng.shuffle(lengths)
    return lengths


def read_costs(step_costs: Path, benchmark: Path | None = None) -> Costs:
    """From what the two benchmarks wrote.

    Raises:
        KeyError: a file lacks a key, or has one that is not a cost.
    """
    measured = json.loads(step_costs.read_text())["costs"]
    if unknown := measured.keys() - {field.name for field in fields(Costs)}:
        raise KeyError(f"{step_costs}: costs that no simulation knows: {sorted(unknown)}")
    measured["decode"] = tuple((num, seconds) for num, seconds in measured["decode"])
    if benchmark is not None:
        gathered = json.loads(benchmark.read_text())
        other = gathered.get("parts", {}).get("tabletop", gathered)
        measured |= {"learn_token_s": 1 / other["learner"]["tokens_per_s"], "sync_s": other["sync_seconds"]}
    return Costs(**measured)


def read_run(path: Path) -> list[dict[str, Any]]:
    """The steps of a `metrics.jsonl` from the second one on: in the first, envs and engine start."""
    return read_lines(path)[1:]


def deviations(simulated: Simulated, lines: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    """(simulated, measured) seconds by phase and of a step, means over the steps."""
    phases = {
        name: (simulated.mean(f"{name}_s"), sum(line[f"time/{name}_s"] for line in lines) / len(lines))
        for name in ("rollout", "learn", "sync")
    }
    return phases | {"step": (sum(a for a, _ in phases.values()), sum(b for _, b in phases.values()))}
