"""An env with two cameras, and a policy that looks closer into each of them as often as it may before it acts."""

from __future__ import annotations

from pathlib import Path

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
from tests.unit.faulty_env import INSTRUCTION, FaultyEnv, view

SIDE = 32
"""Of a view, pixels."""
BOXES: tuple[tuple[int, Box], ...] = ((0, (0, 0, 500, 500)), (1, (500, 0, 1000, 500)), (1, (0, 500, 500, 1000)))
"""Where the policy looks closer: image index and box."""
TEXTS = (*(print_think("look") + print_zoom(*look) for look in BOXES), print_think("press"))


gymnasium.register("tests/TwoCameras-v0", FaultyEnv, kwargs={"num_cameras": 2, "side": SIDE})


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
    images = [view(10 * seed + i, SIDE) for i in range(2 + len(BOXES))]
    actions = np.random.default_rng(seed).uniform(-1, 1, (2, 2)).astype(np.float32)
    return Demonstration(
        instruction=INSTRUCTION,
        images=tuple(images[:2]),
        proprio=np.zeros(1, np.float32),
        texts=TEXTS,
        crops=tuple(images[2:]),
        actions=actions,
    )
