"""States that are written aside: what is in them, whom they keep waiting, and what becomes of them at a fault."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlvla.cluster.cluster import Cluster
from rlvla.config import GRPOConfig, LoraConfig
from rlvla.durable.aside import Aside
from rlvla.durable.checkpoints import damage
from tests.learning import make_groups, make_learner, make_run, save_state

SLOW_S = 0.5


@pytest.fixture
def cfg(checkpoint: Path, tmp_path: Path) -> GRPOConfig:
    return GRPOConfig(model=checkpoint, output=tmp_path / "run", save_every=1, keep_states=10)


def same(one: Any, other: Any) -> bool:
    """Bit for bit, whatever holds the tensors."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize(
    "options",
    [{}, {"dtype": "bfloat16"}, {"zero_stage": 3}, {"lora": LoraConfig(rank=4, alpha=8.0), "zero_stage": 2}],
    ids=["plain", "zero-2", "zero-3", "lora"],
)
def test_a_state_that_is_written_while_a_step_is_made_is_that_of_before_the_step(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    learner, save = make_learner(checkpoint, **options), torch.save
    learner.step(make_groups(checkpoint))  # the optimizer has moments now

    def slowly(state: Any, file: Path) -> None:
        time.sleep(SLOW_S)
        save(state, file)

    save_state(learner, tmp_path / "at once")
    monkeypatch.setattr(torch, "save", slowly)
    began = time.monotonic()
    learner.begin_state(tmp_path / "aside")
    assert time.monotonic() - began < SLOW_S
    metrics = learner.step(make_groups(checkpoint, seed=1))
    assert metrics["skipped_updates"] == 0
    assert metrics["time/save_s"] > 0
    written = learner.finish_state()
    monkeypatch.undo()
    save_state(learner, tmp_path / "behind")
    learner.close()
    at_once, aside, behind = (tmp_path / name / "rank_0.pt" for name in ("at once", "aside", "behind"))
    assert written == {"rank_0.pt": aside.stat().st_size}
    before, found, after = (torch.load(file, weights_only=True) for file in (at_once, aside, behind))
    assert same(before, found)
    assert not same(before["optimizer"], after["optimizer"])


def test_a_writer_that_fails_is_told_by_who_waits_for_it_and_the_learner_goes_on(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(state: Any, file: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    learner = make_learner(checkpoint)
    monkeypatch.setattr(torch, "save", fail)
    learner.begin_state(tmp_path)
    assert learner.step(make_groups(checkpoint))["skipped_updates"] == 0
    with pytest.raises(OSError, match="No space left"):
        learner.finish_state()
    learner.close()


class Writer:
    """Stands for a cluster whose learners write until they are let go."""

    def __init__(self, fail: Callable[[], None] = lambda: None) -> None:
        self.free, self.begun, self._fail = threading.Event(), [], fail

    def begin_state(self, folder: Path) -> None:
        folder.mkdir()
        self.begun.append(folder)

    def finish_state(self) -> None:
        assert self.free.wait(60)
        self._fail()
        (self.begun[-1] / "rank_0.pt").write_bytes(b"weights")

    @property
    def deeds(self) -> dict[str, Any]:
        return {"begin_state": self.begin_state, "finish_state": self.finish_state}


def states(cfg: GRPOConfig) -> list[str]:
    """Of the run, those that are whole; nothing else may look like one."""
    found = sorted((cfg.output / "state").glob("step-*"))
    assert all(damage(folder) == "" for folder in found)
    return [folder.name for folder in found]


def test_the_run_goes_on_while_a_state_is_written_and_the_next_one_waits(cfg: GRPOConfig) -> None:
    writer = Writer()
    run = make_run(cfg, **writer.deeds)
    run._tasks.surplus = groups = make_groups(cfg.model)
    run._keep(0)
    run._tasks.surplus = []  # the run goes on, the state stays as it was begun
    assert states(cfg) == []
    threading.Timer(SLOW_S, writer.free.set).start()
    run._keep(1)
    assert states(cfg) == ["step-000001"]
    assert run._saving.seconds["time/save_s"] > SLOW_S / 2
    run._states.finish()
    assert states(cfg) == ["step-000001", "step-000002"]
    file = cfg.output / "state/step-000001/surplus.jsonl"
    assert len(run._surplus(file, run._scored_by)) == len({group.task for group in groups})


def test_a_state_that_could_not_be_written_is_told_at_the_next_one(cfg: GRPOConfig) -> None:
    def fail() -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/3")

    writer = Writer(fail)
    writer.free.set()
    run = make_run(cfg, **writer.deeds)
    run._keep(0)
    with pytest.raises(OSError, match=r"step-000001 could not be written \(PytorchStreamWriter.*nothing of it is kept"):
        run._keep(1)
    assert list((cfg.output / "state").iterdir()) == []
    run._keep(1)
    with pytest.raises(OSError, match="step-000002 could not be written"):
        run.finish()


def test_an_interrupt_waits_for_the_state_that_is_being_written_and_makes_no_other(cfg: GRPOConfig) -> None:
    writer = Writer()
    run = make_run(cfg, **writer.deeds)
    run._keep(0)

    def play() -> None:
        with run.rollout(1):
            threading.Timer(SLOW_S, writer.free.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play()
    assert states(cfg) == ["step-000001"]
    assert len(writer.begun) == 1
    run = make_run(replace(cfg, save_every=2), **writer.deeds)

    def play_on() -> None:
        with run.rollout(2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play_on()
    assert states(cfg) == ["step-000001", "step-000002"]


def test_a_state_that_could_not_be_written_is_told_by_the_next_step_or_written_anew(cfg: GRPOConfig) -> None:
    """States may be many steps apart; who is interrupted has room again, or is told once more."""
    full = [True]

    def fail() -> None:
        if full:
            raise RuntimeError("PytorchStreamWriter failed writing file data/3")

    writer = Writer(fail)
    writer.free.set()
    run = make_run(cfg, **writer.deeds)
    with run:
        run._keep(0)
        run._states.wait(60)
        with run.rollout(1):
            pass
        with pytest.raises(OSError, match="step-000001 could not be written"):
            run.log(1, [], [], {"skipped_updates": 0.0, "num_rows": 1.0})
    run._keep(0)
    run._states.wait(60)
    full.clear()

    def play() -> None:
        with run.rollout(1):
            raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="step-000001 could not be written"), pytest.raises(KeyboardInterrupt):
        play()
    assert states(cfg) == ["step-000001"]


def test_a_cluster_that_ends_in_the_midst_of_something_waits_for_who_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, deeds = Cluster.__new__(Cluster), list[str]()
    monkeypatch.setattr(cluster, "_end", lambda: deeds.append("end"))
    cluster.before_end = lambda timeout_s: deeds.append(f"wait {timeout_s:g} s")
    cluster.__exit__(ValueError)
    assert deeds == ["wait 60 s", "end"]


def test_work_aside_raises_where_it_is_begun_or_where_it_is_waited_for() -> None:
    done: list[str] = []

    def work(fails: str = "") -> Iterator[None]:
        if fails == "here":
            raise ValueError("here")
        thread = threading.current_thread()
        yield
        assert threading.current_thread() is not thread
        if fails == "aside":
            raise ValueError("aside")
        done.append("work")

    aside = Aside()
    with pytest.raises(ValueError, match="here"):
        aside.begin(work("here"))
    aside.begin(work("aside"))
    with pytest.raises(ValueError, match="aside"):
        aside.begin(work())
    aside.finish()
    assert done == []  # what was not begun is not done
    aside.begin(work())
    aside.finish()
    assert done == ["work"]
