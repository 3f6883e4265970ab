"""The data card's charts, as SVG files: each drawn only where there is something to show."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from rlvla.annotation.card_columns import flat, progress
from rlvla.report.svg_chart import COLOURS, INK, LEGEND, PERCENT, new_axes, to_svg

MAX_BARS, MAX_CAMERAS = 40, 4
"""Of the histogram of words, and maps of boxes."""
NUM_CELLS = 40
"""Cells along a side of the map of boxes, 25 thousandths of the frame each."""
NUM_PARTS = 20
"""Of an episode, in which progress is drawn."""
_PAPER, _INK = "#ffffff", "#1c2126"
"""A picture in a README does not know whether the page around it is dark, so it brings its own ground."""
_SIZE = 4.2, 2.5


def write_plots(folder: Path, table: pd.DataFrame) -> dict[str, str]:
    """Write the charts of `read_columns` into `card/` below the folder; returns title -> path below the folder."""
    charts = {}
    for name, title, figure in _figures(table):
        figure.set_facecolor(_PAPER)
        figure.suptitle(title, fontsize=9, x=0.02, ha="left", color=INK)
        charts[title] = f"card/{name}.svg"
        (folder / "card").mkdir(exist_ok=True)
        (folder / charts[title]).write_text(to_svg(figure, salt=name, label=title, ink=_INK), encoding="utf-8")
    return charts


def _figures(table: pd.DataFrame) -> Iterator[tuple[str, str, Figure]]:
    """(name of the file, title, figure)."""
    shares, told = progress(table)
    yield "words", "words per thought", _words(table)
    if len(told):
        yield "progress", "progress over an episode", _progress(shares, told)
    if len(boxes := flat(table["boxes"])):
        yield "box_area", "area of a box", _areas(boxes)
        yield "boxes", "where boxes lie", _maps(boxes, flat(table["box_images"]))


def _words(table: pd.DataFrame) -> Figure:
    """Shares of thoughts by their length; the last bar holds all that are longer."""
    figure, axes = new_axes(*_SIZE, x="words", y="share of thoughts")
    longest = int(np.quantile(flat(table["num_words"]), 0.995, method="inverted_cdf"))
    step = -(-(longest + 1) // MAX_BARS)
    edges = [edge - 0.5 for edge in range(0, longest + 1 + step, step)]
    for name, is_key, colour in (("key frames", True, COLOURS[1]), ("other decisions", False, COLOURS[0])):
        if len(words := flat(table["num_words"][table["is_key_frame"] == is_key])):
            look = {"histtype": "stepfilled", "facecolor": (colour, 0.3), "edgecolor": colour, "linewidth": 1.4}
            axes.hist(
                np.minimum(words, longest), edges, weights=np.full(len(words), 1 / len(words)), label=name, **look
            )
    axes.yaxis.set_major_formatter(PERCENT)
    axes.legend(**LEGEND)
    return figure


def _progress(shares: np.ndarray, told: np.ndarray) -> Figure:
    """Median and the middle 80 % of the progress, and what a steady course would be."""
    figure, axes = new_axes(*_SIZE, x="share of the episode", y="progress")
    part = np.minimum((shares * NUM_PARTS).astype(int), NUM_PARTS - 1)
    parts = np.unique(part)
    low, middle, high = np.array([np.quantile(told[part == p], (0.1, 0.5, 0.9)) for p in parts]).T
    centres = (parts + 0.5) / NUM_PARTS
    axes.plot([0, 1], [0, 1], color=INK, alpha=0.5, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.fill_between(centres, low, high, color=COLOURS[0], alpha=0.25, linewidth=0, label="middle 80 %")
    axes.plot(centres, middle, color=COLOURS[0], linewidth=1.8, marker="." if len(parts) < 3 else "", label="median")
    axes.set(xlim=(0, 1), ylim=(-0.02, 1.02))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PERCENT)
    axes.legend(**LEGEND)
    return figure


def _areas(boxes: np.ndarray) -> Figure:
    figure, axes = new_axes(*_SIZE, x="share of the frame", y="boxes")
    areas = np.clip((boxes[:, 2:] - boxes[:, :2]).prod(axis=1) / 1e6, 1e-4, 1)
    axes.hist(areas, np.logspace(-4, 0, 41).tolist(), color=COLOURS[0], histtype="stepfilled")
    axes.set(xscale="log", xlim=(areas.min() / 2, min(2 * areas.max(), 1)))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(PERCENT)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    return figure


def coverage(boxes: np.ndarray) -> np.ndarray:
    """[NUM_CELLS, NUM_CELLS] how many of the boxes [n, 4] touch a cell, rows downwards."""
    cells = np.zeros((NUM_CELLS, NUM_CELLS), int)
    for x1, y1, x2, y2 in boxes * NUM_CELLS:
        cells[y1 // 1000 : -(-y2 // 1000), x1 // 1000 : -(-x2 // 1000)] += 1  # -(-a // b) rounds up
    return cells


def _maps(boxes: np.ndarray, camera_of: np.ndarray) -> Figure:
    """A map per camera: the share of its looks whose box touches a cell."""
    cameras = np.unique(camera_of)[:MAX_CAMERAS]
    figure, _ = new_axes(2.9 * len(cameras), 2.5, grid="", num_columns=len(cameras))
    for axes, camera in zip(figure.axes.copy(), cameras, strict=True):
        shares = coverage(boxes[camera_of == camera]) / np.count_nonzero(camera_of == camera)
        image = axes.imshow(shares, extent=(0, 1000, 1000, 0), cmap="Blues", vmin=0, interpolation="nearest")
        axes.set_xlabel(f"camera {camera}" if len(cameras) > 1 else "", color=INK)
        axes.spines[:].set(visible=True, color=INK)
        axes.set(xticks=[0, 500, 1000], yticks=[0, 500, 1000])
        bar = figure.colorbar(image, ax=axes, shrink=0.85, format=PERCENT)
        bar.ax.tick_params(colors=INK, labelsize=8)
        bar.outline.set(edgecolor=INK, linewidth=0.6)  # type: ignore[operator]
    return figure
