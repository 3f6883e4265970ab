"""Slots: what a policy that decodes a chunk's action tokens in parallel reads in their place (arXiv 2502.19645).

The network never reads an action token: in the place of each it reads a learned slot of its own, so that all of a
chunk's actions come out of one forward, whether the slots see each other or only those before them. The logits at a
position score the token behind it, as ever: those at `<act>` score the first action, those at the last slot nothing.
B rows, L tokens, n actions in a chunk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlvla.policies.thinker.markup import Vocabulary, slot_tokens

if TYPE_CHECKING:
    import torch


PROMPT_BLOCK = 1
"""The number in `block_ids` of the tokens of a prompt that see each other; blocks of actions count on from there."""


def add_slots(model: Any, hf_processor: Any, num_actions: int) -> None:
    """Add the slots that a policy lacks; their embeddings start at zero, which is all that OpenVLA-OFT reads.

    Args:
        model: Hugging Face VLM; changed in place. Untied output rows of slots are never used.
        hf_processor: its processor; the tokenizer is changed in place.
        num_actions: n.
    """
    tokenizer = hf_processor.tokenizer
    missing = [token for token in slot_tokens(num_actions) if token not in tokenizer.get_vocab()]
    if not missing:
        return
    tokenizer.add_tokens(missing, special_tokens=True)
    # Many checkpoints have more rows than tokens already; never shrink them.
    rows = max(len(tokenizer), model.get_input_embeddings().num_embeddings)
    model.resize_token_embeddings(rows, mean_resizing=False)
    model.get_input_embeddings().weight.data[tokenizer.convert_tokens_to_ids(missing)] = 0.0


def parallel_inputs(
    vocabulary: Vocabulary, input_ids: torch.Tensor, is_act: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """What `policy.token_logprobs` needs beside an autoregressive policy's inputs; the model sees none of it.

    Args:
        vocabulary: with slots.
        input_ids: [B, L], real action tokens in it.
        is_act: [B, L] bool, True on ACT segments, which hold action tokens and, unless it was injected, the `<act>`.

    Returns:
        `is_slot` [B, L] bool, True on action tokens; `action_ids` [bins]; `slot_ids` [n].

    Raises:
        ValueError: `is_act` is missing, or a token in it is neither `<act>` nor an action.
    """
    if is_act is None:
        raise ValueError("this policy decodes actions in parallel: its forward inputs need is_act")
    action_ids = input_ids.new_tensor(vocabulary.action_ids)
    is_action = is_act & (input_ids != vocabulary.mark_ids["<act>"])
    if not (input_ids[is_action][:, None] == action_ids).any(1).all():
        raise ValueError("an ACT segment of a policy that decodes actions in parallel holds a token that is no action")
    return {"is_slot": is_action, "action_ids": action_ids, "slot_ids": input_ids.new_tensor(vocabulary.slot_ids)}


def block_ids(is_slot: torch.Tensor) -> torch.Tensor:
    """Which tokens see each other where chunks are bidirectional.

    Args:
        is_slot: [B, L] bool, see `parallel_inputs`.

    Returns:
        [B, L] int64, 0 where attention is causal, equal numbers above `PROMPT_BLOCK` where it is mutual: on an `<act>`
        and the actions behind it.
    """
    is_block = is_slot.clone()
    is_block[:, :-1] |= is_slot[:, 1:]  # the `<act>` before them, in an ACT segment or, injected, in a PROMPT one
    is_first = is_block.clone()
    is_first[:, 1:] &= ~is_block[:, :-1]
    return (is_first.long().cumsum(1) + PROMPT_BLOCK) * is_block


def feed_slots(input_ids: torch.Tensor, is_slot: torch.Tensor, slot_ids: torch.Tensor) -> torch.Tensor:
    """`input_ids` [B, L] with the i-th of `slot_ids` [n] in the place of the i-th action token of each chunk."""
    count = is_slot.long().cumsum(1)
    before = count.masked_fill(is_slot, 0).cummax(1).values
    return input_ids.where(~is_slot, slot_ids[(count - before - 1).clamp(min=0)])
