"""Pixels and prompts as OpenVLA takes them, with the published arithmetic and neither timm nor torchvision.

The classes bear the names that published checkpoints give (`processor_class`, `image_processor_type`): `AutoProcessor`
reads those folders once `rlvla.policies.models.openvla.register` ran.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from transformers import BatchFeature, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

IMAGE_TOKEN = "<image>"
PROMPT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<image>{% else %}{% set lines = part['text'].strip().split('\n') %}In: What action should the robot take to "
    "{{ lines[0].lower() }}?\n{% for line in lines[1:] %}{{ line }}\n{% endfor %}Out: {% endif %}{% endfor %}"
    "{% endfor %}"
)
"""The prompt of training (openvla prismatic/models/backbones/llm/prompting/base_prompter.py, `PurePromptBuilder`): the
first line of the text is the instruction. The space at its end becomes the token 29871 that `predict_action` adds."""


class PrismaticImageProcessor(BaseImageProcessor):
    """Images -> channels of one normalised copy per tower; arguments are keys of published files, a value per tower.

    `tvf_normalize_params` stand beside `means` and `stds` there, and the published code uses them: for DINOv2 those of
    ImageNet, rounded to bfloat16. Other keys say no more than these.

    Raises:
        ValueError: another strategy or interpolation than the published ones; the message names it.
    """

    model_input_names = ["pixel_values", "num_images"]  # noqa: RUF012 - as transformers declares it

    def __init__(
        self,
        use_fused_vision_backbone: bool = False,
        image_resize_strategy: str = "resize-naive",
        input_sizes: Sequence[Sequence[int]] = ((3, 224, 224),),
        interpolations: Sequence[str] = ("bicubic",),
        means: Sequence[Sequence[float]] = ((0.5, 0.5, 0.5),),
        stds: Sequence[Sequence[float]] = ((0.5, 0.5, 0.5),),
        tvf_normalize_params: Sequence[dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if image_resize_strategy != "resize-naive":
            raise ValueError(f"image_resize_strategy is {image_resize_strategy!r}; only 'resize-naive' is supported")
        if set(interpolations) != {"bicubic"}:
            raise ValueError(f"interpolations are {list(interpolations)}; only 'bicubic' is supported")
        if tvf_normalize_params is None:
            pairs = zip(means, stds, strict=True)
            tvf_normalize_params = [{"mean": list(mean), "std": list(std), "inplace": False} for mean, std in pairs]
        self.use_fused_vision_backbone = use_fused_vision_backbone
        self.image_resize_strategy = image_resize_strategy
        self.input_sizes = [list(size) for size in input_sizes]
        self.interpolations = list(interpolations)
        self.means = [list(mean) for mean in means]
        self.stds = [list(std) for std in stds]
        self.tvf_normalize_params = list(tvf_normalize_params)

    def preprocess(self, images: Any, return_tensors: str | None = None, **kwargs: Any) -> BatchFeature:
        """Normalise B images, one for each row, or B x N_b of them, a list for each row; PIL or [H, W, 3] uint8.

        Returns:
            `pixel_values` [B, C, S, S]; of nested images [B, N, C, S, S], zeros where a row has fewer than N, and
            `num_images` [B].
        """
        if not isinstance(images, (list, tuple)):
            images = [images]
        if not images or not isinstance(images[0], (list, tuple)):
            return BatchFeature({"pixel_values": np.stack([self._pixels(i) for i in images])}, return_tensors)
        channels, side = 3 * len(self.input_sizes), self.input_sizes[0][-1]
        most = max(len(row) for row in images)
        pixels = np.zeros((len(images), most, channels, side, side), np.float32)
        for b, row in enumerate(images):
            for n, image in enumerate(row):
                pixels[b, n] = self._pixels(image)
        counts = np.array([len(row) for row in images], np.int64)
        return BatchFeature({"pixel_values": pixels, "num_images": counts}, return_tensors)

    def _pixels(self, image: Any) -> np.ndarray:
        """One image -> [C, S, S] float32."""
        rgb = (image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))).convert("RGB")
        towers = []
        for size, params in zip(self.input_sizes, self.tvf_normalize_params, strict=True):
            resized = rgb.resize((size[-1], size[-2]), Image.Resampling.BICUBIC)
            mean, std = (np.array(params[name], np.float32) for name in ("mean", "std"))
            towers.append((np.asarray(resized, np.float32) / np.float32(255) - mean) / std)
        return np.concatenate(towers, axis=-1).transpose(2, 0, 1)


class PrismaticProcessor(ProcessorMixin):
    """Llama's tokenizer, to which `<image>` is added, and the image processor; `image_seq_len` is P."""

    def __init__(
        self,
        image_processor: PrismaticImageProcessor,
        tokenizer: Any,
        image_seq_len: int = 256,
        chat_template: str | None = None,
    ) -> None:
        self.image_token = IMAGE_TOKEN
        self.image_seq_len = image_seq_len
        if IMAGE_TOKEN not in tokenizer.get_vocab():
            tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        super().__init__(image_processor, tokenizer, chat_template=chat_template or PROMPT_TEMPLATE)

    def __call__(
        self,
        images: Sequence[Any],
        text: Sequence[str],
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Encode B prompts with the images of all of them, in order, which stand where the texts have `<image>`.

        Returns:
            `input_ids` [B, L], and what the image processor makes of the images of each text.

        Raises:
            ValueError: placeholders and images differ in number.
        """
        rows = self.tokenizer(list(text), **kwargs)["input_ids"]
        counts = [row.count(self.image_token_id) for row in rows]
        if sum(counts) != len(images):
            raise ValueError(f"{sum(counts)} image placeholders for {len(images)} images")
        pending = iter(images)
        pixels = self.image_processor([[next(pending) for _ in range(count)] for count in counts])
        lengths = {self.image_token_id: self.image_seq_len}
        expanded = [[i for id_ in row for i in [id_] * lengths.get(id_, 1)] for row in rows]
        return BatchFeature({"input_ids": expanded, **pixels}, tensor_type=return_tensors)
