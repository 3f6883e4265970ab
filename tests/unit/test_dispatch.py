"""Episodes on envs, with a Ray that has no process; real deaths: e2e/test_lost_processes, e2e/test_hosts."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, ObjectLostError

from rlvla.cluster import dispatch, frames
from rlvla.cluster.cluster import Cluster, ProcessLostError
from rlvla.cluster.dispatch import Dispatcher, Watch
from rlvla.cluster.frames import without_frames
from rlvla.durable.records import from_json, to_json
from rlvla.rollout.collect import Job, stream
from rlvla.types import Trajectory
from tests.examples import TASK, act, good_turn, trajectory, turn


@dataclass(eq=False)
class Call:
    """A call of an actor, and what `ray.get` gives of it once it has ended."""

    actor: Any
    job: Job
    slot: int
    answer: Any = None


@dataclass(eq=False)
class Actor:
    """Plays what it is given when `FakeRay` says so."""

    name: str
    calls: list[Call]
    node: str = "node"
    _actor_id: bytes = b""
    deaths: int = 0
    play: Any = None
    status: Any = None
    wait_end: Any = None

    def __post_init__(self) -> None:
        self._actor_id = self.name.encode()
        self.play = SimpleNamespace(options=lambda num_returns: SimpleNamespace(remote=self._play))
        self.status = self
        self.wait_end = SimpleNamespace(remote=lambda: None)

    def _play(self, slot: int, job: Job) -> tuple[Call, str]:
        call = Call(self, job, slot)
        self.calls.append(call)
        return call, f"frames of {job.member}"


@dataclass
class FakeRay:
    """`ray`, in which the call that `choose` picks ends next."""

    choose: Callable[[Sequence[Call]], Call | None]
    end: Callable[[Call], Any] = lambda call: ((without_frames(trajectory(task=call.job.task))[0], call.actor.node))
    killed: list[str] = field(default_factory=list)

    def wait(self, calls: Sequence[Any], num_returns: int = 1, timeout: float = 0) -> tuple[list[Any], list[Any]]:
        done = [call for call in calls if not isinstance(call, Call)]
        chosen = done[0] if done else self.choose(calls)
        return ([chosen] if chosen else []), [call for call in calls if call is not chosen]

    def get(self, call: Call, timeout: float | None = None) -> Any:
        if call.answer is None:
            call.answer = GetTimeoutError() if timeout else self.end(call)
        if isinstance(call.answer, Exception):
            raise call.answer
        return None if call.answer == "lost" else call.answer

    def kill(self, actor: Actor, *, no_restart: bool) -> None:
        assert not no_restart
        self.killed.append(actor.name)


class Scene:
    """Actors of two envs each and their dispatcher."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ray: FakeRay, num_actors: int = 2) -> None:
        self.calls: list[Call] = []
        self.revived = 0
        self.actors = [Actor(f"{i}", self.calls) for i in range(num_actors)]
        monkeypatch.setattr(dispatch, "ray", ray)
        monkeypatch.setattr(dispatch, "wait_for", lambda status, _: Call(status, Job(task=TASK, member=0), 0, None))
        watch = Watch(60, {actor._actor_id.hex(): "RolloutActor" for actor in self.actors})
        monkeypatch.setattr(watch, "look", lambda actors: [actor.node for actor in actors])
        self.dispatcher = Dispatcher(self.actors, 2, self.revive, watch)

    def revive(self) -> None:
        self.revived += 1


def jobs(*tasks: int) -> list[Job]:
    return [Job(task=replace(TASK, task_id=task), member=i) for i, task in enumerate(tasks)]


def first(calls: Sequence[Call]) -> Call:
    return calls[0]


def last(calls: Sequence[Call]) -> Call:
    return calls[-1]


@pytest.mark.parametrize("choose", [first, last])
def test_each_env_plays_one_episode_at_a_time_and_each_episode_once(
    monkeypatch: pytest.MonkeyPatch, choose: Callable[[Sequence[Call]], Call]
) -> None:
    busy: Counter[tuple[str, int]] = Counter()

    def end(call: Call) -> Any:
        busy[call.actor.name, call.slot] -= 1
        return without_frames(trajectory(task=call.job.task))[0], "node"

    scene = Scene(monkeypatch, FakeRay(choose, end))
    play = Actor._play

    def counted(actor: Actor, slot: int, job: Job) -> Any:
        busy[actor.name, slot] += 1
        assert busy[actor.name, slot] == 1
        return play(actor, slot, job)

    monkeypatch.setattr(Actor, "_play", counted)
    for actor in scene.actors:
        actor.__post_init__()
    todo = jobs(*[0, 1, 2] * 4)
    assert {job for job, _ in stream(scene.dispatcher, todo)} == {*todo}
    assert [call.job for call in scene.calls] != todo  # the scene counts
    assert sorted(call.job.member for call in scene.calls) == [job.member for job in todo]
    assert len({(call.actor.name, call.slot) for call in scene.calls}) == 4
    assert not scene.dispatcher.resampled


