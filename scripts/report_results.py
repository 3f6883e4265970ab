"""The report's tables: success with its interval, and whatever else a summary says in numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlvla.report.html_page import table, tag, text

RATE_KEYS = {"rate", "low", "high", "num_trials"}
"""What makes a mapping in a summary a success rate with its Wilson interval."""


def section(summaries: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Two tables for (run, its summary.json): success rates, and the other numbers."""
    rates = [(run, name, rate) for run, summary in summaries for name, rate in find_rates(summary)]
    facts = [(run, find_numbers(summary)) for run, summary in summaries]
    return _rate_table(rates) + _fact_table([(run, numbers) for run, numbers in facts if numbers])


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


def _rate_table(rates: Sequence[tuple[str, str, Mapping[str, Any]]]) -> str:
    if not rates:
        return ""
    rows = [
        (
            text(run),
            text(name.replace("_", " ")),
            tag("b", f"{100 * rate['rate']:.1f} %"),
            _bar(rate),
            f"{100 * rate['low']:.1f} to {100 * rate['high']:.1f}",
            text(rate["num_trials"]),
        )
        for run, name, rate in rates
    ]
    return table(("run", "", "success", "", "Wilson 95 % interval", "trials"), rows, numeric=(2, 5))


def _bar(rate: Mapping[str, Any]) -> str:
    """The rate as a bar from 0 to 100 %, the interval as a whisker."""
    low, high, width = (100 * float(rate[key]) for key in ("low", "high", "rate"))
    return (
        '<svg class="interval" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" '
        f'aria-label="{width:.1f} %, interval {low:.1f} to {high:.1f}">'
        '<rect class="track" width="100" height="10" opacity=".5"/>'
        f'<rect class="rate" width="{width:.2f}" height="10" opacity=".75"/>'
        f'<path class="range" vector-effect="non-scaling-stroke" '
        f'd="M{low:.2f} 5H{high:.2f}M{low:.2f} 2V8M{high:.2f} 2V8"/></svg>'
    )


def _fact_table(facts: Sequence[tuple[str, Mapping[str, float]]]) -> str:
    """Runs as columns, so that evaluations stand side by side."""
    if not facts:
        return ""
    names = dict.fromkeys(name for _, numbers in facts for name in numbers)
    rows = [
        [text(name.replace("_", " ")), *(f"{n[name]:.4g}" if name in n else "" for _, n in facts)] for name in names
    ]
    header = ["", *(text(run) for run, _ in facts)]
    return tag("h3", "Other numbers") + table(header, rows, numeric=range(1, len(header)), class_="facts")
