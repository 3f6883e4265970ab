"""Score saved trajectories: try a reward without simulator, GPU or torch.

    python scripts/score.py outputs/grpo/trajectories.jsonl --config recipes/configs/grpo_tiny_tabletop.yaml
    python scripts/score.py outputs/grpo/trajectories.jsonl --reward success --reward my_rewards.py:brevity

Prints each term unweighted, the weighted reward and the success of every trajectory, and their means.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError
from yaml import YAMLError

import rlvla_reward
from rlvla.config import GRPOConfig, RewardTermConfig, from_yaml
from rlvla.durable.trajectories import load_trajectories
from rlvla.types import Group, Trajectory

WIDTH = 12
"""Characters of a column of numbers, at least."""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trajectories", type=Path, help="a trajectories.jsonl of a run")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--config", type=Path, help="a GRPO config, whose reward is taken; default: its default reward")
    source.add_argument("--reward", action="append", metavar="FN", help="a term of weight 1; may be repeated")
    return parser.parse_args(argv)


def reward_terms(args: argparse.Namespace) -> Sequence[RewardTermConfig]:
    """What to score with."""
    if args.reward:
        return [RewardTermConfig(fn=fn) for fn in args.reward]
    return (from_yaml(GRPOConfig, args.config) if args.config else GRPOConfig()).reward


def score(trajectories: Sequence[Trajectory], reward: rlvla_reward.Reward) -> list[Trajectory]:
    """Each trajectory with its reward; no advantages, which would need whole groups."""
    groups = [Group(task=t.task, trajectories=(t,)) for t in trajectories]
    return [reward.score(group).trajectories[0] for group in groups]


def table(trajectories: Sequence[Trajectory], names: Sequence[str]) -> str:
    """One line a trajectory and one for the means of what is finite; crashed simulators show `-` and count nowhere."""
    columns = [*names, "reward", "success"]
    widths = [max(WIDTH, len(column) + 2) for column in columns]
    header = f"{'trajectory':44s}{'end':>14s}" + "".join(f"{c:>{w}s}" for c, w in zip(columns, widths, strict=True))
    rows, lines = [], [header]
    for trajectory in trajectories:
        task = trajectory.task
        label = f"{task.suite} {task.task_id}, state {task.init_state_id}, {len(trajectory.turns)} turns"
        cells = ["-"] * len(columns)
        if trajectory.reward is not None:
            rows.append([*(trajectory.reward_terms[n] for n in names), trajectory.reward, float(trajectory.success)])
            cells = [f"{value:.4g}" for value in rows[-1]]
        lines.append(
            f"{label:44s}{trajectory.end:>14s}" + "".join(f"{c:>{w}s}" for c, w in zip(cells, widths, strict=True))
        )
    if rows:
        finite = [[value for value in column if math.isfinite(value)] for column in zip(*rows, strict=True)]
        means = [f"{sum(column) / len(column):.4g}" if column else "-" for column in finite]
        lines.append(
            f"{f'mean of {len(rows)}':58s}" + "".join(f"{c:>{w}s}" for c, w in zip(means, widths, strict=True))
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 1 and one line of explanation when the file, the config or a term is wrong."""
    args = parse_args(argv)
    try:
        reward = rlvla_reward.build(reward_terms(args))
        scored = score(load_trajectories(args.trajectories), reward)
    except (ValidationError, YAMLError) as error:
        print(f"{args.config}: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:  # RewardError and PluginError among them; each says what to do
        print(error, file=sys.stderr)
        return 1
    print(table(scored, list(reward.weights)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
