"""What a target of the fuzzer is, the table of them, and what they share.

A target turns bytes into the input of one reader, and asserts what that promises: something sound, or its documented
error. What else the reader raises is a finding, and so is an AssertionError of the target.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(tempfile.mkdtemp(prefix="rlvla-fuzz-"))
"""Of the files that readers are given."""
atexit.register(shutil.rmtree, FOLDER)

_WORDS = """
{ } [ ] " : , null true NaN Infinity 1e999 1000000000000 -1 \\ud800 999999999999999999999999999999999999999
<think> </think> <tool> </tool> <act> </act> name arguments bbox image zoom_in thought decision attempt is_judge reply
turns end &a *a << !!python/object - | 2001-99-99 !!int group_size .inf 0o7 ../ codec num_bins parallel norm_stats
action mask min n_action_bins image_token_index action_token_end use_fused_vision_backbone rope_scaling dtype
module. .ls2.gamma [0] F32 BF16 C64 F8_E4M3 F4 IHDR IDAT PLTE tRNS IEND ftyp moov mdat stsz stco avcC esds
#EXTM3U ffconcat v2.0 v3.0 {0} {episode_index:99d}
"""
WORDS = ("\n", "\0", "? ", *_WORDS.split())
"""What inputs are likely to hold: libFuzzer's dictionary."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """One reader."""

    run: Callable[[bytes], None]
    """Raises on a finding."""
    seeds: tuple[bytes, ...]
    """Good inputs to start from."""
    max_bytes: int
    """Of an input."""


TARGETS: dict[str, Target] = {}
"""By name, in the order in which they are run."""


def target(*seeds: bytes, max_bytes: int = 4096) -> Callable[[Callable[[bytes], None]], Callable[[bytes], None]]:
    """Put a function into the table."""

    def register(run: Callable[[bytes], None]) -> Callable[[bytes], None]:
        TARGETS[run.__name__] = Target(run=run, seeds=seeds, max_bytes=max_bytes)
        return run

    return register


@contextmanager
def refused(error: type[Exception], place: object) -> Iterator[None]:
    """What is done inside may raise the error, whose message then names the place."""
    try:
        yield
    except error as refusal:
        if str(place) not in str(refusal):
            raise AssertionError(f"{place} is not named") from refusal


def written(data: bytes, name: str) -> Path:
    """A file with this content."""
    file = FOLDER / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


def spread(data: bytes, *names: str) -> None:
    """Write an input's parts, which a zero byte ends, into files; there is no file of a part that is empty."""
    parts = data.split(b"\0")
    for number, name in enumerate(names):
        file = written(b"".join(parts[number : number + 1]), name)
        if not file.stat().st_size:
            file.unlink()
