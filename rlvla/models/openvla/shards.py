"""Which files hold the weights of a checkpoint, as its index says; light, since what is read comes from elsewhere."""

from __future__ import annotations

import json
from pathlib import Path


class CheckpointError(ValueError):
    """A folder that is no OpenVLA checkpoint, or not the whole of one; the message says what is wrong with it."""


def shard_names(content: bytes, name: str) -> list[str]:
    """Files of the weights, each once, from the content of the index `name`.

    Raises:
        CheckpointError: it is no index, or names a file elsewhere: a checkpoint cannot make us read other files.
    """
    try:
        names = sorted(set(json.loads(content)["weight_map"].values()))
        if wrong := [n for n in names if Path(n).name != n or not n.endswith(".safetensors") or "\0" in n]:
            raise CheckpointError(f"{name} names {wrong[0]!r}, which is no safetensors file beside it")
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{name} is no index of weights: {error}") from None
    return names
