"""What a GRPO run does with updates and rewards that are not finite."""

from __future__ import annotations

import json
import random
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import rlvla_reward
from rlvla.config import GRPOConfig, LearnerConfig, RewardTermConfig, to_dict
from rlvla.durable.files import lock
from rlvla.durable.random_state import random_state, seed_random
from rlvla.durable.trajectories import load_trajectories, save_trajectories
from rlvla.learner.advantage import with_advantages
from rlvla.run.grpo import GRPORun
from rlvla.run.metrics import rollout_metrics
from rlvla.run.skipping import SkipCount
from rlvla.types import Group
from tests.learning import make_checkpoint, make_groups, make_learner, poison
from tests.unit.test_checkpoint import recorded
from tests.unit.test_learner import assert_same_weights


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


@pytest.mark.filterwarnings("ignore:reward term")
def test_a_step_whose_rewards_are_all_not_finite_counts_as_skipped(cfg: GRPOConfig, tmp_path: Path) -> None:
    """From the plugin to the weights: nothing is learned, all is kept, and a second such step ends the run."""
    plugin = tmp_path / "plugin.py"
    plugin.write_text("def score(trajectory):\n    return float('nan') if trajectory.success else 0.0\n")
    cfg = replace(cfg, learner=LearnerConfig(max_skipped_steps=1))
    reward = rlvla_reward.build([RewardTermConfig(fn="success"), RewardTermConfig(fn=f"{plugin}:score")])
    run, learner = GRPORun(cfg, reward), make_learner(cfg.model)

    def judge(group: Group) -> Group:
        return with_advantages(reward.score(group), cfg.advantage, reward.weights)

    sampled = [run.judged(judge)(group) for group in make_groups(cfg.model)]
    assert load_trajectories(cfg.output / "bad_reward.jsonl")[0].task == sampled[1].task
    groups = [group for group in sampled if not group.is_dropped]
    before = learner.weights()
    metrics = {**rollout_metrics(sampled), **learner.step(groups)}
    assert (metrics["groups_not_finite"], metrics["num_rows"]) == (2, 0)
    assert_same_weights(learner.weights(), before, atol=0)
    learner.close()
    run.guard(0, groups or sampled, metrics)
    assert load_trajectories(cfg.output / "bad_step_0.jsonl")[0].task == sampled[0].task
    run.guard(1, sampled, {**metrics, "num_rows": 1.0})  # one group was whole: the step learned from it
    run.guard(2, sampled, metrics)
    with pytest.raises(FloatingPointError, match=r"reward, loss.*2 steps in a row.*max_skipped_steps is 1"):
        run.guard(3, sampled, metrics)


