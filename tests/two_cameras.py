"""An env with two cameras, and a policy that looks closer into each of them as often as it may before it acts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from rlvla.data.types import Demonstration
from rlvla.learner.collate import to_batch, to_row
from rlvla.policies.markup import print_think, print_zoom
from rlvla.policies.thinker.actions import QuantileCodec
from rlvla.policies.thinker.policy import Thinker
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.policies.thinker.settings import Settings
from rlvla.policies.thinker.vocabulary import add_slots
from rlvla.types import Box
from tests import tiny_checkpoints

SIDE = 32
"""Of a view, pixels."""
BOXES: tuple[tuple[int, Box], ...] = ((0, (0, 0, 500, 500)), (1, (500, 0, 1000, 500)), (1, (0, 500, 500, 1000)))
"""Where the policy looks closer: image index and box."""
TEXTS = (*(print_think("look") + print_zoom(*look) for look in BOXES), print_think("press"))
INSTRUCTION = "press the red pad"


def _view(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


class TwoCameras(gymnasium.Env):
    """Succeeds behind its second chunk; both views change with each."""

    suite = "two"
    task_names = ("press",)
    observation_space = gymnasium.spaces.Dict(
        images=gymnasium.spaces.Box(0, 255, (2, SIDE, SIDE, 3), np.uint8),
        proprio=gymnasium.spaces.Box(-1, 1, (1,), np.float32),
        instruction=gymnasium.spaces.Text(20),
    )

    def __init__(self) -> None:
        self._chunks = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self._chunks = 0
        return self._observe(), {}

    def step_chunk(self, actions: np.ndarray) -> Any:
        self._chunks += 1
        ended = self._chunks == 2
        return self._observe(), np.zeros(len(actions), np.float32), ended, False, {"is_success": ended}

    def zoom(self, image: int, bbox: Box) -> np.ndarray:
        """A picture that tells which camera was looked into, and where."""
        return _view(hash((image, bbox, self._chunks)) % 1000)

    def _observe(self) -> dict[str, Any]:
        images = np.stack([_view(self._chunks), _view(100 + self._chunks)])
        return {"images": images, "proprio": np.zeros(1, np.float32), "instruction": INSTRUCTION}


gymnasium.register("tests/TwoCameras-v0", TwoCameras)


def save_policy(architecture: str, path: Path, num_steps: int = 60) -> None:
    """Write a policy that decodes actions in parallel and has learned nothing but `TEXTS`, whatever it sees."""
    model, hf_processor = tiny_checkpoints.build(
        architecture, [INSTRUCTION, *TEXTS], 8, hidden_size=64, num_layers=2, vision_layers=1, image_size=SIDE
    )
    codec = QuantileCodec(low=(-1.0, -1.0), high=(1.0, 1.0), num_bins=8, chunk_length=2)
    add_slots(model, hf_processor, 4)
    processor = PolicyProcessor.create(hf_processor, Settings(codec=codec, action_decoding="parallel"))
    policy = Thinker(processor)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(num_steps):
        batch = to_batch([to_row(policy.to_turn(_demonstration(seed))) for seed in range(4 * step, 4 * step + 4)])
        logprobs, _ = policy.logprobs(model, policy.inputs(batch.turns, "cpu", torch.float32), first=batch.first)
        optimizer.zero_grad()
        (-logprobs[batch.loss_mask].mean()).backward()
        optimizer.step()
    policy.save(model.eval(), path)


def _demonstration(seed: int) -> Demonstration:
    images = [_view(10 * seed + i) for i in range(2 + len(BOXES))]
    actions = np.random.default_rng(seed).uniform(-1, 1, (2, 2)).astype(np.float32)
    return Demonstration(
        instruction=INSTRUCTION,
        images=tuple(images[:2]),
        proprio=np.zeros(1, np.float32),
        texts=TEXTS,
        crops=tuple(images[2:]),
        actions=actions,
    )
