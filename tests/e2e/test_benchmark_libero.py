"""scripts/benchmark/libero_rollout.py: a whole run, of an episode, and that both sides play the same to its success."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("libero")

import replay
from rlvla.config import TinyModelConfig
from rlvla.policies.models.tiny_vlm import build_tiny
from rlvla.policies.thinker.actions import QuantileCodec
from rlvla.policies.thinker.decoding import Decoding
from rlvla.policies.thinker.policy import save_policy
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.policies.thinker.settings import Settings
from rlvla.policies.thinker.vocabulary import add_slots
from tests.e2e.run import script
from tests.unit.test_benchmark_libero import CONFIG, assert_alike

pytestmark = [pytest.mark.long, pytest.mark.libero]


def test_the_lockstep_plays_the_same_episode_to_its_success(
    libero_assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlvla_envs.libero.env.HORIZONS", {"libero_object": 120})
    recording = replay.record({"suite": "libero_object"}, [(0, 0), (0, 1)], fails=[False, True])
    assert [len(actions) for actions in recording.values()] == [96, 120]
    assert recording[0, 1][:, replay.GRIPPER].max() == -1
    replay.write(tmp_path / "recording.npz", recording)
    seen = assert_alike(tmp_path / "recording.npz", {"task_id": 0, "init_state_id": 0})
    assert seen[-3:] == [True, False, True]


@pytest.mark.timeout(900)
def test_everything_is_measured(libero_assets: Path, tmp_path: Path) -> None:
    """With a policy that draws its chunks at once and says nothing, so that a random one makes no mistake."""
    model, processor = build_tiny(
        TinyModelConfig(hidden_size=64, num_layers=2, vision_layers=1), ["pick it"], 16, seed=0
    )
    codec = QuantileCodec.fit(np.random.default_rng(0).uniform(-1, 1, (100, 7)), num_bins=16, chunk_length=8)
    settings = Settings(codec=codec, action_decoding="parallel")
    add_slots(model, processor, Decoding.read(settings).num_slots)
    save_policy(model, PolicyProcessor.create(processor, settings), tmp_path / "policy")
    config = yaml.safe_load(CONFIG.read_text())
    config["env"] |= {"tasks": config["env"]["tasks"][:1], "kwargs": {**config["env"]["kwargs"], "settle_steps": 1}}
    config |= {"episode": {**config["episode"], "mode": "act"}, "sampler": {"backend": "transformers"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    flags = ("--model", tmp_path / "policy", "--config", tmp_path / "config.yaml", "--output", tmp_path / "result.json")
    counts = ("--num-trajectories", "1", "--failures", "0", "--lockstep-rows", "1", "--envs", "1", "--limit-envs", "1")
    printed = script("scripts/benchmark/libero_rollout.py", *flags, *counts)
    result = json.loads((tmp_path / "result.json").read_text())
    assert "rollout_libero_vs_lockstep" in printed
    assert result["ours"]["success"] == result["lockstep"]["success"] == 1
    assert result["ours"]["decisions_per_trajectory"] == result["lockstep"]["decisions_per_trajectory"]
    assert result["ours"]["cpu_s/envs"] > 0
