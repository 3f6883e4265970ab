"""Ask a running engine whether its action blocks are bidirectional, with its own weights, before it serves anyone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlvla.samplers.vllm.plugin.request import ActionBlock, take_actions
from rlvla.samplers.vllm.plugin.step import ActionBlockError

MARGIN = 10
"""What another token changes must be so many times what the same request changes when it is asked again."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the engine says to a prompt whose second half is an action block."""

    first: float
    """Greedy log-probability of the first action, nats; it stands at `<act>`."""
    prefix: np.ndarray
    """[tokens] log-probabilities of the second token of the prefix up to `<act>`, nats, each of which stands at the
    token before; those that stand at tokens out of the prefix cache are left out."""


def check_bidirectional(engine: Any, *, avoid: Collection[int]) -> None:
    """Ask for actions with one token of the prompt replaced, and compare the log-probabilities of action and prefix.

    The first action stands at `<act>`, hence hears of the last slot only where the block is bidirectional. No token of
    the prefix may hear of it, be all of the prefix computed beside the block or the tail that is not in the prefix
    cache. Prefix and block are each longer than a cache block, so that a block that came out of the prefix cache would
    be noticed too.

    Nothing may be in flight; the engine's prefix cache is emptied, and it draws from other ids. `avoid` are token ids
    that stand for pixels, or may be embedded alike.

    Raises:
        ActionBlockError: the last slot or the prefix makes no difference at `<act>`, or the last slot one before it.
    """
    # All words are actions: of its own few bins a policy may be so sure that nothing moves their log-probability.
    model, cache = engine.model_config, engine.vllm_config.cache_config
    words = [id_ for id_ in range(min(model.get_vocab_size(), 1000)) if id_ not in avoid][-64:]
    engine.collective_rpc("draw_from", args=(words,))
    half = min(cache.block_size + 8, model.max_model_len // 2 - 1)
    prompt = [words[i % 32] for i in range(2 * half)]
    last_slot, prefix = list(prompt), list(prompt)
    last_slot[-1], prefix[half // 2] = words[-1], words[-2]

    whole = _ask(engine, prompt, half)  # fills the prefix cache, so that the next two compute alike
    base, again = (_ask(engine, prompt, half) for _ in range(2))
    by_slot, by_prefix = (_ask(engine, changed, half) for changed in (last_slot, prefix))
    engine.reset_prefix_cache()
    whole_by_slot = _ask(engine, last_slot, half)
    engine.reset_prefix_cache()

    noise = abs(again.first - base.first)
    heard = abs(by_slot.first - base.first)
    for what, change in (("the last slot", heard), ("a token of the prefix", abs(by_prefix.first - base.first))):
        if not change > MARGIN * noise:
            raise ActionBlockError(
                f"{what} changes the logits at <act> by {change:.1e} nats, asking again by {noise:.1e}: the block does "
                "not see it. Choose another attention backend, or the transformers sampler"
            )
    leak = max(_distance(whole, whole_by_slot), _distance(base, by_slot))
    if leak > MARGIN * _distance(base, again) and MARGIN * leak > heard:
        raise ActionBlockError(
            f"the last slot changes the logits before <act> by {leak:.1e} nats, at <act> by {heard:.1e}: the prefix "
            "sees the block. Choose another attention backend, or the transformers sampler"
        )


def _distance(one: Answer, other: Answer) -> float:
    """Largest difference of two answers in the prefix, nats."""
    return float(np.abs(one.prefix - other.prefix).max())


def _ask(engine: Any, prompt: Sequence[int], num_block_tokens: int) -> Answer:
    """One action request, words in the place of its slots."""
    num_actions = num_block_tokens - 1
    block = ActionBlock(key="self-test", num_actions=num_actions, temperature=0.0, seed=0)
    params = block.sampling_params()
    params.prompt_logprobs, params.skip_reading_prefix_cache = 0, False
    (rendered,) = engine.renderer.render_cmpl([{"prompt_token_ids": list(prompt)}])
    engine.add_request("self-test", rendered, params)
    outputs: list[Any] = []
    while engine.has_unfinished_requests():
        outputs += engine.step()
    ((_, logprobs),) = take_actions(engine, ["self-test"])
    (output,) = outputs
    first = (output.num_cached_tokens or 0) + 1
    scored = output.prompt_logprobs[first : len(prompt) - num_actions]
    prefix = [next(iter(by_id.values())).logprob for by_id in scored]
    return Answer(first=float(logprobs[0]), prefix=np.array(prefix))
