"""Requests as vLLM's engine takes them: all that is made of one before the engine has to see it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from rlvla.policies.family import EngineNeeds
from rlvla.protocols import BAN_BIAS, SampleRequest
from rlvla.samplers.vllm.plugin.request import ActionBlock
from rlvla.samplers.vllm.prompts import PromptRenderer

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
