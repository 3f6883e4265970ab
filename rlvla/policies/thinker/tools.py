"""Tools the policy may call. A tool is a function (Observation, arguments) -> image or refusal text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rlvla.plugins import Plugin, load
from rlvla.policies.markup import ToolCall, parse_box, parse_call
from rlvla.types import Box, Observation

PICTURE = "a uint8 array [H, W, 3], RGB (of a PIL image: np.array(image.convert('RGB')))"


def zoom_in(observation: Observation, arguments: Mapping[str, Any]) -> np.ndarray | str:
    """Look at a box of one camera's frame at native resolution: [H, W, 3] uint8, or what is wrong with the arguments.

    These are `{"image": camera index, "bbox": [x1, y1, x2, y2]}`, integers 0..1000.
    """
    image, box = arguments.get("image"), parse_box(arguments.get("bbox"))
    if isinstance(box, str):
        return box
    if type(image) is not int or not 0 <= image < len(observation.images):
        return f"error: image must be 0..{len(observation.images) - 1}"
    return observation.zoom(image, box)


def load_tools(names: Mapping[str, str]) -> dict[str, Plugin]:
    """Resolve `{name in the markup: "module:function"}`; raises PluginError naming the entry."""
    return {name: load(f"episode.tools.{name}", spec, ("observation", "arguments")) for name, spec in names.items()}


def call_tool(tools: Mapping[str, Plugin], observation: Observation, text: str) -> tuple[np.ndarray | str, Box | None]:
    """Run the call in `text` (the JSON between the tool marks).

    Returns:
        The image, or the refusal text the policy gets to read; and the box of an accepted zoom.

    Raises:
        PluginError: the tool raised, or returned neither a picture nor a text; the message names it.
    """
    call = parse_call(text)
    if not isinstance(call, ToolCall):
        return call, None
    if call.name not in tools:
        return f"error: there is no tool named {call.name[:40]}", None
    tool = tools[call.name]
    result = tool(observation, call.arguments)
    box = parse_box(call.arguments.get("bbox"))
    if isinstance(result, str):
        try:
            result.encode()
        except UnicodeEncodeError:
            expected = "a text that UTF-8 can encode, this one holds half a surrogate pair"
            raise tool.wrong(result, expected) from None
        return result, None
    if not is_picture(result):
        raise tool.wrong(result, f"{PICTURE}, or a text")
    return result, None if isinstance(box, str) else box


def is_picture(value: Any) -> bool:
    """Whether this is a `PICTURE`."""
    is_array = isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3
    return is_array and value.shape[2] == 3 and value.size > 0
