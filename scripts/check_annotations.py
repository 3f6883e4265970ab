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
from collections.abc import Iterator, Mapping
from dataclasses import replace
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


def measure(num_episodes: int, seed: int) -> dict[str, dict[str, Any]]:
    """How often honest decisions are refused, and how often faults are found, by class, and by which checks."""
    caught: dict[str, list[bool]] = {name: [] for name in (HONEST, *FAULTS, "goal change, scene unknown")}
    by = {name: Counter[str]() for name in caught}
    for take, timeline, honest in tqdm(episodes(num_episodes), total=num_episodes, unit="episode", mininterval=2):
        blind = replace(take, decisions=tuple(replace(decision, scene=None) for decision in take.decisions))
        for seen in (take, blind):
            lost, checks = refused(honest, seen, timeline)
            caught[HONEST] += [i in lost for i in honest]
            by[HONEST].update(checks)
        for number, (name, plant) in enumerate(FAULTS.items()):
            lies = plant(Episode(take, timeline, honest), np.random.default_rng((seed, take.index, number)))
            trials = [(name, take, lies)]
            if name == "goal change":
                trials.append((f"{name}, scene unknown", blind, honest))
            for trial, seen, places in trials:
                lost, checks = refused(honest | lies, seen, timeline)
                caught[trial].append(not lost.isdisjoint(places))
                by[trial].update(checks)
    return {name: _summary(hits, by[name]) for name, hits in caught.items()}


def _summary(hits: list[bool], by: Counter[str]) -> dict[str, Any]:
    """Several checks may catch one."""
    low, high = wilson_interval(sum(hits), len(hits))
    counts = {"caught": sum(hits), "num": len(hits), "share": sum(hits) / len(hits)}
    return {**counts, "low": low, "high": high, "checks": dict(by.most_common())}


def main(num_episodes: int = 200, seed: int = 0, output: Path | None = None) -> int:
    """Measure the checks; 1 when they are not good enough.

    Args:
        num_episodes: press and pick in turn.
        seed: of the faults.
        output: also write the numbers here, as JSON.
    """
    found = measure(num_episodes, seed)
    for name, told in found.items():
        print("{:<28}{caught:>5} of{num:>5}  {share:>6.1%}  [{low:.1%}, {high:.1%}]  {checks}".format(name, **told))
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps({"num_episodes": num_episodes, "seed": seed, **found}, indent=2) + "\n")
    is_found = all(told["share"] >= MIN_FOUND for name, told in found.items() if name != HONEST)
    return int(not is_found or found[HONEST]["caught"] > 0)


if __name__ == "__main__":
    raise SystemExit(tyro.cli(main, description=__doc__))
