"""Tools the policy may call. A tool is a function (Observation, arguments) -> image or refusal text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rlvla.markup import ToolCall, parse_box, parse_call
from rlvla.plugins import PluginError, resolve
from rlvla.protocols import Tool
from rlvla.types import Box, Observation


def zoom_in(observation: Observation, arguments: Mapping[str, Any]) -> np.ndarray | str:
    """Look at a box of one camera's frame at native resolution.

    Args:
        observation: what the policy sees.
        arguments: `{"image": camera index, "bbox": [x1, y1, x2, y2]}`, integers 0..1000.

    Returns:
        [H, W, 3] uint8, or a text that says what is wrong with the arguments.
    """
    image, box = arguments.get("image"), parse_box(arguments.get("bbox"))
    if isinstance(box, str):
        return box
    if type(image) is not int or not 0 <= image < len(observation.images):
        return f"error: image must be 0..{len(observation.images) - 1}"
    return observation.zoom(image, box)


def load_tools(names: Mapping[str, str]) -> dict[str, Tool]:
    """Resolve `{name in the markup: "module:function"}`; raises PluginError naming the entry."""
    tools = {name: resolve(spec) for name, spec in names.items()}
    for name, tool in tools.items():
        if not callable(tool):
            raise PluginError(f"tool {name!r}: {names[name]!r} is not callable")
    return tools


def call_tool(tools: Mapping[str, Tool], observation: Observation, text: str) -> tuple[np.ndarray | str, Box | None]:
    """Run the call in `text` (the JSON between the tool marks).

    Returns:
        The image, or the refusal text the policy gets to read; and the box of an accepted zoom.
    """
    call = parse_call(text)
    if not isinstance(call, ToolCall):
        return call, None
    if call.name not in tools:
        return f"error: there is no tool named {call.name[:40]}", None
    result = tools[call.name](observation, call.arguments)
    box = parse_box(call.arguments.get("bbox"))
    if isinstance(result, str) or isinstance(box, str):
        return result, None
    return result, box
