"""What a GRPO run does with updates and rewards that are not finite."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import rlvla_reward
from rlvla.config import GRPOConfig, LearnerConfig, RewardTermConfig
from rlvla.run import GRPORun
from rlvla.skipping import SkipCount
from rlvla.storage import load_trajectories
from rlvla.types import Group
from tests.learning import make_checkpoint, make_groups, make_learner, poison


@pytest.fixture
def cfg(tmp_path: Path) -> GRPOConfig:
    return GRPOConfig(model=make_checkpoint(tmp_path / "policy"), output=tmp_path / "run")


def test_skipped_updates_are_kept_and_too_many_in_a_row_stop_the_run(cfg: GRPOConfig) -> None:
    cfg = replace(cfg, learner=LearnerConfig(max_skipped_steps=1))
    run, learner, groups = GRPORun(cfg, rlvla_reward.build(cfg.reward)), make_learner(cfg.model), make_groups(cfg.model)
    bad = poison(groups, np.nan)
    for step, sent in enumerate((bad, groups, bad)):
        run.guard(step, sent, learner.step(sent))
    with pytest.raises(
        FloatingPointError, match=r"2 steps in a row.*step 3.*max_skipped_steps is 1.*bad_step_3\.jsonl"
    ):
        run.guard(3, bad, learner.step(bad))
    learner.close()
    assert sorted(file.name for file in cfg.output.glob("bad_*")) == [f"bad_step_{k}.jsonl" for k in (0, 2, 3)]
    kept = load_trajectories(cfg.output / "bad_step_3.jsonl")
    assert len(kept) == sum(len(group.trajectories) for group in bad)
    assert np.isnan(kept[0].advantage or 0.0)


def test_no_skipped_step_is_allowed_by_zero() -> None:
    with pytest.raises(FloatingPointError, match="1 steps in a row"):
        SkipCount(0).add(0, Path("file"))
    with pytest.raises(ValueError, match=r"learner\.max_skipped_steps is -1"):
        LearnerConfig(max_skipped_steps=-1)


def test_a_reward_that_is_not_finite_stops_the_run_with_its_name_and_the_group(cfg: GRPOConfig, tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text("def score(trajectory):\n    return float('nan')\n")
    reward = rlvla_reward.build([RewardTermConfig(fn=f"{plugin}:score")])
    group: Group = make_groups(cfg.model)[0]
    with pytest.raises(rlvla_reward.RewardError, match=r"'score'.*task.*returned nan; a reward must be finite"):
        GRPORun(cfg, reward).judged(reward.score)(group)
    assert load_trajectories(cfg.output / "bad_reward.jsonl")[0].task == group.task
