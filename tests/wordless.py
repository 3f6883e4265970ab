"""Checkpoints of the families without words: small networks of random weights that fit the tabletop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlvla import plugins
from rlvla.config import ACoTConfig, ChainOfActionConfig, SFTConfig
from rlvla.policies.family import FAMILIES, Sizes

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
