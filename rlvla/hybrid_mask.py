"""Hybrid attention: causal, but for blocks of tokens that see each other (DeepThinkVLA; VLA-Thinker, arXiv 2603.14523).

Text is causal; an `<act>` and the slots behind it are one block, which sees all that comes before it and, in both
directions, itself (OpenVLA-OFT, arXiv 2502.19645). B rows, L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers.masking_utils import create_causal_mask

from rlvla.action_slots import feed_slots
from rlvla.prompt import PolicyProcessor

ATTENTION = ("sdpa", "eager", "flex_attention")
"""transformers' `attn_implementation`s that take such a mask. Flash attention would drop it without a word."""
_OURS = ("block_ids", "action_ids", "slot_ids")
"""Inputs that the model does not know."""


class HybridAttentionError(RuntimeError):
    """A model does not attend as it was told to."""


def base_model(model: Any) -> Any:
    """The Hugging Face model inside the wrappers of DeepSpeed, DDP and peft."""
    bare = model.module if hasattr(model, "module") else model
    return bare.get_base_model() if hasattr(bare, "get_base_model") else bare


def hybrid_mask(model: Any, block_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
    """The mask as the model's attention takes it, built by transformers.

    Args:
        model: Hugging Face VLM, possibly wrapped.
        block_ids: [B, L] int; 0: causal; equal numbers in a row: tokens that see each other, besides all before them.
        attention_mask: [B, L], 0 on padding, which nothing sees.

    Returns:
        sdpa: [B, 1, L, L] bool, True where a token (third axis) sees another (fourth); eager: the same to be added to
        the scores, 0 or the least number; flex_attention: a BlockMask.

    Raises:
        ValueError: another attention, which would ignore the mask; the message names the key that chooses it.
    """
    bare = base_model(model)
    config = bare.config.get_text_config()
    if config._attn_implementation not in ATTENTION:
        raise ValueError(
            f"attn_implementation is {config._attn_implementation!r}, which knows no mask for action_decoding: "
            f"parallel; load the model with attn_implementation {', '.join(ATTENTION)}"
        )
    # Only the shape, device and type of the embeddings are looked at; the library's own number for "causal" is -1.
    like = torch.empty(*block_ids.shape, 0, dtype=bare.dtype, device=block_ids.device)
    return create_causal_mask(config, like, attention_mask, None, block_sequence_ids=block_ids.long() - 1)


def hybrid_inputs(model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What the model's forward takes, out of what a parallel policy's `PolicyProcessor.forward_inputs` gives.

    Args:
        model: Hugging Face VLM, possibly wrapped.
        inputs: with `input_ids`, `attention_mask` and `block_ids` [B, L], `slot_ids` [n], and the pixels.

    Returns:
        `input_ids` with slots in the place of actions, the mask of `hybrid_mask` as `attention_mask`, and for models
        that lay positions out by the padding [B, L], which that mask no longer tells, `position_ids`.
    """
    block_ids, padding = inputs["block_ids"], inputs["attention_mask"]
    fed = {name: tensor for name, tensor in inputs.items() if name not in _OURS}
    fed["input_ids"] = feed_slots(inputs["input_ids"], block_ids, inputs["slot_ids"])
    core: Any = getattr(base_model(model), "model", None)
    if "image_grid_thw" in fed and hasattr(core, "get_rope_index"):  # Qwen-VL; without images positions are 0, 1 ...
        fed["position_ids"], _ = core.get_rope_index(
            fed["input_ids"],
            mm_token_type_ids=fed["mm_token_type_ids"],
            image_grid_thw=fed["image_grid_thw"],
            attention_mask=padding,
        )
    return fed | {"attention_mask": hybrid_mask(model, block_ids, padding)}


@torch.no_grad()
def check_hybrid(model: Any, processor: PolicyProcessor) -> None:
    """Try out whether the model attends as `hybrid_mask` says; to be called on a parallel policy before it learns.

    Peers that patch their library's attention lose half of their success where the patch silently does not act.
    Another last slot must move the first action's logits, but nothing before the block; another token behind the block
    must move nothing in or before it. Every rank must call.

    Args:
        model: of a parallel policy, possibly wrapped, on its device.
        processor: its own.

    Raises:
        HybridAttentionError: it does not; the message says which of the two failed, and by how much.
        ValueError: see `hybrid_mask`.
    """
    vocabulary, marks = processor.vocabulary, processor.vocabulary.mark_ids
    text = [marks["<think>"], *vocabulary.encode("a b"), marks["</think>"], marks["<act>"]]
    num_actions = processor.num_action_tokens
    actions = [vocabulary.action_ids[0]] * num_actions
    ids = torch.tensor([[*text, *actions, marks["</act>"], *vocabulary.encode("c")]], device=base_model(model).device)
    start, end = len(text), len(text) + num_actions
    is_act = torch.zeros_like(ids, dtype=torch.bool)
    is_act[:, start:end] = True
    fed = hybrid_inputs(model, processor.forward_inputs(ids, torch.ones_like(ids), is_act))

    def logits(**changes: int) -> torch.Tensor:
        """[L, vocabulary], with another token in some places."""
        tokens = fed["input_ids"].clone()
        for place in changes.values():
            tokens[:, place] = vocabulary.action_ids[-1]
        return model(**{**fed, "input_ids": tokens}, use_cache=False).logits[0].float()

    was_training = model.training
    model.eval()
    usual, other_slot, other_end = logits(), logits(slot=end - 1), logits(close=end, text=end + 1)
    model.train(was_training)
    seen = float((other_slot - usual)[start - 1].abs().max())
    leaks = [(other_slot - usual)[: start - 1].abs().max(), (other_end - usual)[:end].abs().max()]
    leak = float(torch.stack(leaks).max())
    name = type(base_model(model)).__name__
    if leak > 4 * torch.finfo(base_model(model).dtype).eps * float(usual.abs().max()):
        raise HybridAttentionError(f"{name}: tokens see what comes behind them (logits move by {leak:.2g})")
    if num_actions > 1 and not seen > 10 * leak:
        raise HybridAttentionError(
            f"{name}: the block of actions is not bidirectional: the first action's logits move by {seen:.2g} with the "
            "last slot; this model's attention ignores the mask it is given"
        )
