"""The tokens that a thinker's tokenizer has beside words: the marks, the action bins, the slots and image places."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlvla.policies.markup import MARKS, MODES
from rlvla.policies.models.backbones import Backbone

if TYPE_CHECKING:
    import torch


def action_tokens(num_bins: int) -> list[str]:
    """The token of each bin, in order."""
    return [f"<act_{i}>" for i in range(num_bins)]


def slot_tokens(num_actions: int) -> list[str]:
    """What a policy that decodes actions in parallel reads in the place of each action token of a chunk, in order.

    They are read and never written, hence no marks.
    """
    return [f"<slot_{i}>" for i in range(num_actions)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """How a tokenizer writes the markup: the ids of the marks, of the image placeholder and of the action bins."""

    mark_ids: Mapping[str, int]
    """Mark -> its single token id."""
    action_ids: tuple[int, ...]
    """Bin -> token id."""
    image_ids: tuple[int, ...]
    """The text of one image, placeholder not expanded, e.g. `<|vision_start|><|image_pad|><|vision_end|>`."""
    placeholder_id: int
    """The one id among `image_ids` that stands for the pixels."""
    encode: Callable[[str], list[int]]
    """Text -> ids, no special tokens added."""
    decode: Callable[[Sequence[int]], str]
    """Ids -> text, special tokens kept."""
    slot_ids: tuple[int, ...] = ()
    """Of `slot_tokens`, K * A of them; none where actions are decoded autoregressively."""

    @property
    def own_ids(self) -> tuple[int, ...]:
        """The tokens of the markup, which a model learns here: marks, action bins and slots, in order."""
        return tuple(sorted({*self.mark_ids.values(), *self.action_ids, *self.slot_ids}))

    def banned_ids(self, mode: str) -> tuple[int, ...]:
        """Ids that text cannot hold in a mode (see `EpisodeConfig`): the same ones everywhere in a turn.

        The sampler gives them no probability, so that the learner has to leave them out of its softmax too.
        """
        return (*(self.mark_ids[mark] for mark in MODES[mode].banned), *self.slot_ids)

    def symbols(self, token_ids: Sequence[int]) -> tuple[str | None, ...]:
        """Each token's mark or None, the input of `parse`."""
        marks = {id_: mark for mark, id_ in self.mark_ids.items()}
        return tuple(marks.get(int(id_)) for id_ in token_ids)

    def bins(self, token_ids: Sequence[int]) -> list[int] | None:
        """Action token ids -> bins; None when one of them is not an action token."""
        index = {id_: bin_ for bin_, id_ in enumerate(self.action_ids)}
        bins = [index.get(int(id_)) for id_ in token_ids]
        return None if None in bins else [b for b in bins if b is not None]


def build_vocabulary(
    tokenizer: Any, backbone: Backbone, actions: Sequence[int] | Sequence[str], num_slots: int
) -> Vocabulary:
    """The vocabulary of a Hugging Face tokenizer that knows all of it; `actions` are ids or names of tokens.

    Raises:
        ValueError: a token is missing; the message says what adds it.
    """

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    def decode(ids: Sequence[int]) -> str:
        return tokenizer.decode([int(id_) for id_ in ids], skip_special_tokens=False)

    def single(token: str) -> int:
        ids = encode(token)
        if len(ids) != 1:
            adder = "add_slots" if token in slot_tokens(num_slots) else "extend_vocabulary"
            raise ValueError(f"the tokenizer has no token {token!r}; add it with {__name__}.{adder}")
        return ids[0]

    return Vocabulary(
        mark_ids={mark: single(mark) for mark in MARKS},
        action_ids=tuple(action if isinstance(action, int) else single(action) for action in actions),
        image_ids=tuple(encode(backbone.image_text)),
        placeholder_id=single(backbone.placeholder),
        slot_ids=tuple(single(token) for token in slot_tokens(num_slots)),
        encode=encode,
        decode=decode,
    )


def extend_vocabulary(model: Any, hf_processor: Any, num_bins: int) -> None:
    """Teach a pretrained VLM and its processor the markup, in place: its marks and the action bins as tokens, and rows.

    Rows of new tokens are drawn like those of the ones it knows, always the same: what lay in spare rows was never
    trained, and at the mean of the others, where transformers starts new rows, none could be told from another.
    `num_bins` is 0 where the model has action tokens of its own.
    """
    tokenizer = hf_processor.tokenizer
    first = min(len(tokenizer), model.get_input_embeddings().num_embeddings)
    _add_tokens(model, tokenizer, [*MARKS, *action_tokens(num_bins)])
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        _draw_rows(layer.weight.data[: len(tokenizer)], first)


def _add_tokens(model: Any, tokenizer: Any, tokens: Sequence[str]) -> None:
    tokenizer.add_tokens(tokens, special_tokens=True)
    # Many checkpoints have more rows than tokens already; never shrink them.
    rows = max(len(tokenizer), model.get_input_embeddings().num_embeddings)
    model.resize_token_embeddings(rows, mean_resizing=False)


def _draw_rows(weight: torch.Tensor, first: int) -> None:
    """Fill the rows of [V, D] from `first` on, normal with mean and spread of those before, each dimension its own."""
    import torch

    old = weight[:first].float()
    noise = torch.randn(weight[first:].shape, generator=torch.Generator().manual_seed(0)).to(old)
    weight[first:] = (old.mean(0) + old.std(0) * noise).to(weight.dtype)


def add_slots(model: Any, hf_processor: Any, num_actions: int) -> None:
    """Add the slots that a policy lacks, to the model and its processor's tokenizer, in place.

    Their embeddings start at zero, which is all that OpenVLA-OFT reads. Their untied output rows are never used.
    """
    tokenizer = hf_processor.tokenizer
    missing = [token for token in slot_tokens(num_actions) if token not in tokenizer.get_vocab()]
    if not missing:
        return
    _add_tokens(model, tokenizer, missing)
    model.get_input_embeddings().weight.data[tokenizer.convert_tokens_to_ids(missing)] = 0.0
