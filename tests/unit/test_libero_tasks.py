"""LIBERO's suites as the package lists them; needs no assets."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("libero")

from rlvla_envs.base import CHARSET
from rlvla_envs.libero.assets import import_libero
from rlvla_envs.libero.tasks import (
    HORIZONS,
    NUM_INIT_STATES,
    SUITES,
    load_init_states,
    load_splits,
    load_tasks,
)


@pytest.fixture(scope="module", autouse=True)
def libero() -> None:
    import_libero(Path("no assets needed"))


def test_there_are_130_tasks_in_libero_s_order() -> None:
    tasks = {suite: load_tasks(suite) for suite in SUITES}
    assert [len(tasks[suite]) for suite in SUITES] == [10, 10, 10, 10, 90]
    first = tasks["libero_object"][0]
    assert first.name == "pick_up_the_alphabet_soup_and_place_it_in_the_basket"
    assert first.instruction == "pick up the alphabet soup and place it in the basket"
    # Scene names are no part of what the robot is told.
    assert tasks["libero_10"][2].instruction == "turn on the stove and put the moka pot on it"
    every = [task for suite in SUITES for task in tasks[suite]]
    assert all(task.bddl_file.is_file() and task.init_file.is_file() for task in every)
    assert len({task.bddl_file for task in every}) == 130
    assert {character for task in every for character in task.instruction} <= set(CHARSET)
    assert [HORIZONS[suite] for suite in SUITES] == [220, 280, 300, 520, 400]


@pytest.mark.parametrize("suite", SUITES)
def test_official_initial_states_and_how_they_are_split(suite: str) -> None:
    splits = load_splits(suite)
    assert not set(splits["train"]) & set(splits["evaluate"])
    assert set(splits["train"]) | set(splits["evaluate"]) == set(splits["official"]) == set(range(NUM_INIT_STATES))
    states = load_init_states(load_tasks(suite)[-1])
    assert (len(states), states.dtype) == (50, np.float64)
    assert np.isfinite(states).all()
    assert len(np.unique(states, axis=0)) == 50
    assert np.ptp(states[:, 0]) == 0, "the first column is the time"


class Payload:
    """What a malicious file would hold."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("created-by-a-pickle",)


def test_init_states_of_a_wrong_file_are_refused_and_run_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    task = replace(load_tasks("libero_object")[0], init_file=tmp_path / "wrong.pruned_init")
    torch.save(Payload(), task.init_file)
    with pytest.raises(Exception, match="Weights only load failed"):
        load_init_states(task)
    assert not (tmp_path / "created-by-a-pickle").exists()
    torch.save(torch.zeros(3), task.init_file)
    with pytest.raises(ValueError, match=r"wrong\.pruned_init: Tensor .* not 50 initial states"):
        load_init_states(task)


def test_threads_load_at_the_same_time() -> None:
    """torch's list of what may be unpickled belongs to the whole process."""
    tasks = load_tasks("libero_goal") * 15  # often enough: without the lock, 3 rounds already fail in two of five runs
    with ThreadPoolExecutor(8) as pool:
        states = list(pool.map(load_init_states, tasks))
    assert all(np.array_equal(first, again) for first, again in zip(states[:10], states[10:20], strict=True))
