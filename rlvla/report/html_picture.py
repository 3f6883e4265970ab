"""A frame on a page of `rlvla.report.html_page`, with numbered boxes over it: how we show where somebody looked."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from rlvla.report.html_page import tag, text
from rlvla.types import Box

BOX_COLOURS = ("#ffd60a", "#4cc9f0", "#ff70a6", "#80ed99")
"""Of the first, second, ... look of a decision: its box on the view and the border of its crop."""


def box_colour(index: int) -> str:
    """Of the look with this index."""
    return BOX_COLOURS[index % len(BOX_COLOURS)]


def picture(
    image: np.ndarray, caption: str, *, boxes: Sequence[tuple[int, Box]] = (), colour: str = "var(--line)"
) -> str:
    """An image as a figure, with numbered boxes drawn over it.

    Args:
        image: [H, W, 3] uint8 RGB.
        caption: in words.
        boxes: (index of the look, its box).
        colour: of the border, in CSS.
    """
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    drawn = "".join(_box(index, box, width=image.shape[1] / image.shape[0]) for index, box in boxes)
    overlay = f'<svg viewBox="0 0 {image.shape[1] / image.shape[0]:.4f} 1">{drawn}</svg>' if drawn else ""
    frame = (
        f'<div class="frame" style="border-color:{colour}"><img src="{source}" alt="{text(caption)}">{overlay}</div>'
    )
    return tag("figure", frame + tag("figcaption", text(caption)), class_="picture")


def _box(index: int, box: Box, *, width: float) -> str:
    """A box in a frame of height 1, its number on a flag above it, or below where there is no room.

    Flags are left and right in turn, so that two looks at the same place both show theirs.
    """
    x1, x2 = (width * v / 1000 for v in (box[0], box[2]))
    y1, y2 = box[1] / 1000, box[3] / 1000
    flag = 0.11
    top = y1 - flag if y1 >= flag else min(y2, 1 - flag)
    left = max(x2 - flag, 0) if index % 2 else min(x1, width - flag)
    place = f'x="{x1:.4f}" y="{y1:.4f}" width="{x2 - x1:.4f}" height="{y2 - y1:.4f}"'
    return (
        f'<rect class="shade" {place}/><rect class="box" {place} stroke="{box_colour(index)}"/>'
        f'<rect x="{left:.4f}" y="{top:.4f}" width="{flag}" height="{flag}" fill="{box_colour(index)}"/>'
        f'<text transform="translate({left + flag / 2:.4f} {top + 0.088:.4f}) scale(.095)" '
        f'text-anchor="middle">{index + 1}</text>'
    )
