"""Hybrid attention: causal, but for blocks of tokens that see each other (DeepThinkVLA; VLA-Thinker, arXiv 2603.14523).

Text is causal; an `<act>` and the slots behind it are one block, which sees all that comes before it and, in both
directions, itself (OpenVLA-OFT, arXiv 2502.19645). With `prefix_attention: bidirectional` so is the prompt of a turn
(DeepThinkVLA). B rows, L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers.masking_utils import create_causal_mask

from rlvla.policies.thinker.decoding import PROMPT_BLOCK, feed_slots
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.policies.weights import base_model

ATTENTION = ("sdpa", "eager", "flex_attention")
"""transformers' `attn_implementation`s that take such a mask. Flash attention would drop it without a word."""
_OURS = ("block_ids", "is_slot", "action_ids", "slot_ids")
"""Inputs that the model does not know."""


class HybridAttentionError(RuntimeError):
    """A model does not attend as it was told to."""


def hybrid_mask(model: Any, block_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
    """The mask as the model's attention takes it, built by transformers.

    For sdpa [B, 1, L, L] bool, True where a token (third axis) sees another (fourth); for eager the same to be added to
    the scores, 0 or the least number; for flex_attention a BlockMask. Of `block_ids` [B, L] 0 is causal, equal numbers
    in a row are tokens that see each other, besides all before them; `attention_mask` [B, L] is 0 on padding.

    Raises:
        ValueError: another attention, which would ignore the mask; the message says where it is chosen.
    """
    bare = base_model(model)
    config = bare.config.get_text_config()
    if config._attn_implementation not in ATTENTION:
        raise ValueError(
            f"attn_implementation is {config._attn_implementation!r}, which knows no mask for action_decoding: "
            "parallel or prefix_attention: bidirectional; leave it out of the checkpoint's config.json, for sdpa, or "
            f"put one of {', '.join(ATTENTION)} there"
        )
    # Only the shape, device and type of the embeddings are looked at; the library's own number for "causal" is -1.
    like = torch.empty(*block_ids.shape, 0, dtype=bare.dtype, device=block_ids.device)
    return create_causal_mask(config, like, attention_mask, None, block_sequence_ids=block_ids.long() - 1)


def model_inputs(model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What the model's forward takes, out of what `PolicyProcessor.forward_inputs` gives, and the pixels.

    `input_ids` with slots in the place of actions, and where tokens see ones behind them the mask of `hybrid_mask` as
    `attention_mask`; then also, for models that lay positions out by the padding, which that mask no longer tells,
    `position_ids`.
    """
    padding = inputs["attention_mask"]
    fed = {name: tensor for name, tensor in inputs.items() if name not in _OURS}
    if "slot_ids" in inputs:
        fed["input_ids"] = feed_slots(inputs["input_ids"], inputs["is_slot"], inputs["slot_ids"])
    if "block_ids" not in inputs:
        return fed
    core: Any = getattr(base_model(model), "model", None)
    if "image_grid_thw" in fed:  # of a backbone with `has_grid_positions`; without images positions are 0, 1 ...
        fed["position_ids"], _ = core.get_rope_index(
            fed["input_ids"],
            mm_token_type_ids=fed["mm_token_type_ids"],
            image_grid_thw=fed["image_grid_thw"],
            attention_mask=padding,
        )
    return fed | {"attention_mask": hybrid_mask(model, inputs["block_ids"], padding)}


@torch.no_grad()
def check_hybrid(model: Any, processor: PolicyProcessor) -> None:
    """Try out whether the model attends as `hybrid_mask` says; to be called on a hybrid policy before it learns.

    Peers that patch their library's attention lose half of their success where the patch silently does not act.
    Another last token of a block, the prompt or the actions, must move the logits at those before it in the block, but
    nothing before the block; another token behind a block must move nothing in or before it. Every rank must call.

    Raises:
        HybridAttentionError: it does not; the message says what failed, and by how much.
        ValueError: see `hybrid_mask`.
    """
    fed, block_ids = _specimen(model, processor)
    other_id = processor.vocabulary.action_ids[-1]

    def logits(changed: int | None = None) -> torch.Tensor:
        """[L, vocabulary], with another token in one place."""
        tokens = fed["input_ids"].clone()
        if changed is not None:
            tokens[:, changed] = other_id
        return model(**{**fed, "input_ids": tokens}, use_cache=False).logits[0].float()

    was_training = model.training
    model.eval()
    usual = logits()
    blocks = [(block_ids == number).nonzero()[:, 0].tolist() for number in block_ids.unique().tolist() if number]
    moved = [((logits(block[-1]) - usual).abs(), (logits(block[-1] + 1) - usual).abs()) for block in blocks]
    model.train(was_training)
    name, most = type(base_model(model)).__name__, float(usual.abs().max())
    tiny = torch.finfo(base_model(model).dtype).eps
    for block, (by_last, by_next) in zip(blocks, moved, strict=True):
        leak = float(torch.cat([by_last[: block[0]], by_next[: block[-1] + 1]]).max())
        if leak > 4 * tiny * most:
            raise HybridAttentionError(f"{name}: tokens see what comes behind them (logits move by {leak:.2g})")
        seen = float(by_last[block[0] : block[-1]].max())  # at the first alone a sink of attention might drown it
        if not seen > 10 * leak:
            which = "prompt" if block_ids[block[0]] == PROMPT_BLOCK else "block of actions"
            raise HybridAttentionError(
                f"{name}: the {which} is not bidirectional: its logits move by {seen:.2g} with its last token; this "
                "model's attention ignores the mask it is given"
            )


def _specimen(model: Any, processor: PolicyProcessor) -> tuple[dict[str, Any], torch.Tensor]:
    """The forward inputs of a row of prompt, thought and actions, and its `block_ids` [L]."""
    vocabulary, marks = processor.vocabulary, processor.vocabulary.mark_ids
    prompt = vocabulary.encode("a b a b")
    text = [*prompt, marks["<think>"], *vocabulary.encode("a b"), marks["</think>"], marks["<act>"]]
    actions = [vocabulary.action_ids[0]] * processor.decoding.num_actions
    ids = torch.tensor([[*text, *actions, marks["</act>"]]], device=base_model(model).device)
    is_act = torch.zeros_like(ids, dtype=torch.bool)
    is_act[:, len(text) : len(text) + len(actions)] = True
    num_prefix_tokens = ids.new_tensor([len(prompt)])
    inputs = processor.forward_inputs(ids, torch.ones_like(ids), is_act, num_prefix_tokens)
    return model_inputs(model, inputs), inputs["block_ids"][0]
