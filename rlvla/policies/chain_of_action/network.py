"""The network of Chain-of-Action: what is seen and what is told -> a chain of actions, in the order of its decoding.

B rows, N cameras, P proprio, A action, T tokens of a chain, K heads, d width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from rlvla.config import ChainOfActionConfig
from rlvla.policies.chain_of_action.decoder import ChainDecoder, DecodingState, EncoderLayer, Memory
from rlvla.policies.chain_of_action.encoder import ImageEncoder, TextEncoder


class Chained(NamedTuple):
    """What the network says of chains that it was shown; float32."""

    hidden: torch.Tensor
    """[B, K, T, d] last hidden states; head 0 of position j says token j, head k token j + k."""
    means: torch.Tensor
    """[B, K, T, A] normalised actions, likewise."""
    embedded: torch.Tensor
    """[B, T, d] of the actions that it was shown."""
    std: torch.Tensor | None
    """[B, T, A] of head 0, where the network says it."""


class Linear32(nn.Linear):
    """A linear layer that computes in float32, whatever its weights are: an action has more bits than bfloat16."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[.., in] -> [.., out] float32."""
        bias = None if self.bias is None else self.bias.float()
        return nn.functional.linear(input.float(), self.weight.float(), bias)


class ChainNet(nn.Module):
    """See the module.

    Args:
        config: sizes.
        action_size: A.
        proprio_size: P.
        num_views: N.
    """

    def __init__(self, config: ChainOfActionConfig, *, action_size: int, proprio_size: int, num_views: int) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = ImageEncoder(config, num_views)
        self.text_encoder = TextEncoder(config)
        # The original embeds proprio as it does actions, which are the same eight numbers there.
        self.proprio_encoder = Linear32(proprio_size, config.hidden_size)
        self.encoder = nn.Sequential(*(EncoderLayer(config) for _ in range(config.encoder_layers)))
        self.encoder_norm = nn.LayerNorm(config.hidden_size)
        self.action2embed = Linear32(action_size, config.hidden_size)
        self.decoder = ChainDecoder(config)
        self.embed2action = Linear32(config.hidden_size, action_size)
        self.spread = Linear32(config.hidden_size, action_size) if config.learned_std else None
        if self.spread is not None:
            nn.init.zeros_(self.spread.weight)
            nn.init.zeros_(self.spread.bias)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.action2embed.weight.dtype

    def forward(
        self,
        images: torch.Tensor,
        proprio: torch.Tensor,
        text: torch.Tensor,
        chain: torch.Tensor,
        *,
        with_future: bool = False,
    ) -> Chained:
        """Teacher-forced: what is predicted of each token of a chain, given those before it.

        Args:
            images: see `memory`.
            proprio: see `memory`.
            text: see `memory`.
            chain: [B, T, A] normalised, in the order of decoding, padded on the right with anything finite.
            with_future: all heads; else K is 1.
        """
        return self.scored(self.memory(images, proprio, text), chain, with_future=with_future)

    def memory(self, images: torch.Tensor, proprio: torch.Tensor, text: torch.Tensor) -> Memory:
        """What a chain is decoded from.

        Args:
            images: [B, N, 3, H, W] in 0..1.
            proprio: [B, P] normalised.
            text: [B, L] int64, bytes + 1, padded on the right with 0.
        """
        words = self.text_encoder(text)
        tokens, places = self.image_encoder(images.to(self.dtype), words)
        parts = [tokens, self.proprio_encoder(proprio).to(self.dtype)[:, None], words]
        if places is not None:
            parts.append(places[:, None])
        tokens = torch.cat(parts, dim=1)
        return Memory(tokens=self.encoder_norm(self.encoder(tokens)), places=places)

    def scored(self, memory: Memory, chain: torch.Tensor, *, with_future: bool = False) -> Chained:
        """`forward` from a memory on."""
        embedded = self.action2embed(chain)
        num_heads = self.config.num_future if with_future else 1
        hidden = self.decoder(memory, embedded.to(self.dtype), num_heads).float()
        std = self._std(hidden[:, 0]) if self.spread is not None else None
        return Chained(hidden=hidden, means=self.embed2action(hidden), embedded=embedded, std=std)

    def begin(self, memory: Memory) -> DecodingState:
        """A chain of which nothing is decoded yet."""
        return self.decoder.begin(memory)

    def next(
        self, state: DecodingState, *, action: torch.Tensor | None = None, latent: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """One more token; equal to the teacher-forced pass, at the cost of one token.

        Args:
            state: of the tokens before; holds this one afterwards.
            action: [B, A] normalised, the token before, as it was drawn; neither this nor `latent` at the first one.
            latent: [B, d] instead: the hidden state that the token before was read from (the paper's feedback).

        Returns:
            [B, A] mean and [B, d] hidden state, float32; [B, A] standard deviation where the network says it.
        """
        fed = latent if action is None else self.action2embed(action)
        hidden = self.decoder.next(state, None if fed is None else fed.to(self.dtype)).float()
        return self.embed2action(hidden), hidden, self._std(hidden) if self.spread is not None else None

    def _std(self, hidden: torch.Tensor) -> torch.Tensor:
        """[.., d] -> [.., A] between the two bounds, evenly in its logarithm."""
        assert self.spread is not None
        low, high = self.config.min_std, self.config.max_std
        return low * (high / low) ** self.spread(hidden).sigmoid()


def chain_losses(
    chained: Chained, chain: torch.Tensor, lengths: torch.Tensor, config: ChainOfActionConfig
) -> torch.Tensor:
    """What a cold start minimises, [B, T] by token; exactly 0, its gradient too, behind the end of a chain.

    Token j has the mean over the K heads of: its distance from the action j + k, mean over A, and `latent_coef` times
    that of the hidden state from the embedding of that action, mean over d. A head that reaches behind the end counts
    0. Neither side of the latter is detached, as in the public code. What is said of the key frame counts `key_coef`
    times.

    Args:
        chained: of `ChainNet.forward` with all heads.
        chain: [B, T, A] that it was shown.
        lengths: [B] tokens of each row.
        config: which distance, and the weight.
    """
    num_heads, num_tokens = chained.means.shape[1:3]
    numbers = torch.arange(num_tokens, device=chain.device)
    total = chain.new_zeros(chain.shape[:2])
    key_frame = lengths[:, None] - 1 if config.order == "forward" else torch.zeros_like(lengths)[:, None]
    for head in range(num_heads):
        is_there = numbers + head < lengths[:, None]
        weight = torch.where(numbers + head == key_frame, config.key_coef, 1.0)
        actions, embedded = chain.roll(-head, 1), chained.embedded.roll(-head, 1)
        losses = _distance(chained.means[:, head], actions, config)
        losses = losses + config.latent_coef * _distance(chained.hidden[:, head], embedded, config)
        total = total + torch.where(is_there, weight * losses, 0.0) / num_heads
    return total


def _distance(ours: torch.Tensor, theirs: torch.Tensor, config: ChainOfActionConfig) -> torch.Tensor:
    """Mean over the last axis."""
    difference = ours - theirs
    return (difference.abs() if config.loss == "l1" else difference.square()).mean(-1)
