"""The report's tables: success with its interval, and the other numbers of a summary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

RATE_KEYS = {"rate", "low", "high", "num_trials"}
"""What makes a mapping in a summary a success rate with its Wilson interval."""


def find_rates(summary: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every success rate in a summary, with the keys that lead to it."""
    if summary.keys() >= RATE_KEYS:
        yield path or "all tasks", summary
    for key, value in summary.items():
        is_repetition = key == "tasks" and len(value) == 1  # the only task is all tasks
        if isinstance(value, Mapping) and not is_repetition:
            yield from find_rates(value, path if key == "tasks" else f"{path} {key}".strip())


def find_numbers(summary: Mapping[str, Any], path: str = "") -> dict[str, float]:
    """The numbers of a summary beside its success rates, by their path of keys."""
    numbers: dict[str, float] = {}
    for key, value in summary.items():
        name = f"{path} {key}".strip()
        if isinstance(value, Mapping) and key not in ("tasks", "packages"):
            numbers |= find_numbers(value, name)
        elif isinstance(value, int | float) and not isinstance(value, bool) and key not in RATE_KEYS:
            numbers[name] = value
    return numbers
