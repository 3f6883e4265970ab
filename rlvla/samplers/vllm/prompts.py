"""Prompts as vLLM's engine takes them; what two requests have in common is worked out once.

vLLM hashes, resizes and expands the images of every request anew, which for a small model takes as long as ten tokens
do. Members of a group start from the same images, and the actions of a turn are asked for right behind its text.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from rlvla.protocols import SampleRequest


class PromptRenderer:
    """What vLLM's renderer makes of a prompt up to its last image is kept; all behind it is text, token for token.

    The `capacity` prompts asked for last are kept. `slot_ids` are put behind a prompt whose actions are drawn.
    """

    def __init__(self, engine: Any, placeholder_id: int, capacity: int, slot_ids: Sequence[int] = ()) -> None:
        self._slot_ids = slot_ids
        self._renderer = engine.renderer
        self._placeholder_id = placeholder_id
        self._capacity = capacity
        self._kept: OrderedDict[tuple[Any, ...], dict[str, Any]] = OrderedDict()

    def render(self, request: SampleRequest) -> dict[str, Any]:
        """The prompt, slots included, as `LLMEngine.add_request` takes it; raises what vLLM raises on bad input."""
        token_ids = (*request.prompt_ids, *self._slot_ids[: request.num_actions])
        if not request.images:
            return {"type": "token", "prompt_token_ids": list(token_ids), "arrival_time": time.time()}
        cut = len(token_ids) - token_ids[::-1].index(self._placeholder_id)
        head = self._head(token_ids[:cut], request.images)
        ids = [*head["prompt_token_ids"], *token_ids[cut:]]
        return {**head, "prompt_token_ids": ids, "arrival_time": time.time()}

    def _head(self, token_ids: tuple[int, ...], images: tuple[np.ndarray, ...]) -> dict[str, Any]:
        names = tuple(_digest(image) for image in images)
        key = (token_ids, names)
        if key not in self._kept:
            self._kept[key] = self._render(token_ids, names, images)
        self._kept.move_to_end(key)
        if len(self._kept) > self._capacity:
            self._kept.popitem(last=False)
        return self._kept[key]

    def _render(
        self, token_ids: tuple[int, ...], names: tuple[str, ...], images: tuple[np.ndarray, ...]
    ) -> dict[str, Any]:
        prompt = {
            "prompt_token_ids": list(token_ids),
            "multi_modal_data": {"image": [Image.fromarray(image) for image in images]},
            "multi_modal_uuids": {"image": list(names)},
        }
        # With vLLM's other cache, a mirror of the engine's, pixels are left out that the engine should have; what is
        # kept here would not follow when the engine forgets them.
        (rendered,) = self._renderer.render_cmpl([prompt], skip_mm_cache=True)
        return rendered


def _digest(image: np.ndarray) -> str:
    """A name for the pixels: the same for the same image, another for any other."""
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    digest.update(image.tobytes())
    return digest.hexdigest()
