"""The think/zoom/act state machine, with a scripted sampler and a three-line env: no Ray, no vLLM, no simulator."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlvla.config import EpisodeConfig
from rlvla.learner.collate import rows
from rlvla.policies.thinker.policy import Thinker
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.protocols import SampleRequest
from rlvla.rollout.env_thread import EnvThread
from rlvla.rollout.episode import run_episode
from rlvla.run.metrics import rollout_metrics
from rlvla.testing import ScriptedSampler
from rlvla.types import EndReason, Group, SegmentKind, TaskSpec, Trajectory, derive_seed
from rlvla_reward import format_score

TASK = TaskSpec(suite="test", task_id=0, init_state_id=3, seed=7)
ZOOM = '<tool>{"name": "zoom_in", "arguments": {"image": 0, "bbox": [0, 0, 500, 500]}}</tool>'
BAD_ZOOM = '<tool>{"name": "zoom_in", "arguments": {"image": 0, "bbox": [9, 9, 9, 9]}}</tool>'


class CountingEnv:
    """Ends with success after `length` chunks of actions, the last of `last_steps` steps; may crash."""

    suite = "test"
    task_names = ("count",)

    def __init__(self, length: int = 1, crash_at: str = "", last_steps: int | None = None) -> None:
        self.length, self.crash_at, self.last_steps, self.chunks = length, crash_at, last_steps, 0

    def init_state_ids(self, task_id: int, split: str) -> range:
        return range(10)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        if self.crash_at == "reset":
            raise RuntimeError("the reset broke")
        self.chunks = 0
        return self._observe(), {}

    def step_chunk(self, actions: np.ndarray) -> Any:
        if self.crash_at == "step":
            raise RuntimeError("the step broke")
        self.chunks += 1
        ended = self.chunks >= self.length
        executed = actions[: self.last_steps] if ended else actions
        return self._observe(), np.zeros(len(executed), np.float32), ended, False, {"is_success": ended}

    def zoom(self, image: int, bbox: Any) -> np.ndarray:
        return np.full((64, 64, 3), 200, np.uint8)

    def close(self) -> None: ...

    def _observe(self) -> dict[str, Any]:
        return {"images": np.zeros((1, 64, 64, 3), np.uint8), "proprio": np.zeros(4), "instruction": "press the pad"}


class BufferedEnv(CountingEnv):
    """Draws every picture, and every crop, into the one array that it has for it."""

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.images, self.proprio = np.zeros((1, 64, 64, 3), np.uint8), np.zeros(4, np.float32)
        self.crop = np.zeros((64, 64, 3), np.uint8)

    def zoom(self, image: int, bbox: Any) -> np.ndarray:
        self.crop[...] = bbox[2] // 10
        return self.crop

    def step_chunk(self, actions: np.ndarray) -> Any:
        actions *= 0  # its own, it thinks
        return super().step_chunk(actions)

    def _observe(self) -> dict[str, Any]:
        self.images[...] = self.proprio[...] = 10 * self.chunks
        return {"images": self.images, "proprio": self.proprio, "instruction": "press the pad"}


class PassingEnv(CountingEnv):
    """Succeeds in one step of its second chunk and goes on, as a plain env without `VLAEnv.step_chunk` may."""

    def __init__(self, rewards: Any) -> None:
        super().__init__(length=9)
        self.rewards = rewards

    def step_chunk(self, actions: np.ndarray) -> Any:
        obs, rewards, *_ = super().step_chunk(actions)
        return obs, self.rewards if self.chunks == 2 else rewards, False, False, {"is_success": False}


_CANVAS = np.zeros((64, 64, 3), np.uint8)


def draw_on_canvas(observation: Any, arguments: Any) -> np.ndarray:
    """A tool that has one array for all its pictures."""
    _CANVAS[...] = arguments["bbox"][2] // 10
    return _CANVAS


def act(processor: PolicyProcessor, count: int | None = None) -> str:
    shape = processor.codec.chunk_shape
    return "<act>" + "<act_1>" * (shape[0] * shape[1] if count is None else count) + "</act>"


def play(checkpoint: Path, texts: list[str], env: CountingEnv | None = None, **config: Any) -> Trajectory:
    return play_with(PolicyProcessor.load(checkpoint), texts, env, **config)[0]


def play_with(
    processor: PolicyProcessor, texts: list[str], env: CountingEnv | None = None, **config: Any
) -> tuple[Trajectory, list[SampleRequest]]:
    """The trajectory, and what the sampler was asked for."""
    sampler = ScriptedSampler(script=[processor.vocabulary.encode(text) for text in texts], expand=processor.expand)
    decider = Thinker(processor).decider(sampler, EpisodeConfig(**config))
    thread = EnvThread(lambda: env or CountingEnv())
    try:
        return asyncio.run(run_episode(decider, thread, TASK, member=0)), sampler.requests
    finally:
        thread.close()


def kinds(trajectory: Trajectory, turn: int = 0) -> list[SegmentKind]:
    return [segment.kind for segment in trajectory.turns[turn].segments]


@pytest.fixture(scope="module")
def processor(tiny_policy: Path) -> PolicyProcessor:
    return PolicyProcessor.load(tiny_policy)


@pytest.mark.parametrize("mode", ["zoom", "think", "act"])
def test_actions_behind_the_end_of_the_episode_are_not_learned_from(processor: PolicyProcessor, mode: str) -> None:
    """Of a chunk of [K, A] one step was executed; its A tokens stay, the others leave the loss and its counts."""
    num_steps, num_dims = processor.codec.chunk_shape
    actions = "".join(f"<act_{i % 8}>" for i in range(num_steps * num_dims))
    texts = {"zoom": [f"<think>go</think><act>{actions}</act>"], "think": ["<think>go</think>", f"{actions}</act>"]}
    texts["act"] = [f"{actions}</act>"]
    env = CountingEnv(length=2, last_steps=1)
    trajectory, _ = play_with(processor, texts[mode] * 2, env, mode=mode)
    whole, cut = trajectory.turns
    assert (len(whole.actions), len(cut.actions), trajectory.num_env_steps) == (num_steps, 1, num_steps + 1)
    assert whole.token_ids.tolist() == cut.token_ids.tolist()
    left_out = (whole.loss_mask & ~cut.loss_mask).nonzero()[0]
    sampled = processor.vocabulary.decode(whole.token_ids[left_out].tolist())
    assert sampled.replace(" ", "") == actions[num_dims * len("<act_0>") :]
    learned = [row.num_sampled_tokens for row in rows([group_of(trajectory)], mask_context_full=True)]
    assert learned == [whole.num_sampled_tokens, whole.num_sampled_tokens - (num_steps - 1) * num_dims]
    assert cut.num_sampled_tokens == whole.num_sampled_tokens  # produced all the same
    assert cut.loss_mask[-1]  # `</act>`, without which nothing would have been executed


def group_of(trajectory: Trajectory) -> Group:
    return Group(task=trajectory.task, trajectories=(replace(trajectory, advantage=1.0),))


def test_what_was_seen_is_kept_where_the_env_draws_into_one_buffer(
    tiny_policy: Path, processor: PolicyProcessor
) -> None:
    far = ZOOM.replace("500, 500", "800, 800")
    trajectory = play(tiny_policy, [ZOOM, far, act(processor), act(processor), act(processor)], BufferedEnv(length=3))
    assert [[int(image.max()) for image in turn.images] for turn in trajectory.turns] == [[0, 50, 80], [10], [20]]
    assert all(np.abs(turn.actions).max() > 0 for turn in trajectory.turns)


def test_what_a_tool_showed_is_kept_where_it_draws_into_one_buffer(
    tiny_policy: Path, processor: PolicyProcessor
) -> None:
    far = ZOOM.replace("500, 500", "800, 800")
    tools = {"zoom_in": "tests.unit.test_episode:draw_on_canvas"}
    trajectory = play(tiny_policy, [ZOOM, far, act(processor)], tools=tools)
    assert [int(image.max()) for image in trajectory.turns[0].images] == [0, 50, 80]


def test_a_success_that_passes_within_a_chunk_ends_the_episode(tiny_policy: Path, processor: PolicyProcessor) -> None:
    trajectory = play(tiny_policy, [act(processor)] * 9, PassingEnv(np.array([1, 0], np.float32)))
    assert trajectory.end is EndReason.SUCCESS
    assert [len(turn.actions) for turn in trajectory.turns] == [2, 1]
    assert trajectory.num_env_steps == 3


@pytest.mark.parametrize("rewards", [[0.5, 0.0], [np.nan, 0.0], [], [0.0], [0.0, 0.0, 0.0], 0.0])
def test_rewards_that_break_the_contract_are_named(tiny_policy: Path, processor: PolicyProcessor, rewards: Any) -> None:
    """A mistake in the env's code, which would come again: no crash of a simulator, which is played again."""
    with pytest.raises(ValueError, match=r"step_chunk returns the rewards .* for 2 actions.*check_env"):
        play(tiny_policy, [act(processor)] * 9, PassingEnv(np.array(rewards, np.float32)))


