"""What the policy reads: prompts, tool results and pixels, as token ids and as the model's forward inputs.

Compact ids hold one placeholder per image, which is what a sampler is given; expanded ids hold one token per image
patch group, which is what the model sees and the learner trains on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from rlvla.policies.family import POLICY_FILE, policy_file
from rlvla.policies.models import auto
from rlvla.policies.models.backbones import Backbone, backbone_of, own_action_ids
from rlvla.policies.thinker.actions import QuantileCodec
from rlvla.policies.thinker.decoding import Decoding
from rlvla.policies.thinker.settings import Settings, parse_settings
from rlvla.policies.thinker.vocabulary import Vocabulary, action_tokens, build_vocabulary

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class PolicyProcessor:
    """A Hugging Face processor, the vocabulary of the markup in it, and the settings of the checkpoint."""

    hf_processor: Any
    settings: Settings
    backbone: Backbone
    vocabulary: Vocabulary
    _expansions: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict, repr=False)
    """(H, W) -> the ids that a placeholder becomes."""

    @classmethod
    def create(cls, hf_processor: Any, settings: Settings, action_ids: Sequence[int] | None = None) -> PolicyProcessor:
        """Wrap a processor whose tokenizer knows the marks, the action tokens and, to decode in parallel, the slots.

        Action tokens are `action_ids`, from `own_action_ids`; without, those that `extend_vocabulary` adds.

        Raises:
            ValueError: the architecture is not supported, a token is missing, or there are more or fewer action tokens
                than bins; the message says which.
        """
        backbone, num_bins = backbone_of(hf_processor), settings.codec.num_bins
        if action_ids is not None and len(action_ids) != num_bins:
            raise ValueError(f"the model has {len(action_ids)} action tokens of its own, its codec {num_bins} bins")
        num_slots = Decoding.read(settings).num_slots
        actions = action_ids or action_tokens(num_bins)
        return cls(
            hf_processor=hf_processor,
            settings=settings,
            backbone=backbone,
            vocabulary=build_vocabulary(hf_processor.tokenizer, backbone, actions, num_slots),
        )

    @classmethod
    def load(cls, path: Path | str) -> PolicyProcessor:
        """Read a checkpoint folder that `save` wrote.

        Raises:
            FileNotFoundError: the folder is no policy checkpoint; the message says which file it lacks.
            ValueError: see `create`.
        """
        file = policy_file(path)
        settings = parse_settings(file.read_bytes(), str(file))
        return cls.create(auto.load_processor(path), settings, own_action_ids(auto.load_config(path)))

    def save(self, path: Path | str) -> None:
        """Write the processor's files and `rlvla_policy.json` into a checkpoint folder."""
        self.hf_processor.save_pretrained(path)
        (Path(path) / POLICY_FILE).write_text(self.settings.to_json())

    @cached_property
    def decoding(self) -> Decoding:
        """How the actions of a chunk are decoded."""
        return Decoding.read(self.settings)

    @property
    def codec(self) -> QuantileCodec:
        """Actions <-> bins."""
        return self.settings.codec

    def prompt_ids(self, instruction: str, num_images: int) -> tuple[int, ...]:
        """Compact ids of what the policy reads first: the cameras' images and the instruction.

        A tokenizer with a chat template gets it as a user's message; any other as images, instruction, new line. Text
        behind a special token is encoded as if nothing were before it: Llama's tokenizer writes a first word otherwise
        (`▁In`) than one behind an image (`In`), and OpenVLA puts the image into a prompt that is encoded already.

        Raises:
            ValueError: the chat template writes another number of images; the message quotes what it writes.
        """
        text = f"{self._plain(instruction)}\n"
        if not getattr(self.hf_processor, "chat_template", None):
            return self._encode_apart(self.backbone.image_text * num_images + text)
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
        """[L] int32: the i-th placeholder replaced by the tokens of the i-th image [H, W, 3] uint8, as vLLM does.

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
            expanded += self._expansion(next(pending)) if id_ == placeholder else [int(id_)]
        return np.array(expanded, np.int32)

    def pixel_inputs(self, images_per_row: Sequence[Sequence[np.ndarray]]) -> dict[str, torch.Tensor]:
        """The pixels of a batch, B x N_b x [H, W, 3] uint8, as `forward` takes them.

        Returns:
            Idefics3: `pixel_values` [B, N, 3, H, W] and `pixel_attention_mask` [B, N, H, W], zeros where a row has
            fewer than N images. Qwen-VL: `pixel_values` [patches, values] and `image_grid_thw` [images, 3].
        """
        rows = [[Image.fromarray(image) for image in row] for row in images_per_row]
        flat = [image for row in rows for image in row]
        if not flat:
            return {}
        batch = flat if self.backbone.is_flat else rows
        return dict(self.hf_processor.image_processor(images=batch, return_tensors="pt"))

    def join_pixels(self, rows: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """What `pixel_inputs` gives for a batch, bit for bit, out of what it gave for each of its rows alone."""
        names = next((row.keys() for row in rows if row), ())
        if self.backbone.is_flat:
            import torch

            return {name: torch.cat([row[name] for row in rows if row]) for name in names}
        return {name: _stack([row.get(name) for row in rows]) for name in names}

    def forward_inputs(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        is_act: torch.Tensor | None = None,
        num_prefix_tokens: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Everything but the pixels that scoring tokens takes.

        Args:
            input_ids: [B, L], image placeholders expanded, real action tokens in it.
            attention_mask: [B, L], 0 on padding.
            is_act: [B, L] bool, True on ACT segments, which hold action tokens and, unless it was injected, the
                `<act>`; a policy that decodes actions in parallel needs it.
            num_prefix_tokens: [B] int, tokens of each prompt; one whose prompts are bidirectional needs it.

        Returns:
            `input_ids`, `attention_mask`, what the backbone derives from them, and `Decoding.inputs`.

        Raises:
            ValueError: see `Decoding.inputs`.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self.backbone.has_grid_positions:
            inputs["mm_token_type_ids"] = (input_ids == self.vocabulary.placeholder_id).int()
        return inputs | self.decoding.inputs(self.vocabulary, input_ids, is_act, num_prefix_tokens)

    def _expansion(self, image: np.ndarray) -> tuple[int, ...]:
        """What the Hugging Face processor makes of the placeholder of an image of this size."""
        size = (image.shape[0], image.shape[1])
        if size not in self._expansions:
            blank, text = Image.new("RGB", (size[1], size[0])), self.backbone.image_text
            ids = self.hf_processor(text=[text], images=[blank], add_special_tokens=False)["input_ids"][0]
            image_ids = self.vocabulary.image_ids
            before = image_ids.index(self.vocabulary.placeholder_id)
            self._expansions[size] = tuple(int(id_) for id_ in ids[before : len(ids) - (len(image_ids) - before - 1)])
        return self._expansions[size]

    @cached_property
    def _added_tokens(self) -> re.Pattern[str]:
        tokens = sorted(self.hf_processor.tokenizer.get_added_vocab(), key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, tokens))})")

    def _encode_apart(self, text: str) -> tuple[int, ...]:
        """Ids of a text whose pieces between special tokens are encoded one by one."""
        one, several = self.hf_processor.tokenizer.convert_tokens_to_ids, self.vocabulary.encode
        pieces = enumerate(self._added_tokens.split(text))  # every second one is a special token
        return tuple(id_ for i, piece in pieces for id_ in ([one(piece)] if i % 2 else several(piece)))

    def _plain(self, text: str) -> str:
        """Text that cannot turn into marks or image placeholders, whoever wrote it (the policy may have)."""
        return self._added_tokens.sub(" ", text)


def _stack(rows: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """[1, ...] each -> [B, ...], every dimension as long as the longest, with zeros behind; None is all zeros."""
    there = [row for row in rows if row is not None]
    shape = [max(sizes) for sizes in zip(*(row.shape[1:] for row in there), strict=True)]
    stacked = there[0].new_zeros(len(rows), *shape)
    for place, row in zip(stacked, rows, strict=True):
        if row is not None:
            place[tuple(slice(size) for size in row.shape[1:])] = row[0]
    return stacked
