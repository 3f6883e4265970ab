"""What a cold start learns from: each row once an epoch, prepared in threads or not, from any step on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlvla.config import LearnerConfig, SFTConfig, TinyModelConfig
from rlvla.data import dataset
from rlvla.data.dataset import DatasetError
from rlvla.learner.ahead import ahead
from rlvla.learner.sft import SFTTrainer, batch_indices, split
from rlvla.policies.family import start_policy
from tests.examples import demonstration, write_dataset
from tests.learning import first_of_its_process
from tests.unit.recorded import edit_row

FILE = "data/chunk-000/file-000.parquet"


TRAINERS: list[SFTTrainer] = []


@pytest.fixture
def demos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """14 rows of 5 episodes, of other lengths and numbers of pictures; 3 rows are to validate on."""
    first_of_its_process(monkeypatch)
    made = [demonstration(number, num_looks=number % 3, side=32) for number in range(14)]
    write_dataset(tmp_path / "demos", [made[i : i + 3] for i in range(0, 14, 3)], robot="test", fps=1.0)
    yield tmp_path / "demos"
    while TRAINERS:  # else the next learner of this process would find their process group half there
        engine = TRAINERS.pop().engine
        engine._deepspeed.destroy() if TRAINERS else engine.close()


def trainer(folder: Path, data_threads: int = 0, **changes: Any) -> SFTTrainer:
    cfg = SFTConfig(
        dataset=folder,
        tiny=TinyModelConfig(hidden_size=64, num_layers=1, vision_layers=1, image_size=32),
        num_bins=8,
        gripper_dim=None,
        num_steps=6,
        batch_size=4,
        validation_share=0.2,
        learner=LearnerConfig(lr=1e-3, micro_batch_rows=2),
        data_threads=data_threads,
    )
    cfg = replace(cfg, **changes)
    data = dataset.read(folder)
    TRAINERS.append(SFTTrainer(cfg, *start_policy(cfg, data), data))
    return TRAINERS[-1]


def losses(of: SFTTrainer, steps: range) -> list[float]:
    return [value for step in steps for value in (of.step(step)["loss"], of.validate())]


def weights(of: SFTTrainer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in of.engine.model.parameters()]


def test_threads_change_no_bit_and_a_state_goes_on_at_its_row(demos: Path, tmp_path: Path) -> None:
    """The state is of the midst of an epoch, which three batches of 4 do not fill."""
    alone = trainer(demos)
    expected = losses(alone, range(6))
    assert len(set(expected)) == len(expected)
    for data_threads in (1, 3):
        unbroken = trainer(demos, data_threads)
        assert losses(unbroken, range(4)) == expected[:8]
        unbroken.engine.state.save(tmp_path / str(data_threads), counters={})
        resumed = trainer(demos, data_threads)
        resumed.engine.state.load(tmp_path / str(data_threads))
        for each in (unbroken, resumed):
            assert losses(each, range(4, 6)) == expected[8:]
            assert all(map(torch.equal, weights(each), weights(alone)))


def test_a_blind_cold_start_sees_nothing(demos: Path) -> None:
    """Neither in pictures nor in zooms, of which the first steps' rows have some."""
    seen = [trainer(demos, blind=blind)._prepared(0) for blind in (False, True)]
    pixels = [torch.cat([micro.inputs["pixel_values"].flatten() for micro in step]) for step in seen]
    assert len(pixels[0].unique()) > 10
    assert len(pixels[1]) == len(pixels[0])
    assert len(pixels[1].unique()) <= 2  # black, and what pads fewer pictures than another row has


def test_losses_of_all_rows_do_not_depend_on_how_they_are_cut(demos: Path) -> None:
    """Of as many rows as there are to validate on, in one part or in many."""
    one, many = trainer(demos), trainer(demos, learner=LearnerConfig(lr=1e-3, micro_batch_rows=1))
    assert one.validate() == pytest.approx(many.validate(), rel=1e-5)


@pytest.mark.parametrize("data_threads", [0, 2])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"observation.images.0": {"bytes": b"no picture", "path": None}},
            r"demos, episode {0}, frame {1}, observation\.images\.0: a picture cannot be decoded",
        ),
        (
            {"annotation.texts": ["<think>a"], "annotation.crops": []},
            r"demos, episode {0}, frame {1}: annotation is not well-formed markup .*: '<think>a'",
        ),
    ],
)
def test_a_damaged_row_is_named(demos: Path, data_threads: int, change: dict[str, Any], message: str) -> None:
    row = int(batch_indices(split(np.arange(14) // 3, 0.2, seed=0)[0], 4, step=1, seed=0)[2])
    edit_row(demos / FILE, row, **change)
    of = trainer(demos, data_threads)
    of.step(0)  # the threads come upon it meanwhile
    with pytest.raises(DatasetError, match=message.format(row // 3, row % 3)):
        of.step(1)


@pytest.mark.parametrize(("world", "num_rows", "batch_size"), [(1, 10, 4), (2, 24, 8), (3, 17, 6)])
def test_ranks_take_each_row_once_an_epoch(world: int, num_rows: int, batch_size: int) -> None:
    rows, epochs = np.arange(100, 100 + num_rows), 5
    batches = [batch_indices(rows, batch_size, step, seed=3) for step in range(epochs * num_rows // batch_size + 1)]
    shares = [[batch[rank::world] for batch in batches] for rank in range(world)]
    assert {len(part) for parts in shares for part in parts} == {batch_size // world}
    # A row of each rank in turn is the order of the batches again.
    dealt = np.stack([np.concatenate(parts) for parts in shares], axis=1).ravel()
    for epoch in range(epochs):
        assert sorted(dealt[epoch * num_rows : (epoch + 1) * num_rows]) == rows.tolist()


def tasks(made: list[int], count: int, wait: Callable[[int], object] = lambda _: None) -> Iterator[Callable[[], int]]:
    def make(number: int) -> int:
        wait(number)
        made.append(number)
        return number

    return (partial(make, number) for number in range(count))


@pytest.mark.parametrize("num_threads", [0, 1, 3])
def test_results_come_in_order_and_few_ahead(num_threads: int) -> None:
    made: list[int] = []
    late = threading.Event()
    results = ahead(tasks(made, 20, lambda number: number or not num_threads or late.wait(10)), num_threads)
    late.set()
    for number, result in enumerate(results):
        assert result == number
        assert len(made) <= number + 1 + num_threads
    assert sorted(made) == [*range(20)]


@pytest.mark.parametrize("num_threads", [0, 2])
def test_an_error_comes_in_its_place_and_leaves_no_thread(num_threads: int) -> None:
    def fail(number: int) -> None:
        if number == 2:
            raise ValueError("this one")

    before = set(threading.enumerate())
    results = ahead(tasks([], 5, fail), num_threads)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="this one"):
        next(results)
    closed = ahead(tasks([], 5), num_threads)
    next(closed)
    closed.close()  # type: ignore[attr-defined]
    assert set(threading.enumerate()) == before
