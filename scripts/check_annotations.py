"""Do the checks find what annotators get wrong, and do they leave honest annotations alone?

    python scripts/check_annotations.py --output outputs/check_annotations.json
    python scripts/check_annotations.py --show 20     what the checks missed and wrongly refused, for tuning them

Plays the built-in simulator, annotates every decision honestly in many words, and plants one fault of each class in a
copy of each episode. A fault counts as found if a decision that it is in gets a problem, as at the engine's first
attempt; without a scene, where nobody can say which side of a change is wrong, if any decision gets one. Exit status 1
when, in the held-out words ("test"), the checks find less than 95 % of a class or refuse more than 2 % of the honest
decisions. The other words ("dev") are there to tune the checks on, the only ones that --show shows.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from planted_faults import FAULTS, Planted
from rlvla.annotation.checks import check_decision
from rlvla.annotation.course import check_course
from rlvla.annotation.key_frames import find_key_frames
from rlvla.annotation.take import Problem, Take
from rlvla.config import CheckConfig, KeyFrameConfig
from rlvla.run.metrics import wilson_interval
from rlvla.types import Annotation, Timeline
from rlvla_envs.tabletop import TabletopEnv
from rlvla_envs.tabletop_expert import play
from wordings import Episode, reword
from wordings_dev import DEV
from wordings_dev_2 import DEV_2
from wordings_held_out import HELD_OUT

SPLITS = {"dev": DEV + DEV_2, "test": HELD_OUT}
MIN_RECALL, MAX_REFUSED = 0.95, 0.02
BLIND = "without scene"
"""Suffix of what is measured a second time where no privileged state helps the checks."""
CHUNK_LENGTH = 5


@dataclass(kw_only=True)
class Count:
    """How often something got a problem."""

    caught: int = 0
    num: int = 0
    checks: Counter[str] = field(default_factory=Counter)
    """Check -> how many of them it caught; several checks may catch one."""

    def add(self, problems: Sequence[Problem]) -> None:
        """Count one more, with what the checks say of it."""
        self.num += 1
        self.caught += bool(problems)
        self.checks.update({problem.check for problem in problems})

    @property
    def share(self) -> float:
        """Caught of all."""
        return self.caught / self.num

    def summary(self) -> dict[str, Any]:
        """For JSON."""
        low, high = wilson_interval(self.caught, self.num)
        checks = dict(self.checks.most_common())
        return {"caught": self.caught, "num": self.num, "share": self.share, "low": low, "high": high, "checks": checks}


@dataclass(kw_only=True)
class Measured:
    """Of one split of the words."""

    faults: dict[str, Count] = field(default_factory=dict)
    """By class: trials, and faults found."""
    honest: dict[str, Count] = field(default_factory=dict)
    """Decisions, and those wrongly refused: with privileged state, and without."""
    missed: list[str] = field(default_factory=list)
    """Faults that were not found, for the reader."""
    refused: list[str] = field(default_factory=list)
    """Honest decisions that were refused, likewise."""

    def is_good(self) -> bool:
        """Whether the checks find enough and refuse little."""
        is_found = all(count.share >= MIN_RECALL for count in self.faults.values())
        return is_found and all(count.share <= MAX_REFUSED for count in self.honest.values())


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; raises SystemExit naming the option that is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-episodes", type=int, default=200, help="press and pick in turn; default: 200")
    parser.add_argument("--seed", type=int, default=0, help="of words and faults; default: 0")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print N missed faults, N refused decisions")
    parser.add_argument("--output", type=Path, help="also write the numbers here, as JSON")
    args = parser.parse_args(argv)
    if args.num_episodes < 2:
        parser.error(f"--num-episodes: {args.num_episodes} leaves out a task, need at least 2")
    return args


def takes(num: int) -> Iterator[tuple[Take, Timeline]]:
    """Successes of the scripted expert from the first train initial states, the tasks in turn."""
    env = TabletopEnv()
    for index in range(num):
        state, task_id = divmod(index, len(env.task_names))
        task = env.task_names[task_id]
        played = play(env, task_id, state, chunk_length=CHUNK_LENGTH, stride=1, rng=np.random.default_rng(0))
        assert played is not None, f"the expert fails at {task}, initial state {state}"
        name = f"{task}, initial state {state}"
        # The words are of one env step, hence so is what a decision does.
        cut = tuple(replace(decision, actions=decision.actions[:1]) for decision in played)
        take = Take(index=index, name=name, decisions=cut, stride=1, fps=env.metadata["render_fps"])
        # The gripper of "press" never moves: its last decision stands for the press itself.
        yield take, find_key_frames(take, KeyFrameConfig(closed_sign=-1, first=True, last=task == "press"))
    env.close()


def judge(
    annotations: Mapping[int, Annotation], take: Take, timeline: Timeline, cfg: CheckConfig
) -> dict[int, tuple[Problem, ...]]:
    """Problems of each decision, as the engine finds them: key frames first, and what is refused is seen no more."""
    problems: dict[int, tuple[Problem, ...]] = {}
    accepted: dict[int, Annotation] = {}
    for is_key in (True, False):
        wave = {i: annotation for i, annotation in annotations.items() if timeline.is_key[i] is is_key}
        problems |= {i: check_decision(annotation, take, timeline, i, cfg) for i, annotation in wave.items()}
        good = {i: annotation for i, annotation in wave.items() if not problems[i]}
        course = check_course({**accepted, **good}, take, timeline, cfg, trusted=accepted)
        problems |= {i: course.get(i, ()) for i in good}
        accepted |= {i: annotation for i, annotation in good.items() if i not in course}
    return problems


def measure(played: Sequence[tuple[Take, Timeline]], split: str, seed: int) -> Measured:
    """Check honest and planted annotations of all episodes in the words of one split."""
    measured, cfg = Measured(), CheckConfig()
    split_id = list(SPLITS).index(split)
    for take, timeline in tqdm(played, desc=split, unit="episode", mininterval=2):
        episode = reword(take, timeline, SPLITS[split], np.random.default_rng((seed, split_id, take.index)))
        blind = replace(take, decisions=tuple(replace(decision, scene=None) for decision in take.decisions))
        told: set[int] = set()
        for name, seen in (("honest", take), (f"honest, {BLIND}", blind)):
            for i, problems in judge(episode.annotations, seen, timeline, cfg).items():
                measured.honest.setdefault(name, Count()).add(problems)
                if problems and i not in told:
                    measured.refused.append(f"{name}: {_told(episode, episode.annotations, i, problems)}")
                    told.add(i)
        for number, (name, plant) in enumerate(FAULTS.items()):
            planted = plant(episode, np.random.default_rng((seed, split_id, take.index, number)))
            if planted is None:
                continue
            _try(measured, name, episode, take, planted, cfg)
            if name == "goal change":
                _try(measured, f"{name}, {BLIND}", episode, blind, planted, cfg)
    return measured


def _try(measured: Measured, name: str, episode: Episode, take: Take, planted: Planted, cfg: CheckConfig) -> None:
    """Count whether one planted fault is found."""
    problems = judge(planted.annotations, take, episode.timeline, cfg)
    # Where nobody knows the scene, a change of goal shows, but not which side of it is wrong.
    where = problems if take.decisions[0].scene is None else planted.touched
    found = [problem for i in where for problem in problems[i]]
    measured.faults.setdefault(name, Count()).add(found)
    if not found:
        told = _told(episode, planted.annotations, planted.touched[0], ())
        elsewhere = [i for i, ones in problems.items() if ones]
        measured.missed.append(f"{name} ({planted.what}; problems only at {elsewhere}): {told}")


def _told(episode: Episode, annotations: Mapping[int, Annotation], index: int, problems: Sequence[Problem]) -> str:
    """One decision in full, for who tunes the checks."""
    timeline, annotation = episode.timeline, annotations[index]
    state = "closed" if timeline.is_closed[index] else "open"
    lines = [
        f"{episode.take.name}, decision {index} of {len(annotations)}, gripper {state}, "
        f"switches {list(timeline.switches[index:])}",
        *(f"thought: {thought}" for thought in annotation.thoughts),
        f"subtask: {annotation.subtask} | subject: {annotation.subject} | gripper: {annotation.gripper} "
        f"| progress: {annotation.progress} | looks: {annotation.looks}",
        *(f"problem: {problem.check}: {problem.text}" for problem in problems),
    ]
    return "\n    ".join(lines)


def table(results: Mapping[str, Measured]) -> str:
    """Shares in per cent with their 95 % intervals, and what the checks refuse wrongly, by check."""
    lines = []
    for split, measured in results.items():
        lines.append(f"{split}: faults found")
        lines += [_row(name, count) for name, count in measured.faults.items()]
        lines.append(f"{split}: honest decisions refused")
        for name, count in measured.honest.items():
            lines.append(_row(name, count))
            lines += [f"    {check:<28}{num:>5}" for check, num in count.checks.most_common()]
    return "\n".join(lines)


def _row(name: str, count: Count) -> str:
    low, high = wilson_interval(count.caught, count.num)
    return f"  {name:<30}{count.caught:>5} of{count.num:>5}  {count.share:>6.1%}  [{low:.1%}, {high:.1%}]"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure both splits; 1 when the checks are not good enough."""
    args = parse(argv)
    played = list(tqdm(takes(args.num_episodes), total=args.num_episodes, desc="play", unit="episode", mininterval=2))
    results = {split: measure(played, split, args.seed) for split in SPLITS}
    for texts in (results["dev"].missed, results["dev"].refused) if args.show else ():
        # Evenly from all of them, since neighbours are alike.
        print(*texts[:: math.ceil(len(texts) / args.show) or 1], sep="\n\n", end="\n\n")
    print(table(results))
    if args.output:
        splits = {
            split: {
                "faults": {name: count.summary() for name, count in measured.faults.items()},
                "honest": {name: count.summary() for name, count in measured.honest.items()},
            }
            for split, measured in results.items()
        }
        report = {"num_episodes": args.num_episodes, "seed": args.seed, "splits": splits}
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(report, indent=2) + "\n")
    return int(not results["test"].is_good())


if __name__ == "__main__":
    sys.exit(main())
