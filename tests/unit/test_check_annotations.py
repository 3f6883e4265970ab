"""scripts/check_annotations.py on a few episodes: honest words hold, and a fault is only what its name says."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

import check_annotations
import planted_faults
import wordings
from check_annotations import SPLITS, Count, Measured
from planted_faults import FAULTS, Planted
from rlvla.types import Box
from wordings import FLIP, SLOT, Episode, Pool
from wordings_dev import DEV
from wordings_dev_2 import DEV_2
from wordings_held_out import HELD_OUT

NUM_EPISODES, NUM_SEEDS = 8, 4
PATTERNS = ("subtask", "state", "act", "plan", "goal", "before")


@pytest.fixture(scope="module", params=SPLITS)
def episodes(request: pytest.FixtureRequest) -> list[Episode]:
    pool = SPLITS[request.param]
    played = list(check_annotations.takes(NUM_EPISODES))
    return [
        wordings.reword(take, timeline, pool, np.random.default_rng((seed, take.index)))
        for seed in range(NUM_SEEDS)
        for take, timeline in played
    ]


def all_planted(episodes: list[Episode], fault: str) -> list[tuple[Episode, Planted]]:
    planted = [(e, FAULTS[fault](e, np.random.default_rng(seed))) for seed, e in enumerate(episodes)]
    return [(episode, one) for episode, one in planted if one is not None]


def changes(episode: Episode, planted: Planted, index: int) -> set[str]:
    """Fields of one annotation that the fault changed."""
    honest, lie = asdict(episode.annotations[index]), asdict(planted.annotations[index])
    return {name for name in honest if honest[name] != lie[name]}


def patterns(pool: Pool) -> set[str]:
    by_key = {text for name in PATTERNS for texts in getattr(pool, name).values() for text in texts}
    return by_key | {*pool.look, *pool.verdict}


@pytest.mark.parametrize(("one", "other"), combinations((DEV, DEV_2, HELD_OUT), 2))
def test_the_pools_cover_the_same_and_share_no_sentence(one: Pool, other: Pool) -> None:
    for name in PATTERNS:
        assert getattr(one, name).keys() == getattr(other, name).keys()
    # Sub-tasks are short, and there are few ways to name them.
    assert (patterns(one) & patterns(other)) <= {text for texts in one.subtask.values() for text in texts}
    assert min(len(patterns(one)), len(patterns(other))) > 150


def test_the_sum_of_two_pools_has_the_patterns_of_both() -> None:
    assert patterns(SPLITS["dev"]) == patterns(DEV) | patterns(DEV_2)
    assert SPLITS["dev"].act["lift"] == DEV.act["lift"] + DEV_2.act["lift"]
    assert SPLITS["test"] == HELD_OUT


@pytest.mark.parametrize("split", SPLITS)
def test_every_act_look_and_verdict_names_its_object(split: str) -> None:
    pool = SPLITS[split]
    texts = [text for act in (pool.act, pool.goal) for texts in act.values() for text in texts]
    assert [text for text in [*texts, *pool.look] if "{s}" not in text] == []


def test_honest_annotations_hold_what_an_annotation_must(episodes: list[Episode]) -> None:
    for episode in episodes:
        progress = [annotation.progress or 0.0 for annotation in episode.annotations.values()]
        assert progress == sorted(progress)
        assert 0 <= progress[0] < progress[-1] <= 1
        for i, annotation in episode.annotations.items():
            scene = wordings.scene_of(episode.take.decisions[i])
            subject = next(o for o in scene.objects if o.name == scene.subject)
            assert len(annotation.looks) == episode.timeline.is_key[i]
            assert all(planted_faults.coverage(box, subject.box) == 1 for _, box in annotation.looks)
            assert annotation.gripper == ("closed" if episode.timeline.is_closed[i] else "open")
            for text in (annotation.subject, annotation.subtask, " ".join(annotation.thoughts)):
                assert subject.name in text.lower()
            for thought in annotation.thoughts:
                assert 3 <= len(thought.split()) <= 80
                assert not set(thought) & set("[]{}<>|")
                assert not SLOT.search(thought)


def test_a_seed_gives_the_same_words_and_the_next_one_others() -> None:
    ((take, timeline),) = check_annotations.takes(1)
    first, again, other = (
        wordings.reword(take, timeline, SPLITS["dev"], np.random.default_rng(seed)).annotations for seed in (1, 1, 2)
    )
    assert first == again
    assert all(first[i].thoughts != other[i].thoughts for i in first)


def test_situations_follow_the_expert() -> None:
    told = {}
    for take, timeline in check_annotations.takes(2):
        speakers = [
            wordings.Speaker(decision, timeline, i, SPLITS["dev"], np.random.default_rng(0))
            for i, decision in enumerate(take.decisions)
        ]
        told[take.name.split(",")[0]] = [speaker.situation for speaker in speakers]
    assert told["press"] == ["reach", "reach", "ready", "ready", "press"]
    assert told["pick"] == [
        *("approach", "approach", "hover", "descend", "low", "grasp"),
        *("hold", "lift", "lifted", "lifted", "carry", "over", "over", "release"),
    ]


def test_marks_resolve_to_the_honest_text_or_one_lie() -> None:
    marked = "The hand is <open|closed>, so <grasp|release> it."
    assert wordings.plain(marked) == "The hand is open, so grasp it."
    assert wordings.plain(marked, flipped=0) == "The hand is closed, so grasp it."
    assert wordings.plain(marked, flipped=1) == "The hand is open, so release it."


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_touches_what_it_says_and_nothing_else(episodes: list[Episode], fault: str) -> None:
    for episode, planted in all_planted(episodes, fault):
        assert planted.annotations.keys() == episode.annotations.keys()
        differing = tuple(i for i in episode.annotations if changes(episode, planted, i))
        assert differing == planted.touched != ()


def test_wrong_object_speaks_of_another_one(episodes: list[Episode]) -> None:
    seen = []
    for episode, planted in all_planted(episodes, "wrong object"):
        (index,) = planted.touched
        changed, lie = changes(episode, planted, index), planted.annotations[index]
        scene = wordings.scene_of(episode.take.decisions[index])
        other = planted.what.split(" about ")[1].split(",")[0]
        assert other in {o.name for o in scene.objects} - {scene.subject}
        assert ("subject" in changed) == (other in lie.subject.lower())
        assert "thoughts" not in changed or other in " ".join(lie.thoughts).lower()
        seen.append(frozenset(changed))
    assert {*seen} == {frozenset(part) for part in (("thoughts", "subject", "subtask"), ("thoughts",), ("subject",))}


def test_flipped_word_is_one_opposite(episodes: list[Episode]) -> None:
    fields = set()
    for episode, planted in all_planted(episodes, "flipped gripper word"):
        (index,) = planted.touched
        (name,) = changes(episode, planted, index)
        fields.add(name)
        if name == "thoughts":
            lies, wording = planted.annotations[index].thoughts, episode.wordings[index]
            possible = [
                (
                    *wording.annotation.thoughts[:i],
                    wordings.plain(text, flipped=k),
                    *wording.annotation.thoughts[i + 1 :],
                )
                for i, text in enumerate(wording.marked)
                for k in range(len(FLIP.findall(text)))
            ]
            assert lies in possible
    assert fields == {"thoughts", "gripper"}


def test_box_off_the_object_is_a_legal_box(episodes: list[Episode]) -> None:
    for episode, planted in all_planted(episodes, "box off the object"):
        (index,) = planted.touched
        assert changes(episode, planted, index) == {"looks"}
        ((_, old),), ((_, new),) = episode.annotations[index].looks, planted.annotations[index].looks
        scene = wordings.scene_of(episode.take.decisions[index])
        subject = next(o for o in scene.objects if o.name == scene.subject)
        assert planted_faults.coverage(new, subject.box) < 0.25
        assert (new[2] - new[0], new[3] - new[1]) == (old[2] - old[0], old[3] - old[1])
        assert 0 <= min(new) <= max(new) <= 1000


def test_goal_changes_within_a_segment_and_for_good(episodes: list[Episode]) -> None:
    for episode, planted in all_planted(episodes, "goal change"):
        start, scene = planted.touched[0], wordings.scene_of(episode.take.decisions[planted.touched[0]])
        assert start not in {segment[0] for segment in episode.timeline.segments}
        assert planted.touched == tuple(range(start, len(episode.wordings)))
        subjects = {planted.annotations[i].subject.lower().removeprefix("the ") for i in planted.touched}
        assert len(subjects) == 1
        assert not subjects & {scene.subject, "bowl"}


def test_duplicated_thought_runs_for_six_to_ten_decisions(episodes: list[Episode]) -> None:
    trials = all_planted(episodes, "duplicated thought")
    assert len(trials) == len(episodes) / 2, "episodes of press have 5 decisions"
    for episode, planted in trials:
        run = planted.touched
        assert 6 <= len(run) <= 10
        assert run == tuple(range(run[0], run[0] + len(run)))
        assert {thought for i in run for thought in planted.annotations[i].thoughts} == {episode.goal}


@pytest.mark.parametrize(
    ("text", "swapped"),
    [
        ("Move to pad 1, left of pad 2.", "Move to pad 2, left of pad 1."),
        ("Pad 1 is red; pad 10 is not.", "Pad 2 is red; pad 10 is not."),
        ("Look at the pad 1's badge.", "Look at the pad 2's badge."),
    ],
)
def test_swapped_names(text: str, swapped: str) -> None:
    assert planted_faults._swap(text, "pad 1", "pad 2") == swapped


@pytest.mark.parametrize(
    ("box", "share"), [((0, 0, 10, 10), 0.25), ((5, 5, 15, 15), 1.0), ((20, 0, 30, 10), 0.0), ((0, 0, 10, 100), 0.5)]
)
def test_coverage(box: Box, share: float) -> None:
    assert planted_faults.coverage(box, (5, 5, 15, 15)) == share


def test_good_is_95_of_100_found_and_2_of_100_refused() -> None:
    def is_good(found: int, refused: int) -> bool:
        faults, honest = {"a": Count(caught=found, num=100)}, {"honest": Count(caught=refused, num=100)}
        return Measured(faults=faults, honest=honest).is_good()

    assert [is_good(95, 2), is_good(94, 2), is_good(95, 3)] == [True, False, False]


def test_a_small_run_writes_its_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out" / "check.json"
    status = check_annotations.main(["--num-episodes", "2", "--output", str(path), "--show", "1"])
    report = json.loads(path.read_text())
    assert status in (0, 1)
    assert report["splits"].keys() == {"dev", "test"}
    for half in report["splits"].values():
        assert {name: count["num"] for name, count in half["faults"].items()} == {
            "wrong object": 2,
            "flipped gripper word": 2,
            "box off the object": 2,
            "goal change": 2,
            "goal change, without scene": 2,
            "duplicated thought": 1,
        }
        assert [count["num"] for count in half["honest"].values()] == [19, 19]
    assert "test: honest decisions refused" in capsys.readouterr().out


def test_one_episode_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        check_annotations.main(["--num-episodes", "1"])
    assert "--num-episodes: 1 leaves out a task" in capsys.readouterr().err