def test_an_env_keeps_its_scene_as_long_as_there_is_something_to_play_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(0)
    scene = Scene(monkeypatch, FakeRay(chance.choice), num_actors=1)
    dict(stream(scene.dispatcher, jobs(*[0, 1] * 12)))
    own = [[call.job.task.task_id for call in scene.calls if call.slot == slot] for slot in (0, 1)]
    assert sum(a != b for tasks in own for a, b in pairwise(tasks)) <= 1  # to help with the other's at the end


def test_the_longest_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {0: 10, 1: 99, 2: 50, 3: 70}

    def end(call: Call) -> Any:
        played = replace(trajectory(task=call.job.task), num_env_steps=steps[call.job.task.task_id])
        return without_frames(played)[0], "node"

    scene = Scene(monkeypatch, FakeRay(first, end), num_actors=1)
    dict(stream(scene.dispatcher, jobs(0, 1, 2)))
    scene.calls.clear()
    dict(stream(scene.dispatcher, [Job(task=replace(TASK, task_id=t), member=t) for t in (0, 1, 2, 3)]))
    # In the envs are the scenes of 1 and 2; nobody knows how long 3 takes.
    assert [call.job.member for call in scene.calls] == [1, 2, 3, 0]


def test_an_actor_that_dies_gives_back_what_it_was_playing_and_keeps_what_had_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def end(call: Call) -> Any:
        if call.actor.name == "0" and call.actor.deaths == 0 and call.job.member >= 2:
            call.actor.deaths = 1
            return ActorDiedError()
        return without_frames(trajectory(task=call.job.task))[0], "node"

    scene = Scene(monkeypatch, FakeRay(first, end))
    todo = jobs(*[0] * 8)
    played = dict(stream(scene.dispatcher, todo))
    assert {*played} == {*todo}
    assert 1 <= len(scene.dispatcher.resampled) <= 2
    assert len(scene.calls) == len(todo) + len(scene.dispatcher.resampled)


def test_an_actor_that_cannot_be_reached_is_ended_before_it_gets_its_jobs_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may live, and would then play two episodes in one env."""
    answers: list[Any] = [ActorUnavailableError("connection lost", None)]
    ray = FakeRay(first)
    ray.end = lambda call: answers.pop() if answers else (without_frames(trajectory(task=TASK))[0], "node")
    scene = Scene(monkeypatch, ray, num_actors=1)
    with pytest.warns(UserWarning, match="RolloutActor is ended and started anew: it cannot be reached: .*lost"):
        played = dict(stream(scene.dispatcher, jobs(0, 0)))
    assert len(played) == 2
    assert ray.killed == ["0"]
    assert {*scene.dispatcher.resampled} == {*jobs(0, 0)}


def test_what_a_lost_node_had_played_is_played_again_unless_it_is_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The frames are lost with it. What had ended elsewhere stays."""

    def end(call: Call) -> Any:
        if call.actor.name == "0" and call.job.member == 4 and call.actor.deaths == 0:
            call.actor.deaths, call.actor.node = 1, "elsewhere"
            return ActorDiedError()
        return without_frames(trajectory(task=call.job.task))[0], call.actor.node

    scene = Scene(monkeypatch, FakeRay(first, end))
    scene.actors[1].node = "other"
    todo = jobs(*[0] * 6)
    scene.dispatcher.put(todo)
    heard = [scene.dispatcher.get()]
    scene.dispatcher.settle([heard[0][0]])
    while sum(t is not None for _, t in heard) - sum(t is None for _, t in heard) < len(todo):
        heard.append(scene.dispatcher.get())
    lost = [job for job, t in heard if t is None]
    assert lost
    assert heard[0][0] not in lost
    by_job = Counter(call.job for call in scene.calls)
    assert all(by_job[job] == 2 for job in lost)
    on_other = {call.job for call in scene.calls if call.actor.name == "1"}
    assert all(by_job[job] == 1 for job in todo if job not in lost and job.member != 4 and job in on_other)
    assert {*scene.dispatcher.resampled} >= {*lost}


def test_a_lost_sampler_is_revived_before_its_episode_is_played_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = ["lost"]
    ray = FakeRay(first)
    ray.end = lambda call: answers.pop() if answers else (without_frames(trajectory(task=TASK))[0], "node")
    scene = Scene(monkeypatch, ray, num_actors=1)
    assert len(dict(stream(scene.dispatcher, jobs(0, 0)))) == 2
    assert (scene.revived, scene.dispatcher.resampled) == (1, [jobs(0)[0]])


