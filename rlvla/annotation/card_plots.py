"""The data card's charts, as SVG files: each drawn only where there is something to show."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from rlvla.annotation.card_counts import AREA_EDGES, NUM_LEVELS, NUM_SHARES, Counts, quantile
from rlvla.annotation.markdown import one_line
from rlvla.annotation.take import Tally
from rlvla.report.svg_chart import COLOURS, INK, new_axes, to_svg

FOLDER = "card"
"""Beside the card."""
MAX_TASKS = 20
"""Bars in a chart of tasks."""
MAX_LABEL = 44
"""Characters of a name beside a bar."""
MAX_CAMERAS = 4
"""Maps of boxes."""
MAX_BARS = 40
"""Bars in a histogram of words."""
_PAPER, _INK = "#ffffff", "#1c2126"
"""A picture in a README does not know whether the page around it is dark, so it brings its own ground."""

_PERCENT = FuncFormatter(lambda share, _: f"{100 * share:g} %")


def write_plots(folder: Path, counts: Counts, tasks: Sequence[str], tally: Tally) -> list[tuple[str, str]]:
    """Write the charts below the data set's folder.

    Args:
        folder: of the data set.
        counts: of the data set.
        tasks: instructions by task index.
        tally: of the run.

    Returns:
        (path relative to `folder`, title) of each chart.
    """
    charts = []
    for name, title, figure in _figures(counts, tasks, tally):
        figure.set_facecolor(_PAPER)
        with warnings.catch_warnings():
            # matplotlib measures instructions in its own font, which lacks most scripts; the browser's has them.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            svg = to_svg(figure, salt=name, label=title, ink=_INK)
        path = folder / FOLDER / f"{name}.svg"
        path.parent.mkdir(exist_ok=True)
        path.write_text(svg, encoding="utf-8")
        charts.append((f"{FOLDER}/{name}.svg", title))
    return charts


def _figures(counts: Counts, tasks: Sequence[str], tally: Tally) -> Iterator[tuple[str, str, Figure]]:
    """(name of the file, title, figure)."""
    if counts.key_frames.words or counts.others.words:
        yield "words", "words per thought", _words(counts)
    if counts.progress.any():
        yield "progress", "progress over an episode", _progress(counts)
    if counts.sides:
        yield "box_area", "area of a box", _areas(counts)
        yield "boxes", "where boxes lie", _coverage(counts)
        yield "looks", "looks per episode", _looks(counts, tasks)
    if any(tally.rejected.values()) or any(tally.dropped.values()):
        yield "rejections", "answers that failed a check", _rejections(tally)


def _words(counts: Counts) -> Figure:
    """Shares of thoughts by their length; the last bar holds all that are longer."""
    figure, axes = _chart("words per thought", "words", "share of thoughts")
    kinds = {"key frames": counts.key_frames.words, "other decisions": counts.others.words}
    longest = quantile(sum(kinds.values(), Counter()), 0.995)
    step = max(1, -(-(longest + 1) // MAX_BARS))
    num_bars = longest // step + 1
    edges = np.arange(num_bars + 1) * step - 0.5
    for (kind, words), colour in zip(kinds.items(), COLOURS[1::-1], strict=True):
        if words:
            bars = np.zeros(num_bars)
            for length, number in words.items():
                bars[min(length // step, num_bars - 1)] += number
            axes.stairs(bars / bars.sum(), edges, color=colour, fill=True, alpha=0.3)
            axes.stairs(bars / bars.sum(), edges, color=colour, linewidth=1.4, label=kind)
    axes.yaxis.set_major_formatter(_PERCENT)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    return figure


def _areas(counts: Counts) -> Figure:
    figure, axes = _chart("area of a box", "share of the frame", "boxes")
    used = np.flatnonzero(counts.areas)
    shown = slice(max(used[0] - 2, 0), used[-1] + 3)
    bars = counts.areas[shown]
    axes.stairs(bars, AREA_EDGES[shown.start : shown.start + len(bars) + 1], color=COLOURS[0], fill=True)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(_PERCENT)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    return figure


def _coverage(counts: Counts) -> Figure:
    """A map per camera: the share of its looks whose box touches a cell."""
    cameras = sorted(counts.coverage)[:MAX_CAMERAS]
    figure, _ = new_axes(2.9 * len(cameras), 2.5, grid="", num_columns=len(cameras))
    for axes, camera in zip(figure.axes.copy(), cameras, strict=True):
        shares = counts.coverage[camera] / counts.num_looks[camera]
        image = axes.imshow(shares, extent=(0, 1000, 1000, 0), cmap="Blues", vmin=0, interpolation="nearest")
        title = "where boxes lie" if len(cameras) == 1 else f"where boxes lie, camera {camera}"
        axes.set_title(title, fontsize=9, loc="left", color=INK)
        axes.spines[:].set(visible=True, color=INK)
        axes.set_xticks([0, 500, 1000])
        axes.set_yticks([0, 500, 1000])
        bar = figure.colorbar(image, ax=axes, shrink=0.85, format=_PERCENT)
        bar.ax.tick_params(colors=INK, width=0.6, length=3, labelsize=8)
        bar.outline.set(edgecolor=INK, linewidth=0.6)  # type: ignore[operator]
    return figure


def _looks(counts: Counts, tasks: Sequence[str]) -> Figure:
    most = sorted(counts.tasks, key=lambda index: (-counts.tasks[index].num_looks, index))[:MAX_TASKS]
    title = "looks per episode" if len(most) == len(counts.tasks) else f"looks per episode, {MAX_TASKS} tasks with most"
    figure, axes = _bars(title, [tasks[index] for index in most], num_bars=1)
    axes.barh(
        range(len(most)),
        [counts.tasks[index].num_looks / counts.tasks[index].num_episodes for index in most],
        height=0.6,
        color=COLOURS[0],
    )
    return figure


def _rejections(tally: Tally) -> Figure:
    rejected: Mapping[str, int] = tally.rejected
    checks = sorted(
        {name for counted in (rejected, tally.dropped) for name, number in counted.items() if number},
        key=lambda name: (-rejected.get(name, 0), name),
    )
    figure, axes = _bars("answers that failed a check", checks, num_bars=2)
    places = np.arange(len(checks))
    axes.barh(
        places - 0.2, [rejected.get(c, 0) for c in checks], height=0.36, color=COLOURS[1], label="answers rejected"
    )
    axes.barh(
        places + 0.2,
        [tally.dropped.get(c, 0) for c in checks],
        height=0.36,
        color=COLOURS[4],
        label="decisions dropped in the end",
    )
    figure.legend(loc="outside lower right", frameon=False, fontsize=8, labelcolor=INK, ncols=2)
    return figure


def _progress(counts: Counts) -> Figure:
    """Median and the middle 80 % of the progress, and what a steady course would be."""
    figure, axes = _chart("progress over an episode", "share of the episode", "progress")
    parts = [index for index in range(NUM_SHARES) if counts.progress[index].any()]
    levels = [dict(enumerate(counts.progress[index].tolist())) for index in parts]
    low, middle, high = ([quantile(level, share) / (NUM_LEVELS - 1) for level in levels] for share in (0.1, 0.5, 0.9))
    centres = [(index + 0.5) / NUM_SHARES for index in parts]
    axes.plot([0, 1], [0, 1], color=INK, alpha=0.5, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.fill_between(centres, low, high, color=COLOURS[0], alpha=0.25, linewidth=0, label="middle 80 %")
    axes.plot(centres, middle, color=COLOURS[0], linewidth=1.8, marker="." if len(parts) < 3 else "", label="median")
    axes.set(xlim=(0, 1), ylim=(-0.02, 1.02))
    axes.xaxis.set_major_formatter(_PERCENT)
    axes.yaxis.set_major_formatter(_PERCENT)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    return figure


def _chart(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure, axes = new_axes(4.2, 2.5)
    axes.set_title(title, fontsize=9, loc="left", color=INK)
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.set_axisbelow(True)
    return figure, axes


def _bars(title: str, names: Sequence[str], *, num_bars: int) -> tuple[Figure, Axes]:
    """Room for a row of `num_bars` bars a name, the first name on top."""
    figure, axes = new_axes(6.0, 0.9 + (0.16 + 0.1 * num_bars) * len(names), grid="x")
    axes.set_title(title, fontsize=9, loc="left", color=INK)
    axes.set_yticks(range(len(names)), [one_line(name, MAX_LABEL) for name in names], parse_math=False)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=num_bars > 1))
    axes.set_axisbelow(True)
    return figure, axes
