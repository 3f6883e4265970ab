"""The report's learning curves, drawn by matplotlib as inline SVG: raw pale, smoothed strong, one colour a run."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from report_page import tag, text

Metrics = Sequence[Mapping[str, float | None]]
COLOURS = ("#3f7fc4", "#e07b28", "#3f9e57", "#a763b5", "#cf4a55", "#2b9fa3")
"""Readable on white and on near-black."""
INK = "#010203"
"""Stands for the page's text colour until the SVG is inlined."""
SHOWN = {
    "success": "success",
    "reward": "reward",
    "format_rate": "well-formed turns",
    "response_tokens": "sampled tokens per turn",
    "tool_calls_per_turn": "tool calls per turn",
    "bad_call_rate": "refused tool calls",
    "crop_area": "share of the frame in a crop",
    "kl": "KL to the reference",
    "mismatch_kl": "KL between sampler and learner",
    "entropy": "entropy",
}
"""What GRPO is judged by, in the order of reading; everything else folds away."""
PARTS = ("time/update_s",)
"""Inside another phase (learn); stacked on it, their time would count twice."""
_STYLE: dict[Any, Any] = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9, "axes.linewidth": 0.6}


def section(runs: Sequence[tuple[str, Metrics]]) -> str:
    """Charts of (run, lines of its metrics.jsonl); runs with a success rate share theirs, and so do the others."""
    is_rl = {name: any("success" in line for line in metrics) for name, metrics in runs}
    rl = [run for run in runs if is_rl[run[0]]]
    supervised = [run for run in runs if not is_rl[run[0]]]
    blocks = [
        tag("h3", heading) + _charts(members)
        for heading, members in (("Cold start", supervised), ("Reinforcement learning", rl))
        if members
    ]
    return "".join(blocks)


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred moving average over a tenth of the curve, hence without lag; null values are skipped.

    Args:
        values: [T], NaN where there is none.

    Returns:
        [T]; at the ends the mean is over what the window still covers, NaN where it covers nothing.
    """
    window = np.ones(2 * (len(values) // 20) + 1)
    is_there = np.isfinite(values)
    counts = np.convolve(is_there.astype(float), window, "same")
    sums = np.convolve(np.where(is_there, values, 0.0), window, "same")
    return np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0.5)


def _charts(runs: Sequence[tuple[str, Metrics]]) -> str:
    names = sorted({name for _, metrics in runs for line in metrics for name in line} - {"step"})
    first = [name for name in SHOWN if name in names]
    if not first:  # a supervised run: all that it measures
        first = [name for name in names if not name.startswith("time/")]
    phases = {name for _, metrics in runs for name in _phase_names(metrics)}
    rest = [name for name in names if name not in first and name not in phases]
    shown = [_curve(name, runs) for name in first]
    shown += [_phases(run, metrics) for run, metrics in runs if _phase_names(metrics)]
    more = tag("div", "".join(_curve(name, runs) for name in rest), class_="charts")
    folded = tag("details", tag("summary", f"{len(rest)} more metrics") + more, class_="more") if rest else ""
    return _legend([name for name, _ in runs]) + tag("div", "".join(shown), class_="charts") + folded


def _legend(names: Sequence[str]) -> str:
    entries = (
        f'<span><i style="background:{COLOURS[i % len(COLOURS)]}"></i>{text(name)}</span>'
        for i, name in enumerate(names)
    )
    note = '<span class="dim">pale: each step; strong: moving average over a tenth of the run</span>'
    return tag("div", "".join(entries) + note, class_="legend")


def _column(metrics: Metrics, name: str) -> tuple[np.ndarray, np.ndarray]:
    """[T] steps and [T] values of the lines that hold this metric; null is NaN."""
    lines = [line for line in metrics if name in line]
    values = [np.nan if (value := line[name]) is None else value for line in lines]
    return np.array([line["step"] for line in lines], float), np.array(values, float)


def _curve(name: str, runs: Sequence[tuple[str, Metrics]]) -> str:
    figure, axes = _axes()
    lasts = []
    for i, (run, metrics) in enumerate(runs):
        steps, values = _column(metrics, name)
        if not np.isfinite(values).any():
            continue
        colour, smoothed = COLOURS[i % len(COLOURS)], smooth(values)
        marker = "." if len(values) < 3 else ""
        axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.45, marker=marker)
        axes.plot(steps, smoothed, color=colour, linewidth=1.8)
        lasts.append(f"{run} {smoothed[0]:.3g} to {smoothed[-1]:.3g}")
    if name == "success":  # from 0 to 1, so that noise near the top does not look like progress
        axes.set_ylim(0, 1.03)
    title = SHOWN.get(name, name)
    return _figure(figure, title, f"metric-{name}", "; ".join(lasts))


def _phase_names(metrics: Metrics) -> list[str]:
    return sorted({name for line in metrics for name in line if name.startswith("time/")} - set(PARTS))


def _phases(run: str, metrics: Metrics) -> str:
    """Where a step's time goes, stacked."""
    names = _phase_names(metrics)
    steps = np.array([line["step"] for line in metrics], float)
    rows = [np.array([line.get(name) or 0.0 for line in metrics], float) for name in names]
    labels = [name.removeprefix("time/").removesuffix("_s") for name in names]
    figure, axes = _axes()
    axes.stackplot(steps, rows, labels=labels, colors=COLOURS[: len(names)], alpha=0.8, linewidth=0)
    figure.legend(loc="outside upper left", frameon=False, fontsize=8, labelcolor=INK, ncols=3)
    axes.set_ylim(0, None)
    return _figure(figure, f"seconds per step, {run}", f"time-{run}", ", ".join(labels))


def _axes() -> tuple[Figure, Axes]:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(3.7, 2.1), layout="constrained")
        axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(colors=INK, width=0.6, length=3)
    axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("step", color=INK)
    return figure, axes


def _figure(figure: Figure, title: str, salt: str, label: str) -> str:
    buffer = io.StringIO()
    # The salt keeps the ids of the charts on one page apart, and the same from run to run.
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg).replace(INK, "currentColor")
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{text(label)}" ', 1)
    return tag("figure", tag("figcaption", tag("b", text(title))) + svg, class_="chart")
