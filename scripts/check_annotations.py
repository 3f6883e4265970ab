"""Do the checks find what annotators get wrong, and do they leave honest annotations alone?

    python scripts/check_annotations.py --output outputs/check_annotations.json

Plays the built-in simulator, has every decision annotated by a template (`rlvla_envs.libero.annotate:annotate`),
and plants one fault of each class in the fields of a copy of each episode (`planted_faults.py`). A fault counts as
found if the engine, after one attempt, drops a decision that it is in. A goal change is tried once more without a
scene, where nobody can say which side of it is wrong: there any decision will do. Exit status 1 when less than 99 % of
a class are found, or one honest decision is refused.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from tqdm import tqdm

from planted_faults import FAULTS, Episode
from rlvla.annotation.key_frames import find_key_frames
from rlvla.annotation.rounds import FirstAnswers, annotate_take
from rlvla.annotation.take import Query, Reply, Take
from rlvla.config import AnnotateConfig, CheckConfig, KeyFrameConfig
from rlvla.run.metrics import wilson_interval
from rlvla.types import Annotation, Timeline
from rlvla_envs.libero.annotate import annotate
from rlvla_envs.tabletop.env import TabletopEnv
from rlvla_envs.tabletop.expert import play

MIN_FOUND = 0.99
CHUNK_LENGTH = 5
HONEST = "honest decisions refused"


@dataclass(kw_only=True)
class Count:
    """How often something was refused."""

    caught: int = 0
    num: int = 0
    checks: Counter[str] = field(default_factory=Counter)
    """Check -> how many of them it caught; several checks may catch one."""

    def add(self, refused: bool, checks: Iterable[str]) -> None:
        """Count one more, with the checks that refused it."""
        self.num += 1
        self.caught += refused
        self.checks.update(checks)

    def summary(self) -> dict[str, Any]:
        """For JSON."""
        low, high = wilson_interval(self.caught, self.num)
        checks = dict(self.checks.most_common())
        share = self.caught / self.num
        return {"caught": self.caught, "num": self.num, "share": share, "low": low, "high": high, "checks": checks}


def episodes(num: int) -> Iterator[Episode]:
    """Successes of the scripted expert from the first train initial states, the tasks in turn."""
    env = TabletopEnv()
    for index in range(num):
        state, task_id = divmod(index, len(env.task_names))
        task = env.task_names[task_id]
        played = play(env, task_id, state, chunk_length=CHUNK_LENGTH, stride=1, rng=np.random.default_rng(0))
        assert played is not None, f"the expert fails at {task}, initial state {state}"
        # An env step a decision, hence so is what a decision does.
        cut = tuple(replace(decision, actions=decision.actions[:1]) for decision in played)
        name = f"{task}, initial state {state}"
        take = Take(index=index, name=name, decisions=cut, stride=1, fps=env.metadata["render_fps"])
        # The gripper of "press" never moves: its last decision stands for the press itself.
        timeline = find_key_frames(take, KeyFrameConfig(closed_sign=-1, first=True, last=task == "press"))
        said = {i: annotate(cut, i, timeline=timeline, rng=np.random.default_rng(0)) for i in range(len(cut))}
        yield Episode(take, timeline, said)
    env.close()


class _Said:
    """An annotator that says what is written."""

    name = model = prompt_hash = ""

    def __init__(self, annotations: Mapping[int, Annotation]) -> None:
        self._annotations = annotations

    async def annotate(self, query: Query) -> Reply:
        """See `Annotator`."""
        return Reply(annotation=self._annotations[query.index])


def refused(annotations: Mapping[int, Annotation], take: Take, timeline: Timeline) -> tuple[set[int], list[str]]:
    """The decisions that the engine drops after one attempt, and the checks that did it."""
    cfg = AnnotateConfig(checks=CheckConfig(), max_attempts=1, max_refused_first=0)
    annotated = asyncio.run(annotate_take(take, timeline, _Said(annotations), cfg, FirstAnswers(cfg)))
    return annotations.keys() - annotated.annotations.keys(), list(annotated.tally.dropped)


def measure(num_episodes: int, seed: int) -> dict[str, Count]:
    """How often honest decisions are refused, and how often faults are found, by class."""
    counts = {name: Count() for name in (HONEST, *FAULTS, "goal change, scene unknown")}
    for take, timeline, honest in tqdm(episodes(num_episodes), total=num_episodes, unit="episode", mininterval=2):
        blind = replace(take, decisions=tuple(replace(decision, scene=None) for decision in take.decisions))
        for seen in (take, blind):
            lost, checks = refused(honest, seen, timeline)
            for i in honest:
                counts[HONEST].add(i in lost, checks if i in lost else ())
        for number, (name, plant) in enumerate(FAULTS.items()):
            lies = plant(Episode(take, timeline, honest), np.random.default_rng((seed, take.index, number)))
            lost, checks = refused(honest | lies, take, timeline)
            counts[name].add(not lost.isdisjoint(lies), checks)
            if name == "goal change":
                lost, checks = refused(honest | lies, blind, timeline)
                counts[f"{name}, scene unknown"].add(bool(lost), checks)
    return counts


def main(num_episodes: int = 200, seed: int = 0, output: Path | None = None) -> int:
    """Measure the checks; 1 when they are not good enough.

    Args:
        num_episodes: press and pick in turn.
        seed: of the faults.
        output: also write the numbers here, as JSON.
    """
    counts = measure(num_episodes, seed)
    for name, count in counts.items():
        low, high = wilson_interval(count.caught, count.num)
        share = f"{count.caught / count.num:>6.1%}  [{low:.1%}, {high:.1%}]"
        print(f"{name:<28}{count.caught:>5} of{count.num:>5}  {share}  {dict(count.checks.most_common())}")
    if output:
        summaries = {name: count.summary() for name, count in counts.items()}
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps({"num_episodes": num_episodes, "seed": seed, **summaries}, indent=2) + "\n")
    is_found = all(count.caught >= MIN_FOUND * count.num for name, count in counts.items() if name != HONEST)
    return int(not is_found or counts[HONEST].caught > 0)


if __name__ == "__main__":
    raise SystemExit(tyro.cli(main, description=__doc__))
