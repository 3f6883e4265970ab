"""What a thinker's checkpoint says of itself beside the Hugging Face files: `rlvla_policy.json`, read once."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, TypeAdapter, ValidationError

from rlvla.config import ActionDecoding
from rlvla.policies.family import POLICY_FILE, wrong_keys
from rlvla.policies.thinker.actions import QuantileCodec, read_codec

NAME = "thinker"
"""Of the family."""
PrefixAttention = Literal["causal", "bidirectional"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of one policy; defaults are what checkpoints without the key were trained with."""

    codec: Annotated[QuantileCodec, BeforeValidator(read_codec)]
    """Actions <-> bins."""
    trained_suites: tuple[str, ...] = ()
    """Suites on whose train initial states it has learned."""
    action_decoding: ActionDecoding = "autoregressive"
    """See `rlvla.config.SFTConfig`."""
    prefix_attention: PrefixAttention = "causal"
    """See `rlvla.config.SFTConfig`."""
    views: tuple[tuple[int, int], ...] = ()
    """(H, W) of each camera's picture that it was trained on, px; empty: its checkpoint is older than this note."""

    def to_json(self) -> str:
        """Content of the file."""
        return json.dumps({"family": NAME, **asdict(self)}, indent=2) + "\n"


_SETTINGS = TypeAdapter(Settings)


def parse_settings(content: bytes, name: str) -> Settings:
    """What the file `name` says.

    Raises:
        ValueError: it is no JSON, a key is missing or of a wrong type, or the policy is one that this version does not
            serve; the message names file and key.
    """
    try:
        settings = _SETTINGS.validate_json(content)
    except ValidationError as error:
        raise ValueError(f"{name}: not a policy's settings: {wrong_keys(error)}") from None
    if json.loads(content).get("carry_thought"):
        raise ValueError(
            f"{name}: carry_thought is true: prompts that show the last thought are gone; rlvla 0.1.0 serves this "
            "checkpoint, or train anew from its model"
        )
    return settings


def read_settings(path: Path | str) -> Settings | None:
    """Of a checkpoint folder; None where `path` is no policy's: empty, a hub id, another model's folder."""
    file = Path(path) / POLICY_FILE
    return parse_settings(file.read_bytes(), str(file)) if path and file.is_file() else None