def test_turns_go_on_until_the_env_ends(tiny_policy: Path, processor: PolicyProcessor) -> None:
    trajectory = play(tiny_policy, [act(processor)] * 3, CountingEnv(length=3))
    assert len(trajectory.turns) == 3
    assert trajectory.num_env_steps == 3 * processor.codec.chunk_length


def test_a_refused_call_is_told_why_and_may_be_corrected(tiny_policy: Path, processor: PolicyProcessor) -> None:
    trajectory = play(tiny_policy, [BAD_ZOOM, ZOOM, act(processor)])
    calls = trajectory.turns[0].of_kind(SegmentKind.TOOL_CALL)
    results = trajectory.turns[0].of_kind(SegmentKind.TOOL_RESULT)
    assert "too small" in calls[0].error
    assert "too small" in results[0].text
    assert (calls[0].box, calls[1].box, calls[1].error) == (None, (0, 0, 500, 500), "")
    assert trajectory.end is EndReason.SUCCESS


def test_too_many_calls_end_the_trajectory(tiny_policy: Path, processor: PolicyProcessor) -> None:
    allowed = play(tiny_policy, [ZOOM, ZOOM, act(processor)], max_tool_calls=1)
    assert allowed.end is EndReason.SUCCESS
    assert "too many calls" in allowed.turns[0].of_kind(SegmentKind.TOOL_CALL)[1].error
    ended = play(tiny_policy, [ZOOM, ZOOM, ZOOM], max_tool_calls=1)
    assert ended.end is EndReason.MALFORMED
    assert "called again" in ended.turns[0].segments[-1].error