def test_a_reward_that_fails_stops_the_run_and_keeps_the_group(cfg: GRPOConfig, tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text("def score(trajectory):\n    return None\n")
    reward = rlvla_reward.build([RewardTermConfig(fn=f"{plugin}:score")])
    group: Group = make_groups(cfg.model)[0]
    with pytest.raises(rlvla_reward.RewardError, match=r"'score'.*task.*returned NoneType"):
        GRPORun(cfg, reward).judged(reward.score)(group)
    assert load_trajectories(cfg.output / "bad_reward.jsonl")[0].task == group.task


COUNTS = """
class Count:
    def __init__(self): self.seen = []
    def __call__(self, trajectory): self.seen.append(1); return 0.0
    def state_dict(self): return {"seen": self.seen}
    def load_state_dict(self, state): self.seen = state["seen"]

count = Count()
"""


def test_a_dropped_rollout_leaves_no_trace_in_the_state(cfg: GRPOConfig, tmp_path: Path) -> None:
    """Its groups are drawn and judged again by the run that goes on: a reward that counts must not count them twice."""
    (tmp_path / "plugin.py").write_text(COUNTS)
    reward = rlvla_reward.build([RewardTermConfig(fn=f"{tmp_path}/plugin.py:count")])
    run, tasks = GRPORun(cfg, reward), SimpleNamespace(position=1, surplus=[])
    cluster = SimpleNamespace(save_state=lambda folder: folder.mkdir())
    judged = run.judged(reward.score)
    judged(make_groups(cfg.model)[0])
    seed_random(5)
    before = json.loads(json.dumps({"position": 1, "reward": reward.state_dict(), "random": random_state()}))
    before |= {"scored_by": json.loads(json.dumps(run._scored_by))}

    interrupts = SimpleNamespace(immediate=nullcontext)

    def play() -> None:
        with run.droppable(3, cluster, tasks, interrupts):  # type: ignore[arg-type]
            tasks.position = 2
            judged(make_groups(cfg.model)[1])
            random.random()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play()
    assert json.loads((cfg.output / "state/step-000003/driver.json").read_text()) == before
    assert before["reward"]["count"]["seen"]


def test_a_run_touches_nothing_where_another_one_writes(cfg: GRPOConfig) -> None:
    left = cfg.output / "state/incomplete-step-000001"
    left.mkdir(parents=True)
    with (
        lock(cfg.output),
        pytest.raises(ValueError, match=r"^output: .*run: process \d+ is writing there; wait for it"),
    ):
        GRPORun(cfg, rlvla_reward.build(cfg.reward))
    assert sorted(path.name for path in cfg.output.iterdir()) == ["lock", "state"]
    assert left.is_dir()
    GRPORun(cfg, rlvla_reward.build(cfg.reward))  # it has ended


def test_the_trajectories_of_the_last_step_are_there_before_its_state(cfg: GRPOConfig) -> None:
    """A run that is killed between the two plays that step again; one that goes on behind it would have none."""

    def die(folder: Path) -> None:
        raise KeyboardInterrupt

    groups = make_groups(cfg.model)
    run = GRPORun(replace(cfg, save_every=1, num_steps=1), rlvla_reward.build(cfg.reward))
    tasks, cluster = SimpleNamespace(position=1, surplus=[]), SimpleNamespace(save_state=die)
    with pytest.raises(KeyboardInterrupt):
        run.keep(0, groups, cluster, tasks)  # type: ignore[arg-type]
    assert [t.task for t in load_trajectories(cfg.output / "trajectories.jsonl")] == [group.task for group in groups]


def test_a_state_appears_when_the_lines_that_it_counts_are_on_the_disk(
    cfg: GRPOConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = GRPORun(replace(cfg, save_every=1), rlvla_reward.build(cfg.reward))
    tasks, cluster = SimpleNamespace(position=1, surplus=[]), SimpleNamespace(save_state=lambda folder: folder.mkdir())
    lines = [cfg.output / name for name in ("metrics.jsonl", "ids.jsonl", "started.jsonl")]
    for file in lines:
        file.write_text('{"step": 0}\n')
    deeds = recorded(monkeypatch)
    run.keep(0, [], cluster, tasks)  # type: ignore[arg-type]
    before = deeds[: deeds.index(("appear", cfg.output / "state/step-000001"))]
    assert {("sync", path) for path in (*lines, cfg.output)} <= {*before}


def test_surplus_that_another_reward_has_scored_is_left_out(cfg: GRPOConfig) -> None:
    """A reward that was mended is learned from at once; the same reward goes on with its groups."""
    groups = make_groups(cfg.model)
    tasks, cluster = (
        SimpleNamespace(position=1, surplus=groups),
        SimpleNamespace(
            save_state=lambda folder: folder.mkdir(), load_state=lambda folder: None, sync=lambda policy_version: None
        ),
    )
    GRPORun(replace(cfg, save_every=1), rlvla_reward.build(cfg.reward)).keep(0, [], cluster, tasks)  # type: ignore[arg-type]
    with GRPORun(cfg, rlvla_reward.build(cfg.reward)) as run:
        run.resume(cluster, tasks)  # type: ignore[arg-type]
    assert [group.task for group in tasks.surplus] == [groups[0].task]  # both of one task
    mended = (RewardTermConfig(fn="success"),)
    with (
        GRPORun(replace(cfg, reward=mended), rlvla_reward.build(mended)) as run,
        pytest.warns(UserWarning, match=r"surplus\.jsonl: 1 groups were scored by another `reward`"),
    ):
        run.resume(cluster, tasks)  # type: ignore[arg-type]
    assert tasks.surplus == []


def test_surplus_that_an_edited_reward_has_scored_is_left_out(cfg: GRPOConfig, tmp_path: Path) -> None:
    """The config names the same function of the same file; what an earlier version saved tells its name alone."""
    plugin = tmp_path / "edited.py"
    plugin.write_text("def score(trajectory):\n    return 1.0\n")
    cfg = replace(cfg, save_every=1, reward=(RewardTermConfig(fn=f"{plugin}:score"),))
    run = GRPORun(cfg, rlvla_reward.build(cfg.reward))
    file = tmp_path / "surplus.jsonl"
    save_trajectories(file, make_groups(cfg.model)[0].trajectories)
    saved = run._scored_by
    assert len(run._surplus(file, scored_by=saved)) == 1
    plugin.write_text("def score(trajectory):\n    return 2.0\n")
    assert run._scored_by == saved  # the code as it was loaded, whatever its file says by now
    run = GRPORun(replace(cfg, output=tmp_path / "again"), rlvla_reward.build(cfg.reward))
    with pytest.warns(UserWarning, match="1 groups were scored by another `reward`"):
        assert run._surplus(file, scored_by=saved) == []
    assert len(run._surplus(file, scored_by=to_dict(cfg)["reward"])) == 1


def test_old_states_make_room(cfg: GRPOConfig) -> None:
    run = GRPORun(replace(cfg, save_every=1, keep_states=2), rlvla_reward.build(cfg.reward))
    tasks, cluster = SimpleNamespace(position=1, surplus=[]), SimpleNamespace(save_state=lambda folder: folder.mkdir())
    for step in range(4):
        run.keep(step, [], cluster, tasks)  # type: ignore[arg-type]
    assert sorted(path.name for path in (cfg.output / "state").iterdir()) == ["step-000003", "step-000004"]
