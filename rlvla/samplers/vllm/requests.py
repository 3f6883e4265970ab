"""Requests as vLLM's engine takes them: all that is made of one before the engine has to see it.

What the prompts of two requests have in common is worked out once. vLLM hashes, resizes and expands the images of every
request anew, which for a small model takes as long as ten tokens do. Members of a group start from the same images, and
the actions of a turn are asked for right behind its text.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from rlvla.policies.family import EngineNeeds
from rlvla.protocols import BAN_BIAS, SampleRequest
from rlvla.samplers.vllm.plugin.request import ActionBlock

KEPT_PROMPTS = 2
"""Prompts whose images are kept ready, for each sequence that the engine batches."""


class RequestMaker:
    """For one engine, and in one thread, which need not be the engine's: its prompts are kept in a plain dict."""

    def __init__(self, engine: Any, needs: EngineNeeds) -> None:
        self._image_token_id = engine.model_config.hf_config.image_token_id
        self._slot_ids: Sequence[int] = needs.slot_ids
        capacity = KEPT_PROMPTS * engine.vllm_config.scheduler_config.max_num_seqs
        self._prompts = PromptRenderer(engine, self._image_token_id, capacity, needs.slot_ids)
        self._never_ids = needs.never_ids
        self._ids = itertools.count()

    def make(self, request: SampleRequest) -> tuple[str, dict[str, Any], Any]:
        """Prepare its pictures, or find them: the first three arguments of `LLMEngine.add_request`.

        Raises:
            ValueError: it cannot be served; the message says why.
        """
        num_placeholders, num_slots = request.prompt_ids.count(self._image_token_id), len(self._slot_ids)
        if num_placeholders != len(request.images):  # vLLM would take a surplus placeholder for a word
            raise ValueError(f"the context has {num_placeholders} image placeholders for {len(request.images)} images")
        if request.num_actions not in (0, num_slots):
            raise ValueError(
                f"the request is for {request.num_actions} actions, this policy draws {num_slots} from one forward"
            )
        id_ = str(next(self._ids))
        try:
            return id_, self._prompts.render(request), self._parameters(request, id_)
        except Exception as error:  # whatever vLLM raises of a request concerns its caller alone
            raise refusal(error) from error

    def _parameters(self, request: SampleRequest, request_id: str) -> Any:
        if request.num_actions:
            return ActionBlock(
                key=request_id,
                num_actions=request.num_actions,
                temperature=request.temperature,
                seed=request.seed,
            ).sampling_params()
        return text_parameters(request, self._never_ids)


def text_parameters(request: SampleRequest, never_ids: Iterable[int]) -> Any:
    """The `SamplingParams` of a request that is not for a block of actions; `never_ids` as in `EngineNeeds`."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=request.temperature,
        seed=request.seed,
        max_tokens=request.max_tokens,
        stop_token_ids=list(request.stop_ids),
        logit_bias=dict.fromkeys((*never_ids, *request.banned_ids), BAN_BIAS),
        ignore_eos=True,
        logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        skip_clone=True,
    )


def refusal(error: Exception) -> ValueError:
    """What a caller is told when vLLM does not take a request."""
    return ValueError(f"vLLM refuses the request: {error}")


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
