"""Families without words: small networks of random weights that fit the tabletop, and what they decide."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlvla import plugins
from rlvla.config import (
    ACoTConfig,
    ChainEpisodeConfig,
    ChainOfActionConfig,
    EpisodeConfig,
    FlowEpisodeConfig,
    SFTConfig,
)
from rlvla.policies.family import FAMILIES, Sizes
from rlvla.protocols import SampleOutput, Sampler, SampleRequest
from rlvla.types import Observation, Turn

CHAIN, ACOT = "chain_of_action", "acot"
WORDLESS = (CHAIN, ACOT)
SMALL: dict[str, Any] = {
    CHAIN: ChainOfActionConfig(
        conv_channels=(8, 16), hidden_size=32, num_heads=2, ffn_size=64, encoder_layers=1, decoder_layers=1
    ),
    ACOT: ACoTConfig(
        image_size=32,
        vision_layers=1,
        vision_width=32,
        vision_mlp=64,
        layers=1,
        implicit_group=1,
        width=32,
        mlp=64,
        head_width=8,
        expert_width=32,
        expert_mlp=64,
        action_horizon=3,
        reference_horizon=2,
        reference_stride=2,
    ),
}
LOUD: dict[str, EpisodeConfig] = {
    CHAIN: EpisodeConfig(mode="act", tools={}, chain=ChainEpisodeConfig(std=0.5, gripper_std=0.5)),
    ACOT: EpisodeConfig(mode="act", tools={}, flow=FlowEpisodeConfig(num_steps=3, where="both")),
}
"""Noise that makes chains of various lengths, and gives each chunk two units."""
TABLETOP = Sizes(chunk_shape=(4, 4), views=((64, 64),), proprio_size=4)


def make_policy(family: str, sizes: Sizes = TABLETOP, **changes: Any) -> tuple[Any, Any]:
    """(model, policy), seeded; `changes` are keys of the network's config."""
    cfg = SFTConfig(family=family, **{family: replace(SMALL[family], **changes)})  # type: ignore[arg-type]
    _, policy = plugins.resolve(FAMILIES[family]).sketch(cfg, sizes)
    torch.manual_seed(0)
    return policy.network().eval(), policy


def make_checkpoint(path: Path, family: str, sizes: Sizes = TABLETOP, **changes: Any) -> Path:
    """A folder that recipes take."""
    model, policy = make_policy(family, sizes, **changes)
    policy.save(model, path)
    return path


def pictures(rng: np.random.Generator, sizes: Sizes = TABLETOP) -> tuple[np.ndarray, ...]:
    """What the cameras might show."""
    return tuple(rng.integers(0, 256, (*view, 3), dtype=np.uint8) for view in sizes.views)


def moved(model: Any, seed: int = 3) -> Any:
    """As after an update."""
    other = copy.deepcopy(model)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return other


def observation(seed: int) -> Observation:
    """What a policy might be shown, with instructions of various lengths."""
    rng = np.random.default_rng(seed)
    proprio = np.float32(rng.uniform(-0.5, 0.5, TABLETOP.proprio_size))
    instruction = "press the red pad"[: 5 + seed]
    return Observation(images=pictures(rng), proprio=proprio, instruction=instruction, zoom=lambda *_: np.zeros(0))


async def in_env(function: Callable[[], Any]) -> Any:
    """What a decider asks of its env, at once."""
    return function()


@dataclass
class Drawn:
    """A sampler that answers one request after another, and remembers them."""

    model: Any
    policy: Any
    requests: list[SampleRequest] = field(default_factory=list)

    async def sample(self, request: SampleRequest) -> SampleOutput:
        """See `protocols.Sampler`."""
        self.requests.append(request)
        generator = torch.Generator().manual_seed(request.seed)
        return self.policy.draw(self.model, [request], [generator])[0]


def asked(sampler: Sampler, policy: Any, episode: EpisodeConfig, seeds: Sequence[int] = range(8)) -> list[Turn]:
    """A decision for each seed; all ask at once."""
    decider = policy.decider(sampler, episode)

    async def decided() -> list[Any]:
        return await asyncio.gather(*(decider.decide(observation(seed), in_env, seed=seed) for seed in seeds))

    return [each.turn for each in asyncio.run(decided())]


def decide(model: Any, policy: Any, episode: EpisodeConfig, seeds: Sequence[int] = range(8)) -> list[Turn]:
    """As `asked`, of a model, one by one."""
    return asked(Drawn(model, policy), policy, episode, seeds)


def score(model: Any, policy: Any, turns: Sequence[Turn], **options: Any) -> Any:
    """What the learner finds, in float32."""
    return policy.logprobs(model, policy.inputs(turns, "cpu", torch.float32), **options)
