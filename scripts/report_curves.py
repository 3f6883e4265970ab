"""The report's learning curves, drawn by matplotlib as inline SVG: raw pale, smoothed strong, one colour a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rlvla.report.html_page import tag, text
from rlvla.report.svg_chart import COLOURS, INK, new_axes, to_svg

Metrics = Sequence[Mapping[str, float | None]]
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
    figure, axes = new_axes()
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("step", color=INK)
    return figure, axes


def _figure(figure: Figure, title: str, salt: str, label: str) -> str:
    chart = to_svg(figure, salt=salt, label=label)
    return tag("figure", tag("figcaption", tag("b", text(title))) + chart, class_="chart")
