"""Pictures and words -> tokens of the memory that an action chain is decoded from.

B rows, N cameras, H W px, d width, L bytes of text.
"""

from __future__ import annotations

import torch
from torch import nn

from rlvla.config import ChainOfActionConfig
from rlvla.policies.wordless import NUM_TEXT_TOKENS

_IMAGE_MEAN, _IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's RGB, as the public code normalises for both encoders."""
_TEXT_WIDTH = 5
"""Bytes that a position of the text sees: a short word."""


def waves(positions: torch.Tensor, width: int, *, longest: float = 10_000.0) -> torch.Tensor:
    """[n] positions -> [n, width] float32 sines and cosines, of wavelengths 2 pi to 2 pi * `longest`."""
    frequency = longest ** -(torch.arange(0, width, 2, device=positions.device) / width)
    angle = positions.float()[:, None] * frequency
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


def plane_waves(height: int, width: int, size: int, device: torch.device) -> torch.Tensor:
    """[height * width, size] float32: half of it says the row, half the column; the picture's side is 2 pi (DETR)."""
    rows = waves(torch.arange(1, height + 1, device=device) * (2 * torch.pi / height), size // 2)
    columns = waves(torch.arange(1, width + 1, device=device) * (2 * torch.pi / width), size // 2)
    return torch.cat([rows.repeat_interleave(width, 0), columns.repeat(height, 1)], dim=1)


class ImageEncoder(nn.Module):
    """[B, N, 3, H, W] in [0, 1] and words [B, n, d] -> tokens [B, M, d] and, with `spatial_softmax`, places [B, d].

    All cameras go through the same network, M / N tokens each. Words scale and shift the channels of the last map
    (FiLM, arXiv 1709.07871, as RT-1 has it), so that what they name stands out. The original has no words. Ours: on the
    tabletop, a network that could only attend to them did not find the target.

    A learned code tells the cameras apart. The original has none: its tokens of two cameras have the same positions.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, config: ChainOfActionConfig, num_views: int) -> None:
        super().__init__()
        size = config.hidden_size
        if config.encoder == "small":
            self.trunk, channels = _strided(config.conv_channels), config.conv_channels[-1]
        else:
            self.trunk, channels = _resnet18(), 512
        self.project = nn.Conv2d(channels, size, kernel_size=1)
        self.film = nn.Linear(size, 2 * size)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)
        self.mix = nn.Conv2d(size, size, kernel_size=1)
        self.places = SpatialSoftmax(config, num_views) if config.spatial_softmax else None
        self.token_size = config.token_size
        self.norm = nn.LayerNorm(size)
        self.view_codes = nn.Embedding(num_views, size)
        nn.init.normal_(self.view_codes.weight, std=0.02)
        self.register_buffer("mean", torch.tensor(_IMAGE_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_IMAGE_STD).view(3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor, words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See the class."""
        num_rows, num_views = images.shape[:2]
        maps = self.project(self.trunk(((images - self.mean) / self.std).flatten(0, 1)))
        film = self.film(words.mean(1)).repeat_interleave(num_views, 0)[..., None, None]
        scale, shift = film.chunk(2, dim=1)
        maps = self.mix(nn.functional.relu(maps * (1 + scale) + shift))
        coarse = nn.functional.avg_pool2d(maps, self.token_size, ceil_mode=True)
        positions = plane_waves(coarse.shape[2], coarse.shape[3], coarse.shape[1], coarse.device)
        tokens = self.norm(coarse.flatten(2).transpose(1, 2)) + positions.to(coarse.dtype)
        codes = self.view_codes(torch.arange(num_views, device=images.device))
        tokens = (tokens.unflatten(0, (num_rows, num_views)) + codes[:, None]).flatten(1, 2)
        return tokens, None if self.places is None else self.places(maps.unflatten(0, (num_rows, num_views)))


class SpatialSoftmax(nn.Module):
    """[B, N, C, h, w] -> [B, d], from the expected row and column of each channel (Finn et al., arXiv 1509.06113)."""

    def __init__(self, config: ChainOfActionConfig, num_views: int) -> None:
        super().__init__()
        size, self.scale = config.hidden_size, config.softmax_scale
        self.read, self.norm = nn.Linear(num_views * size * 2, size), nn.LayerNorm(size)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """See the class; the share of a place is computed in float32."""
        height, width = maps.shape[3:]
        shares = (self.scale * maps.float()).flatten(3).softmax(-1).unflatten(3, (height, width))
        rows = torch.linspace(-1, 1, height, device=maps.device)
        columns = torch.linspace(-1, 1, width, device=maps.device)
        places = torch.stack([shares.sum(4) @ rows, shares.sum(3) @ columns], dim=-1)
        return self.norm(self.read(places.flatten(1).to(maps.dtype)))


class TextEncoder(nn.Module):
    """[B, L] bytes, padded with 0 -> [B, num_text_tokens, d]: learned queries attend to stretches of five bytes.

    Made for a few hundred different instructions in words that training has shown. A text may be empty.
    """

    def __init__(self, config: ChainOfActionConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.bytes = nn.Embedding(NUM_TEXT_TOKENS, size)
        self.stretches = nn.Conv1d(size, size, _TEXT_WIDTH, padding=_TEXT_WIDTH // 2)
        self.queries = nn.Embedding(config.num_text_tokens, size)
        self.key, self.value = nn.Linear(size, size), nn.Linear(size, size)
        self.norm = nn.LayerNorm(size)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """See the class; how far rows are padded changes nothing."""
        is_text = (text > 0)[..., None]
        embedded = self.bytes(text) * is_text
        stretches = nn.functional.gelu(self.stretches(embedded.transpose(1, 2))).transpose(1, 2)
        positions = waves(torch.arange(text.shape[1], device=text.device), stretches.shape[-1]).to(stretches.dtype)
        # A zero in front can always be attended to: where there is no text, there is nothing else.
        key, value = (
            nn.functional.pad(x, (0, 0, 1, 0)) for x in (self.key(stretches + positions), self.value(stretches))
        )
        mask = nn.functional.pad(is_text[:, None, :, 0], (1, 0), value=True)
        numbers = torch.arange(self.queries.num_embeddings, device=text.device)
        queries = self.queries(numbers).expand(len(text), -1, -1)
        return self.norm(nn.functional.scaled_dot_product_attention(queries, key, value, attn_mask=mask))


def _strided(channels: tuple[int, ...]) -> nn.Sequential:
    """Convolutions of 3 x 3 with stride 2, the first of 5 x 5; group norm, since rows must not depend on each other."""
    layers: list[nn.Module] = []
    before = 3
    for number, after in enumerate(channels):
        kernel = 3 if number else 5
        layers += [nn.Conv2d(before, after, kernel, stride=2, padding=kernel // 2), nn.GroupNorm(1, after), nn.ReLU()]
        before = after
    return nn.Sequential(*layers)


def _resnet18() -> nn.Sequential:
    """ResNet-18 of torchvision up to its last map, [B, 512, H / 32, W / 32]."""
    from torchvision.models import resnet18
    from torchvision.ops import FrozenBatchNorm2d

    network = resnet18(weights=None, norm_layer=FrozenBatchNorm2d)
    return nn.Sequential(*list(network.children())[:-2])
