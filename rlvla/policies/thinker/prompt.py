"""What the policy reads: prompts, tool results and pixels, as token ids and as the model's forward inputs.

Compact ids hold one placeholder per image, which is what a sampler is given; expanded ids hold one token per image
patch group, which is what the model sees and the learner trains on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from rlvla.config import ActionDecoding
from rlvla.policies.models import auto
from rlvla.policies.thinker.action_slots import PROMPT_BLOCK, block_ids, parallel_inputs
from rlvla.policies.thinker.actions import QuantileCodec, codec_from_dict, codec_to_dict
from rlvla.policies.thinker.markup import MARKS, Vocabulary, slot_tokens

if TYPE_CHECKING:
    import torch

PrefixAttention = Literal["causal", "bidirectional"]
POLICY_FILE = "rlvla_policy.json"
"""Beside the Hugging Face files of a checkpoint: what they do not say about the policy."""


@dataclass(frozen=True, kw_only=True)
class ImageFormat:
    """How one family of models writes an image."""

    text: str
    """One image in a prompt."""
    placeholder: str
    """The token in `text` that stands for the pixels."""
    is_flat: bool
    """Pixels: True, all images of a batch in one row (`image_grid_thw`); False, padded to the row with most images."""


_IDEFICS = ImageFormat(text="<image>", placeholder="<image>", is_flat=False)
_QWEN = ImageFormat(text="<|vision_start|><|image_pad|><|vision_end|>", placeholder="<|image_pad|>", is_flat=True)
IMAGE_FORMATS = {
    "Idefics3Processor": _IDEFICS,
    "SmolVLMProcessor": _IDEFICS,
    "Qwen2VLProcessor": _QWEN,
    "Qwen2_5_VLProcessor": _QWEN,
    "Qwen3VLProcessor": _QWEN,
    "PrismaticProcessor": ImageFormat(text="<image>", placeholder="<image>", is_flat=False),
}
"""Hugging Face processor class -> format: idefics3, smolvlm, qwen2_vl, qwen2_5_vl, qwen3_vl, and our openvla."""


def action_tokens(num_bins: int) -> list[str]:
    """The token of each bin, in order."""
    return [f"<act_{i}>" for i in range(num_bins)]


def own_action_ids(config: Any) -> tuple[int, ...] | None:
    """Bin -> id of the action tokens that a model has learned in its pretraining, from its config.

    OpenVLA: the last 256 words of Llama's own vocabulary. None: the model has none, `extend_vocabulary` adds them.
    """
    return getattr(config, "action_ids", None)


def extend_vocabulary(model: Any, hf_processor: Any, num_bins: int) -> None:
    """Teach a pretrained VLM the markup: add its marks and the action bins as tokens, and rows for them.

    Args:
        model: Hugging Face VLM; changed in place. Rows of the tokens that it gains are drawn like those of the ones it
            knows, always the same: what lay in spare rows was never trained, and at the mean of the others, where
            transformers starts new rows, none could be told from another.
        hf_processor: its processor; the tokenizer is changed in place.
        num_bins: bins per action dimension; 0 where the model has action tokens of its own.
    """
    tokenizer = hf_processor.tokenizer
    num_rows = model.get_input_embeddings().num_embeddings
    first = min(len(tokenizer), num_rows)
    tokenizer.add_tokens([*MARKS, *action_tokens(num_bins)], special_tokens=True)
    # Many checkpoints have more rows than tokens already; never shrink them.
    model.resize_token_embeddings(max(len(tokenizer), num_rows), mean_resizing=False)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        _draw_rows(layer.weight.data[: len(tokenizer)], first)


def _draw_rows(weight: torch.Tensor, first: int) -> None:
    """Fill the rows of [V, D] from `first` on, normal with mean and spread of those before, each dimension its own."""
    import torch

    old = weight[:first].float()
    noise = torch.randn(weight[first:].shape, generator=torch.Generator().manual_seed(0)).to(old)
    weight[first:] = (old.mean(0) + old.std(0) * noise).to(weight.dtype)


@dataclass(frozen=True, kw_only=True)
class PolicyProcessor:
    """A Hugging Face processor, the vocabulary of the markup in it, and the action codec of the checkpoint."""

    hf_processor: Any
    codec: QuantileCodec
    carry_thought: bool
    """Whether prompts show the previous decision's last thought."""
    image_format: ImageFormat
    vocabulary: Vocabulary
    trained_suites: tuple[str, ...] = ()
    """Suites on whose train initial states this policy has learned."""
    action_decoding: ActionDecoding = "autoregressive"
    """See `rlvla.config.SFTConfig`."""
    prefix_attention: PrefixAttention = "causal"
    """Likewise."""
    views: tuple[tuple[int, int], ...] = ()
    """(H, W) of each camera's picture that it was trained on, px; empty: its checkpoint is older than this note."""
    _expansions: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict, repr=False)
    """(H, W) -> the ids that a placeholder becomes."""

    @classmethod
    def create(
        cls,
        hf_processor: Any,
        codec: QuantileCodec,
        carry_thought: bool,
        trained_suites: Iterable[str] = (),
        action_decoding: ActionDecoding = "autoregressive",
        prefix_attention: PrefixAttention = "causal",
        action_ids: Sequence[int] | None = None,
        views: Iterable[tuple[int, int]] = (),
    ) -> PolicyProcessor:
        """Wrap a processor whose tokenizer knows the marks, the action tokens and, to decode in parallel, the slots.

        Args:
            hf_processor: of a family in `IMAGE_FORMATS`.
            codec: actions <-> bins.
            carry_thought: see the field.
            trained_suites: see the field.
            action_decoding: see the field.
            prefix_attention: see the field.
            action_ids: bin -> id, from `own_action_ids`; None: of the tokens that `extend_vocabulary` adds.
            views: see the field.

        Raises:
            ValueError: the model family is not supported, a token is missing, or there are more or fewer action tokens
                than bins; the message says which.
        """
        name = type(hf_processor).__name__
        if name not in IMAGE_FORMATS:
            raise ValueError(f"{name} is not supported; supported are {', '.join(IMAGE_FORMATS)}")
        image_format = IMAGE_FORMATS[name]
        if action_ids is not None and len(action_ids) != codec.num_bins:
            raise ValueError(
                f"the model has {len(action_ids)} action tokens of its own, its codec {codec.num_bins} bins"
            )
        chunk_length, num_dims = codec.chunk_shape
        num_slots = 0 if action_decoding == "autoregressive" else chunk_length * num_dims
        return cls(
            hf_processor=hf_processor,
            codec=codec,
            carry_thought=carry_thought,
            image_format=image_format,
            vocabulary=_vocabulary(
                hf_processor.tokenizer, image_format, action_ids or action_tokens(codec.num_bins), num_slots
            ),
            trained_suites=tuple(sorted(set(trained_suites))),
            action_decoding=action_decoding,
            prefix_attention=prefix_attention,
            views=tuple(views),
        )

    @classmethod
    def load(cls, path: Path | str) -> PolicyProcessor:
        """Read a checkpoint folder that `save` wrote.

        Raises:
            FileNotFoundError: the folder is no policy checkpoint; the message says which file it lacks.
            ValueError: see `create`.
        """
        file = Path(path) / POLICY_FILE
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: {path} is no policy checkpoint; recipes/sft.py makes one")
        settings = parse_settings(file.read_bytes(), str(file))
        return cls.create(
            auto.load_processor(path),
            codec_from_dict(settings["codec"]),
            settings["carry_thought"],
            settings.get("trained_suites", ()),
            settings.get("action_decoding", "autoregressive"),
            settings.get("prefix_attention", "causal"),
            own_action_ids(auto.load_config(path)),
            settings.get("views", ()),
        )

    def save(self, path: Path | str) -> None:
        """Write the processor's files and `rlvla_policy.json` into a checkpoint folder."""
        self.hf_processor.save_pretrained(path)
        settings = {
            "codec": codec_to_dict(self.codec),
            "carry_thought": self.carry_thought,
            "trained_suites": list(self.trained_suites),
            "action_decoding": self.action_decoding,
            "prefix_attention": self.prefix_attention,
            "views": [list(view) for view in self.views],
        }
        (Path(path) / POLICY_FILE).write_text(json.dumps(settings, indent=2) + "\n")

    def prompt_ids(self, instruction: str, num_images: int, carried_thought: str = "") -> tuple[int, ...]:
        """Compact ids of what the policy reads first: the cameras' images and the instruction.

        A tokenizer with a chat template gets it as a user's message; any other as images, instruction, new line. Text
        behind a special token is encoded as if nothing were before it: Llama's tokenizer writes a first word otherwise
        (`▁In`) than one behind an image (`In`), and OpenVLA puts the image into a prompt that is encoded already.

        Raises:
            ValueError: the chat template writes another number of images; the message quotes what it writes.
        """
        text = f"{self._plain(instruction)}\n"
        if carried_thought:
            text += f"{self._plain(carried_thought)}\n"
        if not getattr(self.hf_processor, "chat_template", None):
            return self._encode_apart(self.image_format.text * num_images + text)
        content = [{"type": "image"}] * num_images + [{"type": "text", "text": text}]
        prompt = self.hf_processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        ids = self._encode_apart(prompt)
        if ids.count(self.vocabulary.placeholder_id) != num_images:
            raise ValueError(f"the chat template writes {prompt!r} for {num_images} images")
        return ids

    def result_ids(self, *, image: bool, text: str = "") -> tuple[int, ...]:
        """Compact ids of a tool's result: one image, or a text."""
        vocabulary = self.vocabulary
        body = vocabulary.image_ids if image else vocabulary.encode(self._plain(text))
        return (vocabulary.mark_ids["<result>"], *body, vocabulary.mark_ids["</result>"])

    def expand(self, compact_ids: Sequence[int], images: Sequence[np.ndarray]) -> np.ndarray:
        """Replace the i-th placeholder by the tokens of the i-th image, as vLLM does.

        Args:
            compact_ids: one placeholder id per image.
            images: N x [H, W, 3] uint8.

        Returns:
            [L] int32.

        Raises:
            ValueError: placeholders and images differ in number.
        """
        placeholder = self.vocabulary.placeholder_id
        num_placeholders = sum(id_ == placeholder for id_ in compact_ids)
        if num_placeholders != len(images):
            raise ValueError(f"{num_placeholders} image placeholders for {len(images)} images")
        pending = iter(images)
        expanded: list[int] = []
        for id_ in compact_ids:
            if id_ == placeholder:
                expanded += self._expansion(next(pending))
            else:
                expanded.append(int(id_))
        return np.array(expanded, np.int32)

    def pixel_inputs(self, images_per_row: Sequence[Sequence[np.ndarray]]) -> dict[str, torch.Tensor]:
        """The pixels of a batch as `forward` takes them.

        Args:
            images_per_row: B x N_b x [H, W, 3] uint8.

        Returns:
            Idefics3: `pixel_values` [B, N, 3, H, W] and `pixel_attention_mask` [B, N, H, W], zeros where a row has
            fewer than N images. Qwen-VL: `pixel_values` [patches, values] and `image_grid_thw` [images, 3].
        """
        rows = [[Image.fromarray(image) for image in row] for row in images_per_row]
        flat = [image for row in rows for image in row]
        if not flat:
            return {}
        batch = flat if self.image_format.is_flat else rows
        return dict(self.hf_processor.image_processor(images=batch, return_tensors="pt"))

    @property
    def is_parallel(self) -> bool:
        """Whether the action tokens of a chunk are decoded in one forward."""
        return bool(self.vocabulary.slot_ids)

    @property
    def is_hybrid(self) -> bool:
        """Whether some tokens see ones behind them: those of the prompt, or of a chunk of actions."""
        return self.action_decoding == "parallel" or self.prefix_attention == "bidirectional"

    @property
    def num_action_tokens(self) -> int:
        """K * A, of one chunk."""
        chunk_length, num_dims = self.codec.chunk_shape
        return chunk_length * num_dims

    def forward_inputs(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        is_act: torch.Tensor | None = None,
        num_prefix_tokens: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Everything but the pixels that scoring tokens takes.

        Args:
            input_ids: [B, L], image placeholders expanded.
            attention_mask: [B, L], 0 on padding.
            is_act: [B, L] bool, True on ACT segments; a policy that decodes actions in parallel needs it.
            num_prefix_tokens: [B] int, tokens of each prompt; one whose prompts are bidirectional needs it.

        Returns:
            `input_ids`, `attention_mask` and what the family derives from them; of a parallel policy also what
            `rlvla.policies.thinker.action_slots.parallel_inputs` does, of a hybrid one `block_ids` (see there), which
            `rlvla.policies.thinker.policy.token_logprobs` reads.

        Raises:
            ValueError: what this policy needs is missing; or see `parallel_inputs`.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self.image_format.is_flat:  # Qwen-VL lays its 3-D rotary positions out by these
            inputs["mm_token_type_ids"] = (input_ids == self.vocabulary.placeholder_id).int()
        if self.is_parallel:
            inputs |= parallel_inputs(self.vocabulary, input_ids, is_act)
        if self.action_decoding == "parallel":
            inputs["block_ids"] = block_ids(inputs["is_slot"])
        if self.prefix_attention == "bidirectional":
            if num_prefix_tokens is None:
                raise ValueError("the prompts of this policy see themselves: its forward inputs need num_prefix_tokens")
            columns = input_ids.new_ones(input_ids.shape).cumsum(1)  # from 1
            others = inputs.get("block_ids", input_ids.new_zeros(input_ids.shape))
            inputs["block_ids"] = others.masked_fill(columns <= num_prefix_tokens[:, None], PROMPT_BLOCK)
        return inputs

    def _expansion(self, image: np.ndarray) -> tuple[int, ...]:
        size = (image.shape[0], image.shape[1])
        if size not in self._expansions:
            self._expansions[size] = self._ask_hf(size)
        return self._expansions[size]

    def _ask_hf(self, size: tuple[int, int]) -> tuple[int, ...]:
        """What the Hugging Face processor makes of the placeholder of an image of this size."""
        blank = Image.new("RGB", (size[1], size[0]))
        text = self.image_format.text
        batch = self.hf_processor(text=[text], images=[blank], add_special_tokens=False)
        ids = [int(id_) for id_ in batch["input_ids"][0]]
        image_ids = self.vocabulary.image_ids
        before = image_ids.index(self.vocabulary.placeholder_id)
        return tuple(ids[before : len(ids) - (len(image_ids) - before - 1)])

    @cached_property
    def _added_tokens(self) -> re.Pattern[str]:
        tokens = sorted(self.hf_processor.tokenizer.get_added_vocab(), key=len, reverse=True)
        return re.compile("|".join(re.escape(token) for token in tokens))

    def _encode_apart(self, text: str) -> tuple[int, ...]:
        """Ids of a text whose pieces between special tokens are encoded one by one."""
        ids: list[int] = []
        start = 0
        for match in self._added_tokens.finditer(text):
            ids += self.vocabulary.encode(text[start : match.start()])
            ids.append(self.hf_processor.tokenizer.convert_tokens_to_ids(match.group()))
            start = match.end()
        return (*ids, *self.vocabulary.encode(text[start:]))

    def _plain(self, text: str) -> str:
        """Text that cannot turn into marks or image placeholders, whoever wrote it (the policy may have)."""
        return self._added_tokens.sub(" ", text)


def _vocabulary(
    tokenizer: Any, image_format: ImageFormat, actions: Sequence[int] | Sequence[str], num_slots: int
) -> Vocabulary:
    """`actions` are ids, or names of tokens."""

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    def decode(ids: Sequence[int]) -> str:
        return tokenizer.decode([int(id_) for id_ in ids], skip_special_tokens=False)

    def single(token: str) -> int:
        ids = encode(token)
        if len(ids) != 1:
            is_slot = token in slot_tokens(num_slots)
            adder = (
                "rlvla.policies.thinker.action_slots.add_slots"
                if is_slot
                else "rlvla.policies.thinker.prompt.extend_vocabulary"
            )
            raise ValueError(f"the tokenizer has no token {token!r}; add it with {adder}")
        return ids[0]

    return Vocabulary(
        mark_ids={mark: single(mark) for mark in MARKS},
        action_ids=tuple(action if isinstance(action, int) else single(action) for action in actions),
        image_ids=tuple(encode(image_format.text)),
        placeholder_id=single(image_format.placeholder),
        slot_ids=tuple(single(token) for token in slot_tokens(num_slots)),
        encode=encode,
        decode=decode,
    )


def read_trained(path: Path | str) -> tuple[str, ...]:
    """`trained_suites` of a checkpoint; none where it is no policy's."""
    return tuple(read_settings(path).get("trained_suites", ()))


def read_decoding(path: Path | str) -> ActionDecoding:
    """`action_decoding` of a checkpoint; autoregressive where it is no policy's."""
    return read_settings(path).get("action_decoding", "autoregressive")


def vllm_obstacle(policy: Path | str | PolicyProcessor) -> str:
    """Why vLLM cannot serve a checkpoint, or a policy that becomes one, and what to do; empty where it can."""
    is_path = isinstance(policy, Path | str)
    attention = read_settings(policy).get("prefix_attention", "causal") if is_path else policy.prefix_attention
    if attention == "causal":
        return ""
    return (
        f"{policy if is_path else 'the policy'} is trained with prefix_attention: bidirectional, and vLLM attends "
        "prompts causally: set sampler.backend to transformers"
    )


def read_settings(path: Path | str) -> dict[str, Any]:
    """What is in `POLICY_FILE`; nothing where `path` is no policy's: empty, a hub id, another model's folder."""
    if not path:
        return {}
    file = Path(path) / POLICY_FILE
    return parse_settings(file.read_bytes(), str(file)) if file.is_file() else {}


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """Content of `POLICY_FILE`; defaults are what checkpoints without the key were trained with."""

    codec: dict[str, Any]
    carry_thought: bool
    trained_suites: tuple[str, ...] = ()
    action_decoding: ActionDecoding = "autoregressive"
    prefix_attention: PrefixAttention = "causal"
    views: tuple[tuple[int, int], ...] = ()


_SETTINGS = TypeAdapter(_Settings)


def parse_settings(content: bytes, name: str) -> dict[str, Any]:
    """What `POLICY_FILE` says.

    Args:
        content: JSON.
        name: of the file, for errors.

    Raises:
        ValueError: it is no JSON, or a key is missing or of a wrong type; the message names file and key.
    """
    try:
        return asdict(_SETTINGS.validate_json(content))
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))} {e['msg']}".strip() for e in error.errors())
        raise ValueError(f"{name}: not a policy's settings: {wrong}") from None


def note_trained(path: Path, suite: str) -> None:
    """Write into a checkpoint that its policy has learned on the train states of a suite, too."""
    file = path / POLICY_FILE
    settings = json.loads(file.read_text())
    settings["trained_suites"] = sorted({*read_trained(path), suite})
    file.write_text(json.dumps(settings, indent=2) + "\n")