def test_a_thought_beyond_its_limit_is_malformed(tiny_policy: Path, processor: PolicyProcessor) -> None:
    trajectory = play(tiny_policy, ["<think>" + "look " * 20 + "</think>" + act(processor)], max_think_tokens=4)
    assert trajectory.end is EndReason.MALFORMED
    assert "longer than 4 tokens" in trajectory.turns[0].segments[-1].error


def test_a_turn_that_outgrows_its_limit_is_context_full(tiny_policy: Path) -> None:
    trajectory = play(tiny_policy, [ZOOM] * 9, max_turn_tokens=70, max_tool_calls=9)
    assert trajectory.end is EndReason.CONTEXT_FULL
    assert len(trajectory.turns[0].token_ids) >= 70


@pytest.mark.parametrize("where", ["reset", "step"])
def test_a_crash_of_the_simulator_is_an_end_of_its_own(
    tiny_policy: Path, processor: PolicyProcessor, where: str
) -> None:
    trajectory = play(tiny_policy, [act(processor)], CountingEnv(crash_at=where))
    assert trajectory.end is EndReason.ENV_ERROR
    assert trajectory.error == f"RuntimeError: the {where} broke"


def ids(processor: PolicyProcessor, text: str) -> list[int]:
    """A turn by hand: the prompt, behind it marks and words."""
    return [*processor.prompt_ids("press the pad", 1), *processor.vocabulary.encode(text)]


def expanded(processor: PolicyProcessor, compact: list[int]) -> list[int]:
    return processor.expand(compact, [np.zeros((64, 64, 3), np.uint8)]).tolist()


