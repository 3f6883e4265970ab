"""How a plan says sizes and times."""

from __future__ import annotations

GIB = 1 << 30
Lines = tuple[tuple[str, str], ...]
"""(subject, text)."""


def size(num_bytes: float) -> str:
    """`12.3 GiB`, or MiB below a tenth of one."""
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB / 10 else f"{num_bytes / (1 << 20):.1f} MiB"


def duration(seconds: float) -> str:
    """`12 s`, `3.4 min` or `5.6 h`."""
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
