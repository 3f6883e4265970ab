"""What the plan says of everything but GPU memory, held against hand calculations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rlvla.config import (
    ClusterConfig,
    EnvConfig,
    EpisodeConfig,
    GRPOConfig,
    LearnerConfig,
    LoraConfig,
    LossConfig,
    PlanConfig,
    SamplerConfig,
)
from rlvla.plan.costs import Pass
from rlvla.plan.estimate import (
    assumed_groups,
    assumed_turn,
    better_split,
    device_costs,
    estimate,
    num_gpus,
    state_bytes,
    sync_bytes,
    sync_s,
)
from rlvla.plan.host import frame_bytes, host_lines, main_memory, memory_line
from rlvla.plan.text import GIB
from rlvla.plan.turn import turn_tokens
from rlvla.plan.world import World
from tests.unit.test_plan import FIGURES, TURN

GRPO = GRPOConfig(
    env=EnvConfig(id="rlvla/Libero-v0"),
    groups_per_step=3,
    group_size=4,
    save_every=2,
    cluster=ClusterConfig(num_rollout_actors=2, envs_per_actor=5),
)
PLACE = {"num_samplers": 4, "num_learners": 4, "sampler_gpus": 1, "learner_gpus": 1}


def on_gpus(**cluster: Any) -> GRPOConfig:
    cfg = replace(GRPO, plan=PlanConfig(gpu="h100-80gb"), cluster=replace(GRPO.cluster, **{**PLACE, **cluster}))
    return replace(cfg, sampler=SamplerConfig(dtype="bfloat16"), learner=LearnerConfig(dtype="bfloat16", zero_stage=3))


def test_main_memory_by_hand() -> None:
    world, turn = World(note="", chunk_length=8, acts_at_once=False, view_shape=(20, 30)), replace(TURN, num_images=2)
    pictures = 3 * 4 * 7 * 2  # of 7 turns
    several = replace(GRPO, minibatch_trajectories=6)
    parts = main_memory(several, FIGURES, turn, world, 7, 1.0)
    assert parts == {
        "frames": pictures * 20 * 30 * 3,
        "prepared pixels": pictures * 48 * 4,
        "envs": 10 * 2 * GIB,
        "processes": 3 * GIB + 2 * 0.35 * GIB,
        "learner and samplers": 1,
        "two buckets": 4000,
    }
    assert frame_bytes(replace(GRPO, max_staleness=2), turn, world, 7) == 3 * parts["frames"]
    assert frame_bytes(replace(GRPO, max_waves=3), turn, world, 7) == 4 * parts["frames"]
    two_nodes = main_memory(on_gpus(num_samplers=12), FIGURES, turn, world, 7, 0.0)
    assert two_nodes["frames of other nodes"] == parts["frames"]
    # A single update: of each of 4 ranks three micro-batches of 2 rows with 2 pictures, where there are as many.
    few = LearnerConfig(dtype="bfloat16", micro_batch_rows=2)
    single = main_memory(replace(on_gpus(), learner=few), FIGURES, turn, world, 7, 0.0)
    assert single["prepared pixels"] == 4 * 3 * 2 * 2 * 48 * 2
    assert two_nodes["prepared pixels"] == pictures * 48 * 2
    assert two_nodes["two buckets"] == 2 * 2000
    small = replace(GRPO, cluster=replace(GRPO.cluster, bucket_mb=2**-10))
    assert main_memory(small, FIGURES, turn, world, 7, 0.0)["two buckets"] == 2 * 1024
    assert memory_line({"a": 4 * GIB, "b": 2 * GIB}, 2) == "3.0 GiB on each of 2 nodes: a 2.0 GiB, b 1.0 GiB"


def test_what_travels_by_hand() -> None:
    """A copy of 10 GB/s on each side of the store, 25 GB/s of PCIe before and behind it, 2 GB/s between nodes."""
    lora = replace(FIGURES, num_adapter_parameters=30)
    apart, colocated = on_gpus(), on_gpus(sampler_gpus=0.5, learner_gpus=0.5)
    assert [sync_bytes(FIGURES, GRPO), sync_bytes(FIGURES, apart), sync_bytes(lora, apart)] == [4000, 2000, 120]
    assert [num_gpus(cfg) for cfg in (GRPO, apart, colocated, on_gpus(num_samplers=12))] == [0, 8, 4, 16]
    one_node = 2000 * (2 / 25e9 + 2 / 1e10)
    assert sync_s(FIGURES, GRPO) == pytest.approx(4000 / 1e10)  # the next bucket is put while one is taken
    cut = replace(GRPO, learner=LearnerConfig(zero_stage=3))  # where making one takes memory it is not
    assert sync_s(FIGURES, cut) == pytest.approx(2 * 4000 / 1e10)
    assert [sync_s(FIGURES, apart), sync_s(FIGURES, colocated)] == pytest.approx([one_node] * 2)
    assert sync_s(FIGURES, on_gpus(num_samplers=12)) == pytest.approx(one_node + 2000 / 2e9)


@pytest.mark.parametrize(
    ("learner", "num_bytes"),
    [
        (LearnerConfig(), 4 * 12_000),  # each of 4 ranks writes all
        (LearnerConfig(zero_stage=2), 12_000 + 4 * 4000),
        (LearnerConfig(dtype="bfloat16"), 12_000 + 4 * 2000),  # which is stage 2
        (LearnerConfig(dtype="bfloat16", zero_stage=3), 12_000),
    ],
)
def test_states_by_hand(learner: LearnerConfig, num_bytes: int) -> None:
    assert state_bytes(FIGURES, replace(on_gpus(), learner=learner)) == num_bytes


def test_states_and_pictures_are_told() -> None:
    apart = on_gpus()
    lora = replace(apart, learner=LearnerConfig(dtype="bfloat16", zero_stage=2, lora=LoraConfig()))
    assert state_bytes(replace(FIGURES, num_adapter_parameters=30), lora) == 30 * (12 + 4 * 4)
    lines = dict(host_lines(apart, FIGURES, TURN, 7, learner_s=1.0))
    assert lines["states"].startswith("0.0 MiB every 2 step(s), 4 on the disk at most; written in 6e-06 s at 2 GB/s")
    assert lines["pictures"].startswith(f"{3 * 4 * 7} at most, {3 * 4 * 7 * 48 * 2e-8:.2g} s of a core")
    assert "states" not in dict(host_lines(replace(apart, save_every=0), FIGURES, TURN, 7, learner_s=1.0))


def test_the_costs_of_a_device_by_hand() -> None:
    """900 parameters of text in bfloat16 and 16 values of cache a token, half of 512 tokens, at 60 % of 3.35 TB/s."""
    cfg = replace(on_gpus(), loss=LossConfig(kl_coef=0.1))
    world = World(note="", chunk_length=8, acts_at_once=False)
    costs = device_costs(FIGURES, replace(cfg, sampler=replace(cfg.sampler, enforce_eager=False)), world)
    assert costs.step_s(1) == pytest.approx(0.001 + (1800 + 16 * 2 * cfg.episode.max_turn_tokens / 2) / (0.6 * 3.35e12))
    assert device_costs(FIGURES, cfg, world).step_s(1) == pytest.approx(0.001 + 2 * 5e-4)  # two blocks, launched
    assert costs.new_token_s == pytest.approx(2 * 900 / (0.4 * 989e12))
    assert costs.learn_token_s == pytest.approx(4 * 2 * 900 / (0.4 * 989e12) / 4)
    assert costs.picture_s == pytest.approx(2 * 16 * 100 / (0.4 * 989e12))
    assert costs.chunk_s == pytest.approx(8 / 43.3)
    assert costs.save_s == 12_000 / 2e9


def test_assumed_episodes() -> None:
    world = World(note="", chunk_length=8, acts_at_once=True, num_images=2, max_env_steps=80)
    episode = EpisodeConfig(max_think_tokens=38, max_tool_calls=1, max_turn_tokens=1000)
    cfg = replace(GRPO, episode=episode, groups_per_step=50)
    turn = turn_tokens(FIGURES, world, episode)
    (look, think, act), length = (found := assumed_turn(FIGURES, turn, world, episode, 1))[0], found[1]
    assert look == Pass(num_new_tokens=68, num_pictures=2, num_steps=21 + 32, zooms=True)
    assert think == Pass(num_new_tokens=12, num_pictures=1, num_steps=21)
    assert act == Pass(num_new_tokens=57, num_pictures=0, num_steps=1)
    assert length == 68 + 53 + 12 + 21 + 58
    blind, _ = assumed_turn(FIGURES, turn, world, replace(episode, mode="act"), 0)
    assert blind == (Pass(num_new_tokens=68 + 57, num_pictures=2, num_steps=1),)
    episodes = [e for group in assumed_groups(cfg, FIGURES, turn, world, 50) for e in group]
    lengths = [len(e.turns) for e in episodes]
    assert (len(episodes), min(lengths), max(lengths)) == (200, 3, 10)
    assert 0.4 < sum(num == 10 for num in lengths) / 200 < 0.65


def test_a_coarse_simulation_is_near() -> None:
    """Sixteen episodes and a sampler, for 64 and four."""
    world = World(note="", chunk_length=8, acts_at_once=True, max_env_steps=240)
    figures = replace(FIGURES, num_parameters=10**9, kv_values_per_token=10**5)
    cfg = replace(on_gpus(), groups_per_step=16, group_size=4, episode=EpisodeConfig(max_think_tokens=38))
    cfg = replace(cfg, cluster=replace(cfg.cluster, num_rollout_actors=16, envs_per_actor=2, rollout_cpus=1))
    turn = turn_tokens(figures, world, cfg.episode)
    for staleness in (0, 1):
        some = replace(cfg, max_staleness=staleness)
        exact, coarse = (estimate(some, figures, turn, world, num_episodes=num) for num in (None, 16))
        assert len(exact.steps) == 5 + 2 * staleness
        assert len(coarse.steps) == 1 + staleness
        assert coarse.mean("seconds") == pytest.approx(exact.mean("seconds"), rel=0.15)
        assert coarse.mean("learn_s") == pytest.approx(exact.mean("learn_s"), rel=0.15)


@pytest.mark.parametrize(("rollout", "learn"), [(100, 100), (700, 50), (20, 900)])
def test_the_better_split_is_the_best_of_all(rollout: float, learn: float) -> None:
    """Seconds as if each part took so much less the more GPUs it had."""

    def seconds(cfg: GRPOConfig) -> float:
        return rollout / cfg.cluster.num_samplers + learn / cfg.cluster.num_learners

    best, least = better_split(on_gpus(), seconds)
    assert best.cluster.num_samplers + best.cluster.num_learners == 8
    assert least == pytest.approx(min(rollout / num + learn / (8 - num) for num in range(1, 8)))
