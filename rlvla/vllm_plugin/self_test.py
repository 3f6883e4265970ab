"""Ask a running engine whether its action blocks are bidirectional, with its own weights, before it serves anyone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from rlvla.vllm_plugin.request import ActionBlock, encode_ids, take_actions
from rlvla.vllm_plugin.step import ActionBlockError

MARGIN = 10
"""What another token changes must be so many times what the same request changes when it is asked again."""


def check_bidirectional(engine: Any, *, avoid: Collection[int]) -> None:
    """Ask for actions with one token of the prompt replaced, and compare the log-probability of the first action.

    It stands at `<act>`, hence hears of the last slot only where the block is bidirectional. Prefix and block are each
    longer than a cache block, so that a block that came out of the prefix cache would be noticed too.

    Args:
        engine: vLLM's `LLMEngine`, nothing in flight; its prefix cache is emptied.
        avoid: token ids that stand for pixels.

    Raises:
        ActionBlockError: the last slot or the prefix makes no difference at `<act>`.
    """
    model, cache = engine.model_config, engine.vllm_config.cache_config
    words = [id_ for id_ in range(min(model.get_vocab_size(), 1000)) if id_ not in avoid][-64:]
    half = min(cache.block_size + 8, model.max_model_len // 2 - 1)
    prompt = [words[i % 32] for i in range(2 * half)]
    last_slot, prefix = list(prompt), list(prompt)
    last_slot[-1], prefix[half // 2] = words[-1], words[-2]

    _first_logprob(engine, prompt, half, words)  # fills the prefix cache, so that the next two compute alike
    base = _first_logprob(engine, prompt, half, words)
    noise = abs(_first_logprob(engine, prompt, half, words) - base)
    for what, changed in (("the last slot", last_slot), ("a token of the prefix", prefix)):
        change = abs(_first_logprob(engine, changed, half, words) - base)
        if not change > MARGIN * noise:
            raise ActionBlockError(
                f"{what} changes the logits at <act> by {change:.1e} nats, asking again by {noise:.1e}: the block does "
                "not see it. Choose another attention backend, or the transformers sampler"
            )
    engine.reset_prefix_cache()


def _first_logprob(engine: Any, prompt: Sequence[int], num_actions: int, words: Sequence[int]) -> float:
    """Greedy log-probability of the first action, nats; every word is an action."""
    block = ActionBlock(
        key="self-test", num_actions=num_actions - 1, action_ids=encode_ids(tuple(words)), temperature=0.0, seed=0
    )
    (rendered,) = engine.renderer.render_cmpl([{"prompt_token_ids": list(prompt)}])
    engine.add_request("self-test", rendered, block.sampling_params())
    while engine.has_unfinished_requests():
        engine.step()
    ((_, logprobs),) = take_actions(engine, ["self-test"])
    return float(logprobs[0])
