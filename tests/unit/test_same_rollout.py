"""Rollouts are bit for bit those that they have been: requests to the sampler, turns, and what is measured of them.

The digests were taken before deciding moved into the policy's family. Another tokenizer changes none of them.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlvla.config import EpisodeConfig
from rlvla.policies.markup import print_think, print_zoom
from rlvla.policies.thinker.policy import Thinker
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.protocols import SampleOutput, SampleRequest
from rlvla.rollout.env_thread import EnvThread
from rlvla.rollout.episode import run_episode
from rlvla.run.metrics import rollout_metrics
from rlvla.types import Group, TaskSpec, Trajectory
from rlvla_reward import format_score
from tests import parallel_policies as tiny

TASK = TaskSpec(suite="test", task_id=0, init_state_id=3, seed=7)
ZOOMS = [print_zoom(0, (100, 250, 300, 450)), print_zoom(0, (9, 9, 9, 9))]
MEMBERS = range(8)
DIGESTS = {
    "act-autoregressive": "911b697d8842a043",
    "act-parallel": "112ae51c42fc4a0b",
    "reuse-autoregressive": "3b8dd5615bc86dad",
    "reuse-parallel": "23d3f017127f61d1",
    "think-autoregressive": "38ca0ebc510dc606",
    "think-parallel": "571d07e990e2d60f",
    "zoom-autoregressive": "bb109d23a37fdcfc",
    "zoom-parallel": "cc7eee78819fcd6f",
}


class LongEnv:
    """Four chunks, the last of which ends within; every picture is another."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.chunks = 0
        return self._observe(), {}

    def step_chunk(self, actions: np.ndarray) -> Any:
        self.chunks += 1
        is_last = self.chunks == 4
        executed = actions[:1] if is_last else actions
        return self._observe(), np.zeros(len(executed), np.float32), is_last, False, {"is_success": is_last}

    def zoom(self, image: int, bbox: Any) -> np.ndarray:
        return tiny.image(50 + self.chunks)

    def close(self) -> None: ...

    def _observe(self) -> dict[str, Any]:
        return {"images": tiny.image(self.chunks)[None], "proprio": np.zeros(4), "instruction": tiny.INSTRUCTION}


class SeededSampler:
    """Says what the seed of a request decides, well-formed or not, and keeps what it was asked."""

    def __init__(self, processor: PolicyProcessor, is_parallel: bool) -> None:
        self.processor, self.is_parallel = processor, is_parallel
        self.asked: list[Any] = []

    async def sample(self, request: SampleRequest) -> SampleOutput:
        vocabulary, rng = self.processor.vocabulary, np.random.default_rng(request.seed)
        actions = rng.integers(len(vocabulary.action_ids), size=self.processor.decoding.num_actions)
        ids = [vocabulary.action_ids[bin_] for bin_ in actions]
        if not request.num_actions:
            ids = self._text(rng, ids, request)
            ids = ids[: request.max_tokens]
            ids = ids[: next((i + 1 for i, id_ in enumerate(ids) if id_ in request.stop_ids), len(ids))]
        self.asked.append(
            {
                "prompt": vocabulary.decode(request.prompt_ids),
                "images": [hashlib.sha256(image.tobytes()).hexdigest() for image in request.images],
                "stop": [vocabulary.decode([id_]) for id_ in request.stop_ids],
                "banned": [vocabulary.decode([id_]) for id_ in request.banned_ids],
                **{name: getattr(request, name) for name in ("max_tokens", "temperature", "seed", "num_actions")},
                "num_prefix_tokens": request.num_prefix_tokens,
            }
        )
        return SampleOutput(
            context_ids=self.processor.expand(request.prompt_ids, request.images),
            token_ids=np.array(ids, np.int32),
            logprobs=-rng.random(len(ids), np.float32),
            policy_version=5,
        )

    def _text(self, rng: np.random.Generator, actions: list[int], request: SampleRequest) -> list[int]:
        vocabulary, banned = self.processor.vocabulary, request.banned_ids
        act = [*actions, vocabulary.mark_ids["</act>"]]
        if request.prompt_ids[-1] == vocabulary.mark_ids["<act>"]:
            return act
        thought = vocabulary.encode(str(rng.choice([print_think("the pad at 200, 350 is red"), "", print_think("")])))
        if rng.random() < 0.06:
            return vocabulary.encode(str(rng.choice(["press it", "<think>a<act>", "</act>", "<think>a</think>b"])))
        if vocabulary.mark_ids["<tool>"] not in banned and rng.random() < 0.4:
            return [*thought, *vocabulary.encode(str(rng.choice(ZOOMS)))]
        return [*thought, vocabulary.mark_ids["<act>"], *([] if self.is_parallel else act)]


def play(processor: PolicyProcessor, config: EpisodeConfig, sampler: SeededSampler, member: int) -> Trajectory:
    decider = Thinker(processor).decider(sampler, config)
    thread = EnvThread(LongEnv)
    try:
        return asyncio.run(run_episode(decider, thread, TASK, member=member))
    finally:
        thread.close()


def told(processor: PolicyProcessor, trajectory: Trajectory) -> Any:
    turns = [
        {
            "text": processor.vocabulary.decode(turn.token_ids.tolist()),
            "logprobs": turn.sampler_logprobs.tolist(),
            "segments": [{**asdict(segment), "kind": segment.kind.value} for segment in turn.segments],
            "images": [hashlib.sha256(image.tobytes()).hexdigest() for image in turn.images],
            "actions": turn.actions.tolist(),
            "loss_mask": turn.loss_mask.tolist(),
            "prefix": turn.num_prefix_tokens,
            "format": turn.is_malformed,
            "version": turn.policy_version,
        }
        for turn in trajectory.turns
    ]
    return {"end": trajectory.end.value, "steps": trajectory.num_env_steps, "turns": turns}


@pytest.mark.parametrize("decoding", ["autoregressive", "parallel"])
@pytest.mark.parametrize(
    "config",
    [
        EpisodeConfig(max_tool_calls=1),
        EpisodeConfig(mode="think", temperature=1.6, max_think_tokens=12),
        EpisodeConfig(mode="act", temperature=0.0),
        EpisodeConfig(think_every=2, max_turn_tokens=110),
    ],
    ids=["zoom", "think", "act", "reuse"],
)
def test_the_numbers_of_before(
    tmp_path: Path, config: EpisodeConfig, decoding: str, request: pytest.FixtureRequest
) -> None:
    processor = PolicyProcessor.load(tiny.save("idefics3", tmp_path / "policy", action_decoding=decoding))
    sampler = SeededSampler(processor, decoding == "parallel")
    trajectories = tuple(play(processor, config, sampler, member) for member in MEMBERS)
    group = Group(task=trajectories[0].task, trajectories=trajectories)
    measured = {k: v for k, v in rollout_metrics([group]).items() if "latency" not in k}
    scores = [format_score(trajectory) for trajectory in trajectories]
    record = [sampler.asked, [told(processor, t) for t in trajectories], measured, scores]
    content = json.dumps(record, sort_keys=True).encode()
    name = request.node.callspec.id
    assert hashlib.sha256(content).hexdigest()[:16] == DIGESTS[name]
