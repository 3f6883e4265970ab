"""A published OpenVLA folder through the recipes, with either decoding of actions: SFT, GRPO, evaluate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlvla.data import dataset
from rlvla.data.types import Demonstration
from rlvla.durable.files import read_lines
from rlvla.durable.trajectories import load_trajectories
from rlvla.policies.markup import print_think, print_zoom
from rlvla.policies.thinker.actions import BinCodec
from rlvla.policies.thinker.policy import Thinker
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.policies.weights import load_model
from rlvla.types import SegmentKind, Trajectory
from rlvla_envs.tabletop.env import TabletopEnv
from tests import openvla_checkpoints as published
from tests.e2e.run import recipe
from tests.examples import write_dataset

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CHUNK, DIMS = 2, 4
NUM_STEPS = 2
ENV = {"id": "rlvla/Tabletop-v0", "tasks": ["press"], "kwargs": {"zoom_source": "render"}}
EPISODE = {"temperature": 0.5, "max_turn_tokens": 160, "max_think_tokens": 8, "max_tool_calls": 1}
CLUSTER = {"envs_per_actor": 8, "threads": 1}
BOX = (200, 200, 800, 800)
TEXTS = (print_think("it is small") + print_zoom(0, BOX), print_think("press it"))
ACTION_IDS = tuple(range(published.NUM_WORDS - 1, published.NUM_WORDS - 257, -1))


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Decisions that are nearly the same, so that a few steps teach them: look once, then one way over the table."""
    path = tmp_path_factory.mktemp("data") / "demos"
    env = TabletopEnv(tasks=("press",), zoom_source="render")
    write_dataset(path, [[decision(env, state)] for state in range(40)], robot="test", fps=5.0, suites=(env.suite,))
    env.close()
    return path


