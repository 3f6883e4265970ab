"""Renders the templates of this room; words of a run or a model cannot become HTML or Markdown."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from rlvla.pictures import to_png
from rlvla.report import markdown
from rlvla.report.decision import look_colour


def render(template: str, **values: Any) -> str:
    """The text that a file of `templates/` makes of these values; those of `.html` escape all of them."""
    return _ENVIRONMENT.get_template(template).render(values)


def data_url(content: bytes, kind: str) -> str:
    """An image as an address that loads nothing."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _png_url(image: np.ndarray) -> str:
    return data_url(to_png(image), "png")


_ENVIRONMENT = Environment(
    loader=PackageLoader("rlvla.report"),
    autoescape=select_autoescape(["html"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_ENVIRONMENT.filters |= {
    "png_url": _png_url,
    "data_url": data_url,
    "plain": markdown.plain,
    "code": markdown.code,
    "fenced": markdown.fenced,
    "percent": markdown.percent,
    "look_colour": look_colour,
    "comma": "{:,}".format,
}
