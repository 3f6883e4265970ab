"""Charts as SVG, drawn by matplotlib: small, quiet, and the same bytes for the same numbers."""

from __future__ import annotations

import html
import io
import re
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

COLOURS = ("#3f7fc4", "#e07b28", "#3f9e57", "#a763b5", "#cf4a55", "#2b9fa3")
"""Readable on white and on near-black."""
INK = "#010203"
"""Stands for the colour of text and axes until the SVG is written."""
LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 8, "labelcolor": INK}
PERCENT = FuncFormatter(lambda share, _: f"{100 * share:g} %")
_STYLE: dict[Any, Any] = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9, "axes.linewidth": 0.6}


def new_axes(
    width: float = 3.7, height: float = 2.1, *, grid: str = "y", num_columns: int = 1, x: str = "", y: str = ""
) -> tuple[Figure, Axes]:
    """An empty chart, or the first of several side by side.

    Args:
        width: inches.
        height: inches.
        grid: the axis whose ticks get grid lines, "x" or "y"; empty: none.
        num_columns: charts in the row; the others are in `figure.axes`.
        x: what the first axis shows, in words.
        y: what the second axis shows, in words.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
        rows = figure.subplots(1, num_columns, squeeze=False)
    for axes in rows[0]:
        axes.set_facecolor("none")
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(INK)
        axes.tick_params(colors=INK, width=0.6, length=3)
        axes.set_xlabel(x, color=INK)
        axes.set_ylabel(y, color=INK)
        axes.set_axisbelow(True)
        if grid:
            axes.grid(axis=grid, color=INK, alpha=0.12, linewidth=0.6)
    return figure, rows[0, 0]


def to_svg(figure: Figure, *, salt: str, label: str, ink: str = "currentColor") -> str:
    """The `<svg>` element, without a background unless the figure has one.

    Args:
        figure: of `new_axes`.
        salt: keeps the ids of the charts on one page apart, and the same from run to run.
        label: what a screen reader says.
        ink: stands in for `INK`; by default the colour of the text around.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg).replace(INK, ink)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" ', 1)
