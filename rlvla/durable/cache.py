"""Where a machine keeps what can be made again: copies of policies, the rows of data sets."""

from __future__ import annotations

import os
from pathlib import Path

CACHE = "RLVLA_CACHE"
"""Environment variable: the folder; else `~/.cache/rlvla`. May be deleted at any time that no run starts."""


def cache_folder(kind: str) -> Path:
    """The folder of this machine for one kind of things, which need not be there yet."""
    return Path(os.environ.get(CACHE) or Path.home() / ".cache/rlvla") / kind