def decision(env: TabletopEnv, state: int) -> Demonstration:
    observation, _ = env.reset(options={"init_state_id": state})
    low, high = env.action_space.low, env.action_space.high
    way = np.linspace(0.03, 0.97, CHUNK * DIMS).reshape(CHUNK, DIMS)  # apart, so that their order is easy to learn
    way += np.random.default_rng(state).uniform(-0.01, 0.01, way.shape)
    return Demonstration(
        instruction=observation["instruction"],
        images=tuple(observation["images"]),
        proprio=observation["proprio"],
        texts=TEXTS,
        crops=(env.zoom(0, BOX),),
        actions=(low + way * (high - low)).astype(np.float32),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("published")
    published.write_published(path, num_shards=2, corpus=[*TEXTS] * 9)
    return path


def sft(demos: Path, folder: Path, output: Path, decoding: str) -> None:
    config = {"dataset": str(demos), "output": str(output), "model": str(folder), "num_bins": 256}
    config |= {"statistics_key": "demonstrations", "action_decoding": decoding, "num_steps": 100, "batch_size": 8}
    config["learner"] = {"lr": 3e-3, "warmup_steps": 3, "schedule": "cosine", "micro_batch_rows": 8}
    recipe("sft", config, output.parent)
    lines = read_lines(output / "metrics.jsonl")
    assert lines[-1]["loss"] < 0.6 * lines[0]["loss"]


def grpo(model: Path, output: Path) -> None:
    config = {"model": str(model), "output": str(output), "env": ENV, "cluster": CLUSTER, "episode": EPISODE}
    config |= {"num_steps": NUM_STEPS, "groups_per_step": 1, "group_size": 4, "minibatch_trajectories": 4}
    config |= {"learner": {"lr": 1e-4, "micro_batch_rows": 16}}
    config["reward"] = [{"fn": "success"}, {"fn": f"{Path(__file__).parent}/rewards.py:odd_tokens"}]
    recipe("grpo", config, output.parent)


def check_learned(output: Path) -> None:
    """Sampler and learner agree about every sampled token, words and actions, also behind a sync of weights."""
    lines = read_lines(output / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(NUM_STEPS))
    for line in lines:
        assert line["num_rows"] > 0
        assert line["format_rate"] > 0.5
        assert line["tool_calls_per_turn"] > 0.5  # two images in most contexts
        assert abs(line["mismatch_kl"]) < 1e-6


def check_policy(checkpoint: Path, demos: Path) -> None:
    """Action tokens are the last 256 words, and mean what the statistics of the demonstrations say."""
    processor = PolicyProcessor.load(checkpoint)
    assert processor.vocabulary.action_ids == ACTION_IDS
    stats = json.loads((checkpoint / "dataset_statistics.json").read_text())
    codec = BinCodec.from_norm_stats(stats, chunk_length=CHUNK, gripper_dim=-1)
    assert (processor.codec, type(processor.codec)) == (codec, BinCodec)
    low, high = np.quantile(dataset.read(demos).actions().reshape(-1, DIMS)[:, :3], (0.01, 0.99), axis=0)
    np.testing.assert_allclose([codec.low[:3], codec.high[:3]], [low, high], rtol=1e-6)


def evaluated(checkpoint: Path, output: Path) -> list[Trajectory]:
    config: dict[str, Any] = {"model": str(checkpoint), "output": str(output), "env": ENV, "cluster": CLUSTER}
    config |= {"num_trials": 4, "episode": {**EPISODE, "temperature": 0.0}, "save_trajectories": 4}
    recipe("evaluate", config, output.parent)
    summary = json.loads((output / "summary.json").read_text())
    assert summary["num_trials"] == 4
    assert summary["format_rate"] > 0.5
    return load_trajectories(output / "trajectories.jsonl")


def check_rescored(checkpoint: Path, trajectories: list[Trajectory]) -> None:
    """The checkpoint, loaded once more and in transformers, gives the log-probabilities that vLLM gave."""
    policy, model = Thinker(PolicyProcessor.load(checkpoint)), load_model(checkpoint)
    turns = [t.turns[0] for t in trajectories if t.turns[0].actions.size]
    with torch.no_grad():
        logprobs = policy.logprobs(model, policy.inputs(turns, "cpu", torch.float32)).logprobs
    for row, turn in zip(logprobs, turns, strict=True):
        sampled = turn.loss_mask
        np.testing.assert_allclose(row.numpy()[: len(sampled)][sampled], turn.sampler_logprobs[sampled], atol=1e-4)


def check_actions(checkpoint: Path, trajectories: list[Trajectory], num_act_tokens: int) -> None:
    """What was executed is what the sampled words mean."""
    processor = PolicyProcessor.load(checkpoint)
    turns = [t.turns[0] for t in trajectories if t.turns[0].actions.size]
    assert turns
    for turn in turns:
        (act,) = turn.of_kind(SegmentKind.ACT)
        assert act.end - act.start == num_act_tokens
        ids = turn.token_ids[act.start + 1 : act.start + 1 + CHUNK * DIMS].tolist()
        bins = np.array([ACTION_IDS.index(id_) for id_ in ids])
        np.testing.assert_array_equal(processor.codec.decode(bins)[: len(turn.actions)], turn.actions)


@pytest.mark.parametrize(("decoding", "num_marks"), [("parallel", 1), ("autoregressive", 2)])
def test_a_published_checkpoint_learns_and_is_read_again(
    demos: Path, folder: Path, tmp_path: Path, decoding: str, num_marks: int
) -> None:
    sft(demos, folder, tmp_path / "sft", decoding)
    check_policy(tmp_path / "sft/checkpoint", demos)
    grpo(tmp_path / "sft/checkpoint", tmp_path / "grpo")
    check_learned(tmp_path / "grpo")
    checkpoint = tmp_path / "grpo/checkpoint"
    check_policy(checkpoint, demos)
    check_actions(checkpoint, load_trajectories(tmp_path / "grpo/trajectories.jsonl"), num_marks + CHUNK * DIMS)
    if decoding == "parallel":
        trajectories = evaluated(checkpoint, tmp_path / "evaluate")
        check_actions(checkpoint, trajectories, num_marks + CHUNK * DIMS)
        check_rescored(checkpoint, trajectories)
