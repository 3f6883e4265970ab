"""A run's metrics as episodes, and the simulation against what was measured."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from rlvla.plan.costs import Costs, Machine
from rlvla.plan.measured import Played, deviations, groups_of, of_metrics, read_costs, read_run
from rlvla.plan.simulation import simulate

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs/results"
PLAYED = Played(
    num_trajectories=96, num_turns=4.5, share_at_horizon=0.25, zooms=0.9, response_tokens=72.0, row_tokens=105.5
)


def test_a_line_of_metrics() -> None:
    line = json.loads((RESULTS / "grpo_metrics.jsonl").read_text().splitlines()[1])
    played = of_metrics(line)
    assert (played.num_trajectories, played.num_turns) == (96, pytest.approx(1.198, abs=1e-3))
    assert played.row_tokens == pytest.approx(3255.258 * 3.871275 / 115, rel=1e-4)


@pytest.mark.parametrize("at_once", [True, False])
def test_dealt_episodes_have_the_means_that_were_measured(at_once: bool) -> None:
    groups = groups_of(PLAYED, group_size=8, horizon=10, max_zooms=2, num_actions=20, at_once=at_once, num_scenes=3)
    episodes = [episode for group in groups for episode in group]
    turns = [turn for episode in episodes for turn in episode.turns]
    lengths = [len(episode.turns) for episode in episodes]
    assert [len(group) for group in groups] == [8] * 12
    assert [group[0].scene for group in groups] == [0, 1, 2] * 4
    assert sum(lengths) == 432
    assert lengths.count(10) >= 24
    assert min(lengths) >= 1
    zooms = [sum(asked.zooms for asked in turn) for turn in turns]
    assert sum(zooms) == round(0.9 * 432)
    assert max(zooms) <= 2
    steps = sum(asked.num_steps for turn in turns for asked in turn)
    sampled = steps + (20 - 1) * len(turns) * at_once  # a block of actions is one step
    assert sampled / len(turns) == pytest.approx(72, rel=0.02)
    assert sum(episode.num_tokens for episode in episodes) == pytest.approx(105.5 * 432, rel=0.01)


def test_costs_are_read_and_wrong_ones_refused(tmp_path: Path) -> None:
    file, benchmark = tmp_path / "costs.json", tmp_path / "benchmark.json"
    file.write_text(json.dumps({"costs": {"decode": [[1, 0.5], [2, 0.75]], "chunk_s": 2.0}}))
    benchmark.write_text(json.dumps({"learner": {"tokens_per_s": 4.0}, "sync_seconds": 3.0}))
    decode = ((1, 0.5), (2, 0.75))
    assert read_costs(file) == Costs(decode=decode, chunk_s=2.0)
    assert read_costs(file, benchmark) == Costs(decode=decode, chunk_s=2.0, learn_token_s=0.25, sync_s=3.0)
    measured = benchmark.read_text()  # before it is gathered into one file, and there
    benchmark.write_text(json.dumps({"driver_mb": 1.0, "parts": {"tabletop": json.loads(measured), "sync": {}}}))
    assert read_costs(file, benchmark).sync_s == 3.0
    assert read_costs(file).step_s(4) == pytest.approx(1.25)
    file.write_text(json.dumps({"costs": {"decode": [], "chunks": 2.0}}))
    with pytest.raises(KeyError, match="chunks"):
        read_costs(file)


def test_deviations_by_phase() -> None:
    groups = groups_of(PLAYED, group_size=8, horizon=10, max_zooms=2, num_actions=20, at_once=True)
    costs = Costs(decode=((1, 0.01),), learn_token_s=0.001, sync_s=0.25)
    simulated = simulate(costs, Machine(num_slots=96, max_num_seqs=96), groups, 12)
    line: dict[str, Any] = {"time/rollout_s": 1.0, "time/learn_s": 2.0, "time/sync_s": 0.5}
    found = deviations(simulated, [line])
    assert found["sync"] == (0.25, 0.5)
    assert found["learn"] == (pytest.approx(0.001 * 105.5 * 432, rel=0.01), 2.0)
    assert found["step"] == (pytest.approx(simulated.mean("seconds")), 3.5)


def test_the_first_step_of_a_run_is_left_out() -> None:
    lines = read_run(RESULTS / "grpo_metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 40))


def test_the_demo_is_simulated_within_the_band(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By phase and as a whole, with the costs in docs/results, none of which was fitted to a step."""
    monkeypatch.chdir(ROOT)
    script = runpy.run_path(str(ROOT / "scripts/simulate_step.py"))
    assert script["check"]() == 0
    found = dict(re.findall(r"^(\w+) +simulated .*: ([+-]\d+)%$", capsys.readouterr().out, re.MULTILINE))
    band = {"rollout": 20, "learn": 15, "sync": 20, "step": 15}
    assert list(found) == list(band)
    assert all(abs(int(found[phase])) <= most for phase, most in band.items())
