"""What becomes of an actor that Ray cannot reach, and of a state on two disks; real deaths: e2e/test_lost_processes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError

from rlvla.cluster import dispatch
from rlvla.cluster.cluster import Cluster
from rlvla.cluster.dispatch import Dispatcher, Watch


class Stream:
    """Answers one by one; an exception among them is raised."""

    def __init__(self, *answers: Any) -> None:
        self._answers = iter(answers)

    def __next__(self) -> Any:
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_an_actor_that_cannot_be_reached_is_ended_before_it_gets_its_jobs_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may live, and would then play two episodes in one env."""
    deeds: list[str] = []
    streams = [Stream(ActorUnavailableError("connection lost", None)), Stream((0, "trajectory"))]
    gone = ActorUnavailableError("killed", None)

    def stream(jobs: list[Any]) -> Stream:
        deeds.append(f"start {jobs}")
        return streams.pop(0)

    def kill(actor: Any, *, no_restart: bool) -> None:
        deeds.append(f"kill, no_restart={no_restart}")

    def get(value: Any) -> Any:
        if value is gone:
            raise value
        return value

    def ask(status: Any, deadline_s: float) -> tuple[str, bool]:
        deeds.append(f"ask for {deadline_s:g} s")
        return "", True

    monkeypatch.setattr(dispatch, "ray", SimpleNamespace(wait=lambda left, **_: (left[:1], []), get=get, kill=kill))
    monkeypatch.setattr(dispatch, "wait_for", ask)
    actor = SimpleNamespace(
        stream=SimpleNamespace(remote=stream),
        status=None,
        wait_end=SimpleNamespace(remote=lambda: gone),
        _actor_id=b"\1",
    )
    dispatcher = Dispatcher([actor], revive_samplers=lambda: None, watch=Watch(60, {"01": "RolloutActor"}))
    job: Any = "job"
    with pytest.warns(UserWarning, match="RolloutActor is ended and started anew: it cannot be reached: .*lost"):
        assert list(dispatcher.stream([job])) == [(0, "trajectory")]
    assert deeds == ["start ['job']", "kill, no_restart=False", "ask for 60 s", "start ['job']"]
    assert dispatcher.resampled == ["job"]


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
