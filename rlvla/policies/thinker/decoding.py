"""How the actions of a chunk come out of the network: like text, or all from one forward (arXiv 2502.19645).

In one forward the network never reads an action token: in the place of each it reads a learned slot of its own, whether
the slots see each other or only those before them. The logits at a position score the token behind it, as ever: those
at `<act>` score the first action, those at the last slot nothing. B rows, L tokens, n actions in a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rlvla.policies.markup import Mode, Span, parse
from rlvla.policies.thinker.settings import Settings
from rlvla.policies.thinker.vocabulary import Vocabulary
from rlvla.types import SegmentKind

if TYPE_CHECKING:
    import torch


PROMPT_BLOCK = 1
"""The number in `block_ids` of the tokens of a prompt that see each other; blocks of actions count on from there."""
_ROWS = {
    "autoregressive": {"at_once": False, "is_mutual": False},
    "parallel": {"at_once": True, "is_mutual": True},
    "parallel_causal": {"at_once": True, "is_mutual": False},
}
"""`action_decoding` -> fields of `Decoding`."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Of one checkpoint, read once from its settings."""

    num_actions: int
    """n = K * A."""
    at_once: bool
    """All actions of a chunk are drawn from one forward, by a request of their own; else they are text."""
    is_mutual: bool
    """Its slots, and the `<act>` before them, see each other."""
    is_prompt_mutual: bool
    """The tokens of a prompt see each other (DeepThinkVLA)."""

    @classmethod
    def read(cls, settings: Settings) -> Decoding:
        """Of a policy's settings."""
        chunk_length, num_dims = settings.codec.chunk_shape
        is_prompt_mutual = settings.prefix_attention == "bidirectional"
        row = _ROWS[settings.action_decoding]
        return cls(num_actions=chunk_length * num_dims, is_prompt_mutual=is_prompt_mutual, **row)

    @property
    def num_slots(self) -> int:
        """That the vocabulary must have."""
        return self.num_actions if self.at_once else 0

    @property
    def is_hybrid(self) -> bool:
        """Whether some tokens see ones behind them."""
        return self.is_mutual or self.is_prompt_mutual

    @property
    def last_mark(self) -> str:
        """The mark that ends the text of a turn: behind an `<act>` of the policy's own the actions are no text."""
        return "<act>" if self.at_once else "</act>"

    @property
    def num_last_tokens(self) -> int:
        """Of the action, in the text of a turn."""
        return 1 if self.at_once else self.num_actions + 2

    def spans(self, symbols: Sequence[str | None], *, is_open: bool, mode: Mode) -> tuple[Span, ...]:
        """The spans of a generation (see `parse`), before which an `<act>` may stand (`is_open`).

        Marks that we put before it, or will behind it, are none of its tokens.
        """
        if self.at_once and symbols[-1] == "<act>":
            return tuple(replace(s, end=min(s.end, len(symbols))) for s in parse((*symbols, "</act>")))
        if is_open:
            return tuple(replace(s, start=max(s.start - 1, 0), end=s.end - 1) for s in parse(("<act>", *symbols)))
        if not mode.acts_on_thought or symbols[-1] != "</think>":
            return parse(symbols)
        spans = parse((*symbols, "<act>", "</act>"))
        return tuple(replace(s, end=min(s.end, len(symbols))) for s in spans if s.kind is not SegmentKind.ACT)

    def inputs(
        self,
        vocabulary: Vocabulary,
        input_ids: torch.Tensor,
        is_act: torch.Tensor | None,
        num_prefix_tokens: torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:
        """What `scoring.token_logprobs` needs beside an autoregressive policy's inputs; the model sees none of it.

        With slots: `is_slot` [B, L] bool, True on action tokens; `action_ids` [bins]; `slot_ids` [n]. Of a hybrid
        policy: `block_ids` [B, L]. Arguments are those of `PolicyProcessor.forward_inputs`.

        Raises:
            ValueError: what is needed is missing, or a token of an ACT segment is neither `<act>` nor an action.
        """
        inputs: dict[str, torch.Tensor] = {}
        if self.at_once:
            if is_act is None:
                raise ValueError("this policy decodes actions in parallel: its forward inputs need is_act")
            action_ids = input_ids.new_tensor(vocabulary.action_ids)
            is_action = is_act & (input_ids != vocabulary.mark_ids["<act>"])
            if not (input_ids[is_action][:, None] == action_ids).any(1).all():
                raise ValueError(
                    "an ACT segment of a policy that decodes actions in parallel holds a token that is no action"
                )
            slot_ids = input_ids.new_tensor(vocabulary.slot_ids)
            inputs = {"is_slot": is_action, "action_ids": action_ids, "slot_ids": slot_ids}
        if self.is_mutual:
            inputs["block_ids"] = block_ids(inputs["is_slot"])
        if self.is_prompt_mutual:
            if num_prefix_tokens is None:
                raise ValueError("the prompts of this policy see themselves: its forward inputs need num_prefix_tokens")
            columns = input_ids.new_ones(input_ids.shape).cumsum(1)  # from 1
            others = inputs.get("block_ids", input_ids.new_zeros(input_ids.shape))
            inputs["block_ids"] = others.masked_fill(columns <= num_prefix_tokens[:, None], PROMPT_BLOCK)
        return inputs


def block_ids(is_slot: torch.Tensor) -> torch.Tensor:
    """Which tokens see each other where chunks are bidirectional, [B, L] int64, from `is_slot` of `Decoding.inputs`.

    0 where attention is causal, equal numbers above `PROMPT_BLOCK` on an `<act>` and the actions behind it.
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
