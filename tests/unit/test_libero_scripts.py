"""The arithmetic and the errors of the scripts about LIBERO; tests/e2e/test_scripts.py runs them."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("libero")

import check_libero
import check_libero_expert
import libero_env


class Broken:
    """A suite whose first task says nothing and whose second does not build."""

    suite, task_names = "broken", ("fine", "bad")

    def reset(self, options: dict[str, int]) -> tuple[dict[str, str], dict[str, bool]]:
        if options["task_id"] == 1:
            raise OSError("bad.stl: no such file")
        return {"instruction": ""}, {"is_success": False}


def test_a_failure_is_named_and_the_rest_goes_on() -> None:
    mute, failed = (check_libero.check(Broken(), task)["error"] for task in (0, 1))  # type: ignore[arg-type]
    assert (mute, failed) == ("no instruction", "OSError: bad.stl: no such file")


def test_resets_are_drawn_from_all_tasks_and_states() -> None:
    assert check_libero.draw([4, 7], 0) == [(4, 0), (7, 0)]
    tasks, states = (set(drawn) for drawn in zip(*check_libero.draw([4, 7], 200), strict=True))
    assert (tasks, len(states) > 40) == ({4, 7}, True)


@pytest.mark.libero
def test_no_task_is_a_failure(
    libero_assets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    env = SimpleNamespace(suite="broken", task_names=("fine",), close=lambda: None)
    monkeypatch.setattr(check_libero, "LiberoEnv", lambda *_, **__: env)
    assert check_libero.main(suites=("libero_goal",), tasks=(7,)) == 1
    assert capsys.readouterr().out == "0/0\n"


def rounds(default: tuple[float, ...], ours: tuple[float, ...], **flags: bool) -> list[dict[str, Any]]:
    flags = {"same_states": True, "same_frames": True, **flags}
    return [
        {"default": d, "ours": o, "default_reset": 4.0, "ours_reset": 0.2, **flags}
        for d, o in zip(default, ours, strict=True)
    ]


def test_the_ratio_is_of_medians_of_rounds_that_alternated() -> None:
    names = list(libero_env.CONFIGURATIONS)
    measured = {name: rounds((2.0, 2.0, 9.0), (0.5, 0.4, 0.1)) for name in names}
    measured[names[-1]] = rounds((4.0,), (0.5,), same_frames=False)  # without reflections frames may differ
    result = libero_env.summarise(measured, chunks=2)
    assert result["vs_default"][libero_env.HEADLINE] == result["env_vs_default"] == 5.0
    assert result["vs_default"][names[-1]] == 8.0
    assert result["env_steps_per_s"][libero_env.HEADLINE] == 40.0  # 16 steps in 0.4 s
    assert result["reset_s"] == {"default": 4.0, "ours": 0.2}
    assert (result["same_states"], result["same_frames"]) == (True, True)
    measured[libero_env.HEADLINE] = rounds((2.0,), (0.4,), same_states=False, same_frames=False)
    result = libero_env.summarise(measured, chunks=2)
    assert (result["same_states"], result["same_frames"]) == (False, False)


@pytest.mark.long
@pytest.mark.libero
def test_our_env_is_compared_with_liberos_own(
    libero_assets: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One of the configurations; 0 says that states and frames were the same."""
    headline = {libero_env.HEADLINE: libero_env.CONFIGURATIONS[libero_env.HEADLINE]}
    monkeypatch.setattr(libero_env, "CONFIGURATIONS", headline)
    assert libero_env.main(rounds=1, chunks=1, output=tmp_path / "result.json") == 0
    assert json.loads((tmp_path / "result.json").read_text())["env_vs_default"] > 0


def test_wrong_options() -> None:
    for main, message in [
        (partial(libero_env.main, rounds=0), "--rounds"),
        (partial(check_libero.main, tasks=(-1,)), "--tasks and --resets: need 0 or more"),
        (partial(check_libero.main, resets=-1), "--tasks and --resets: need 0 or more"),
        *(
            (partial(check_libero_expert.main, first_state=i, num_states=n), "not among the states 0..49")
            for i, n in ((45, 10), (-1, 10), (0, 0))
        ),
    ]:
        with pytest.raises(SystemExit, match=message):
            main()


def test_states_that_were_not_tuned_on_count_apart_and_held_out_ones_too() -> None:
    states = [*range(10), 40, 41]
    tasks = {
        name: {str(i): {"success": i not in failed, "env_steps": 9} for i in states}
        for name, failed in {"a": {0, 6}, "b": {41}}.items()
    }
    assert check_libero_expert.NUM_TUNED_STATES == 5
    only_tuned = {"c": {"0": {"success": True, "env_steps": 9}}}
    rows = check_libero_expert.table({"libero_goal": tasks, "libero_90": only_tuned}).splitlines()[2:]
    assert rows[1:4] == [
        "| libero_goal | new | 2 | 9 of 10 | 90.0 % | 59.6 to 98.2 |",
        "| libero_goal | held out | 2 | 3 of 4 | 75.0 % | 30.1 to 95.4 |",
        "| libero_goal | all | 2 | 21 of 24 | 87.5 % | 69.0 to 95.7 |",
    ]
    assert [row.split(" | ")[1] for row in rows[4:]] == ["tuned", "all"]