def test_a_result_that_is_lost_with_its_node_is_played_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trajectories that are not small wait on the node where they were played."""
    answers: list[Any] = [ObjectLostError("ab" * 14, "127.0.0.2", "")]
    ray = FakeRay(first)
    ray.end = lambda call: answers.pop() if answers else (without_frames(trajectory(task=TASK))[0], "node")
    scene = Scene(monkeypatch, ray, num_actors=1)
    assert len(dict(stream(scene.dispatcher, jobs(0, 0)))) == 2
    assert jobs(0)[0] in scene.dispatcher.resampled


def test_a_sampler_that_is_lost_while_the_learner_works_is_revived_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights come from the learner. The envs of other samplers play on."""
    lost = [True]

    def end(call: Call) -> Any:
        if call.actor.name == "0" and lost:
            return "lost"
        return without_frames(trajectory(task=call.job.task))[0], "node"

    ray = FakeRay(first, end)
    scene = Scene(monkeypatch, ray)
    scene.dispatcher.put(jobs(*[0] * 12))
    busy = [call for call in scene.calls if call.actor.name == "0"]
    wait = ray.wait
    monkeypatch.setattr(ray, "wait", lambda calls, **o: wait([c for c in calls if isinstance(c, Call)] or calls, **o))
    assert scene.dispatcher.wait(["step"], timeout=60.0) == (["step"], [])
    assert scene.revived == 0
    assert [call for call in scene.calls if call.actor.name == "0"] == busy  # nothing more for who has no sampler
    lost.clear()
    assert sum(scene.dispatcher.get()[1] is not None for _ in range(12)) == 12
    assert scene.revived == 1


def test_episodes_go_on_while_others_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there are, until the call has ended."""
    calls_of_learner = ["step"]
    ray = FakeRay(first)
    wait = ray.wait
    num = 0

    def busy(calls: Sequence[Any], **options: Any) -> tuple[list[Any], list[Any]]:
        nonlocal num
        num += 1
        return wait([call for call in calls if isinstance(call, Call)] if num < 6 else calls, **options)

    monkeypatch.setattr(ray, "wait", busy)
    scene = Scene(monkeypatch, ray)
    scene.dispatcher.put(jobs(*[0] * 9))
    assert scene.dispatcher.wait(calls_of_learner, timeout=60.0) == (["step"], [])
    assert len(scene.calls) == 4 + 5
    assert sum(1 for _ in range(9) if scene.dispatcher.get()[1]) == 9
    assert scene.dispatcher.wait(["late"], timeout=0.0)[0] == ["late"]


def test_frames_come_back_as_they_were_and_are_saved_so(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[str, Any] = {}
    monkeypatch.setattr(frames, "ray", SimpleNamespace(get=kept.__getitem__))
    played = trajectory([good_turn(0), turn(act(), num_cameras=2), good_turn(2)], task=TASK)
    light, kept["ref"] = without_frames(played)
    back = frames.with_frames(light, "ref")
    for mine, other in zip(back.turns, played.turns, strict=True):
        assert len(mine.images) == len(other.images)
        assert all(np.array_equal(a, b) for a, b in zip(mine.images, other.images, strict=True))
        assert np.array_equal(mine.images[0], other.images[0])
        assert len(mine.images[:1]) == 1
    assert to_json(back) == to_json(played)
    assert to_json(from_json(Trajectory, to_json(back))) == to_json(played)


def test_frames_that_are_lost_with_a_node_end_the_step_with_words(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster.__new__(Cluster)

    def lose() -> None:
        with cluster._naming_the_dead():
            raise ObjectLostError("ab" * 14, "127.0.0.2", "")

    with pytest.raises(ProcessLostError, match=r"^a node was lost, and with it the frames .*start the same command"):
        lose()


def test_a_state_whose_parts_lie_on_two_disks_is_refused_when_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rank_0.pt").write_bytes(b"12345")
    cluster = Cluster.__new__(Cluster)
    written = [("127.0.0.1", {"rank_0.pt": 5}), ("127.0.0.2", {"rank_1.pt": 5})]
    monkeypatch.setattr(cluster, "_all_learners", lambda *_: written)
    with pytest.raises(
        OSError, match=r"rank_1.pt of learner rank 1 on 127.0.0.2 .*must be a folder that all nodes share"
    ):
        save(cluster, tmp_path)
    del written[1]
    save(cluster, tmp_path)


def save(cluster: Cluster, folder: Path) -> None:
    cluster.begin_state(folder)
    cluster.finish_state()