def test_between_two_that_think_decisions_reuse_the_last_thought(processor: PolicyProcessor) -> None:
    rest = act(processor).removeprefix("<act>")
    looks = [f"<think>look</think>{ZOOM}", f"<think>press</think>{act(processor)}"]
    texts = [*looks, rest, rest, f"<think>now</think>{act(processor)}"]
    trajectory, requests = play_with(processor, texts, CountingEnv(length=4), think_every=3)
    kind = SegmentKind
    assert trajectory.end is EndReason.SUCCESS
    assert len(requests) == 5  # two, one, one, one
    own = [kind.PROMPT, kind.THINK, kind.TOOL_CALL, kind.TOOL_RESULT, kind.THINK, kind.ACT]
    reuse = [kind.PROMPT, kind.PROMPT, kind.PROMPT, kind.ACT]
    assert [kinds(trajectory, i) for i in range(4)] == [own, reuse, reuse, [kind.PROMPT, kind.THINK, kind.ACT]]
    context = ids(processor, "<think>press</think><act>")
    for turn, request in zip(trajectory.turns[1:3], requests[2:4], strict=True):
        assert list(request.prompt_ids) == context
        assert turn.token_ids[~turn.loss_mask].tolist() == expanded(processor, context)
        assert turn.token_ids[turn.loss_mask].tolist() == processor.vocabulary.encode(rest)
        assert (turn.sampler_logprobs[~turn.loss_mask] == 0).all()
        assert [(s.is_reused, s.text) for s in turn.segments[:3]] == [
            (False, "press the pad"),
            (True, "press"),
            (False, ""),
        ]
        assert len(turn.images) == 1
        assert turn.actions.shape == processor.codec.chunk_shape
    assert list(requests[4].prompt_ids) == ids(processor, "")
    assert [request.seed for request in requests] == [
        derive_seed(derive_seed(TASK.seed, 0, turn), call) for turn, call in [(0, 0), (0, 1), (1, 0), (2, 0), (3, 0)]
    ]


def test_a_reused_thought_counts_for_the_format_and_not_as_said_again(processor: PolicyProcessor) -> None:
    rest = act(processor).removeprefix("<act>")
    texts = [f"<think>look</think>{ZOOM}", f"<think>press</think>{act(processor)}", rest]
    trajectory, _ = play_with(processor, texts, CountingEnv(length=2), think_every=2)
    assert format_score(trajectory) == 1.0
    group = Group(task=trajectory.task, trajectories=(replace(trajectory, advantage=1.0),))
    metrics = rollout_metrics([group])
    assert metrics["tool_calls_per_turn"] == 0.5
    assert metrics["response_tokens"] == sum(len(processor.vocabulary.encode(text)) for text in texts) / 2
    first, second = rows([group], mask_context_full=True)
    assert second.num_sampled_tokens == len(processor.vocabulary.encode(rest))
    assert first.num_sampled_tokens > second.num_sampled_tokens


def test_where_the_policy_did_not_think_there_is_nothing_to_reuse(processor: PolicyProcessor) -> None:
    texts = [act(processor), act(processor).removeprefix("<act>")]
    trajectory, requests = play_with(processor, texts, CountingEnv(length=2), think_every=2)
    assert list(requests[1].prompt_ids) == ids(processor, "<act>")
    assert kinds(trajectory, 1) == [SegmentKind.PROMPT, SegmentKind.PROMPT, SegmentKind.ACT]
    assert format_score(trajectory) == 0.0


def test_without_zoom_a_thought_is_reused_too(processor: PolicyProcessor) -> None:
    rest = act(processor).removeprefix("<act>")
    texts = ["<think>left</think>", rest, rest]
    trajectory, requests = play_with(processor, texts, CountingEnv(length=2), mode="think", think_every=2)
    assert trajectory.end is EndReason.SUCCESS
    assert [list(request.prompt_ids) for request in requests] == [
        ids(processor, ""),
        ids(processor, "<think>left</think><act>"),
        ids(processor, "<think>left</think><act>"),
    ]


@pytest.mark.parametrize("text", ["<think>press", "<think>press</think><act><act_1></act>"])
def test_a_malformed_thought_is_not_reused(processor: PolicyProcessor, text: str) -> None:
    trajectory, requests = play_with(processor, [text], CountingEnv(length=2), think_every=2)
    assert trajectory.end is EndReason.MALFORMED
    assert (len(trajectory.turns), len(requests)) == (1, 1)


def test_a_malformed_action_behind_a_reused_thought_ends_the_trajectory(processor: PolicyProcessor) -> None:
    texts = [f"<think>press</think>{act(processor)}", "<act_1></act>"]
    trajectory, _ = play_with(processor, texts, CountingEnv(length=3), think_every=2)
    assert trajectory.end is EndReason.MALFORMED
    assert format_score(trajectory) == 0.5


def test_members_and_turns_sample_with_seeds_of_their_own() -> None:
    seeds = {derive_seed(7, member, turn, call) for member in range(4) for turn in range(4) for call in range(4)}
    assert len(seeds) == 64
    assert derive_seed(7, 1, 2) == derive_seed(7, 1, 2)
