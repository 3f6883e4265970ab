"""What the plan says of everything but GPU memory, held against hand calculations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rlvla.config import ClusterConfig, EnvConfig, EpisodeConfig, GRPOConfig, LearnerConfig, PlanConfig, SamplerConfig
from rlvla.plan.costs import Pass, Simulated, Step
from rlvla.plan.estimate import (
    HABITS,
    SLEEP_S,
    assumed_groups,
    assumed_turn,
    better_split,
    device_costs,
    num_gpus,
    state_bytes,
    sync_bytes,
    sync_s,
    transport,
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
    parts = main_memory(GRPO, FIGURES, turn, world, 7, max_staleness=0, on_cpu=1.0)
    assert parts == {
        "frames": pictures * 20 * 30 * 3,
        "prepared pixels": pictures * 48 * 4,
        "envs": 10 * 2 * GIB,
        "processes": 3 * GIB + 2 * 0.35 * GIB,
        "learner and samplers": 1,
        "two buckets": 4000,
    }
    assert frame_bytes(GRPO, turn, world, 7, 2) == 3 * parts["frames"]
    assert frame_bytes(replace(GRPO, max_waves=3), turn, world, 7, 0) == 2 * parts["frames"]
    two_nodes = main_memory(on_gpus(num_samplers=12), FIGURES, turn, world, 7, max_staleness=0, on_cpu=0.0)
    assert two_nodes["frames of other nodes"] == parts["frames"]
    assert two_nodes["prepared pixels"] == pictures * 48 * 2
    assert "two buckets" not in two_nodes
    assert memory_line({"a": 4 * GIB, "b": 2 * GIB}, 2) == "3.0 GiB on each of 2 nodes: a 2.0 GiB, b 1.0 GiB"


def test_what_travels_by_hand() -> None:
    """Data sheets of an H100: 450 GB/s of NVLink at 80 %, 3.35 TB/s of memory at 60 %."""
    lora = replace(FIGURES, num_adapter_parameters=30)
    apart, colocated = on_gpus(), on_gpus(sampler_gpus=0.5, learner_gpus=0.5)
    assert [sync_bytes(FIGURES, GRPO), sync_bytes(FIGURES, apart), sync_bytes(lora, apart)] == [4000, 2000, 120]
    assert [transport(cfg) for cfg in (GRPO, apart, colocated)] == ["shared memory", "NCCL", "CUDA IPC"]
    assert [num_gpus(cfg) for cfg in (GRPO, apart, colocated, on_gpus(num_samplers=12))] == [0, 8, 4, 16]
    assert sync_s(FIGURES, GRPO) == 3 * 4000 / 1e10
    link = 0.8 * 450e9
    assert sync_s(FIGURES, apart) == pytest.approx(2000 / link + 2000 / link)
    assert sync_s(FIGURES, on_gpus(num_samplers=12)) == pytest.approx(2 * 2000 / (0.8 * 50e9))
    assert sync_s(FIGURES, colocated) == pytest.approx(SLEEP_S + 2000 / link + 2 * 2000 / (0.6 * 3.35e12))
    assert [state_bytes(FIGURES, GRPO), state_bytes(FIGURES, apart), state_bytes(lora, apart)] == [12_000, 14_000, 480]
    lines = dict(host_lines(apart, FIGURES, TURN, 7, learner_s=1.0))
    assert lines["states"].startswith("0.0 MiB every 2 step(s), 4 on the disk at most; written in 7e-06 s at 2 GB/s")
    assert lines["pictures"].startswith(f"{3 * 4 * 7} at most, {3 * 4 * 7 * 48 * 2e-8:.2g} s of a core")
    assert "states" not in dict(host_lines(replace(apart, save_every=0), FIGURES, TURN, 7, learner_s=1.0))


def test_the_costs_of_a_device_by_hand() -> None:
    """900 parameters of text in bfloat16 and 16 values of cache a token, half of 512 tokens, at 60 % of 3.35 TB/s."""
    cfg, world = on_gpus(), World(note="", chunk_length=8, acts_at_once=False)
    costs = device_costs(FIGURES, replace(cfg, sampler=replace(cfg.sampler, enforce_eager=False)), world, 1)
    assert costs.step_s(1) == pytest.approx(0.001 + (1800 + 16 * 2 * cfg.episode.max_turn_tokens / 2) / (0.6 * 3.35e12))
    assert device_costs(FIGURES, cfg, world, 1).step_s(1) == pytest.approx(0.001 + 2 * 5e-4)  # two blocks, launched
    assert costs.new_token_s == pytest.approx(2 * 900 / (0.4 * 989e12))
    assert costs.learn_token_s == pytest.approx(4 * 2 * 900 / (0.4 * 989e12) / 4)
    assert costs.picture_s == pytest.approx(2 * 16 * 100 / (0.4 * 989e12))
    assert costs.chunk_s == pytest.approx(8 / 43.3)
    assert costs.save_s == 14_000 / 2e9


def test_assumed_episodes() -> None:
    world = World(note="", chunk_length=8, acts_at_once=True, num_images=2, max_env_steps=80)
    episode = EpisodeConfig(max_think_tokens=38, max_tool_calls=1, max_turn_tokens=1000)
    cfg = replace(GRPO, episode=episode, groups_per_step=50)
    turn = turn_tokens(FIGURES, world, episode)
    (look, think, act), length = (found := assumed_turn(FIGURES, turn, world, episode, HABITS, 1))[0].passes, found[1]
    assert look == Pass(num_new_tokens=68, num_pictures=2, num_steps=21 + 32, zooms=True)
    assert think == Pass(num_new_tokens=12, num_pictures=1, num_steps=21)
    assert act == Pass(num_new_tokens=57, num_pictures=0, num_steps=1)
    assert length == 68 + 53 + 12 + 21 + 58
    blind, _ = assumed_turn(FIGURES, turn, world, replace(episode, mode="act"), HABITS, 0)
    assert blind.passes == (Pass(num_new_tokens=68 + 57, num_pictures=2, num_steps=1),)
    episodes = [e for group in assumed_groups(cfg, FIGURES, turn, world, 50) for e in group]
    lengths = [len(e.turns) for e in episodes]
    assert (len(episodes), min(lengths), max(lengths)) == (200, 3, 10)
    assert 0.4 < sum(num == 10 for num in lengths) / 200 < 0.65


@pytest.mark.parametrize(("rollout", "learn"), [(100, 100), (700, 50), (20, 900)])
def test_the_better_split_is_the_best_of_all(rollout: float, learn: float) -> None:
    """Seconds as if each part took so much less the more GPUs it had."""

    def of(cfg: GRPOConfig) -> Simulated:
        seconds = (rollout / cfg.cluster.num_samplers, learn / cfg.cluster.num_learners)
        step = Step(rollout_s=seconds[0], save_wait_s=0, learn_s=seconds[1], sync_s=0, tail_s=0, staleness=0)
        return Simulated(steps=(step,), num_episodes=0, sampler_busy=0, learner_busy=0, core_busy=0)

    best, simulated = better_split(on_gpus(), of(on_gpus()), of)
    assert best.cluster.num_samplers + best.cluster.num_learners == 8
    assert simulated.step_s == pytest.approx(min(rollout / num + learn / (8 - num) for num in range(1, 8)))
