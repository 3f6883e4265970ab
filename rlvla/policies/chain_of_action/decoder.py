"""Transformer layers of Chain-of-Action, and how a chain is decoded token by token.

Pre-norm, ReLU, as the public code has them. Three things differ. Positions are added to the tokens once, before the
first layer, so that values know them, too; there, DETR's manner, queries and keys get them in every layer. There is no
dropout: the policy that learns must be the one that is scored. The last layer of a chain's head has a plain
feed-forward part.

B rows, T tokens of a chain, M of the memory, d width, h heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import nn

from rlvla.config import ChainOfActionConfig
from rlvla.policies.chain_of_action.encoder import waves

KeysValues = tuple[torch.Tensor, torch.Tensor]
"""[B, h, n, d / h] each."""


class Attention(nn.Module):
    """Attention with h heads, whose keys and values can be kept."""

    def __init__(self, size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key, self.value, self.out = (nn.Linear(size, size) for _ in range(4))

    def keys_values(self, tokens: torch.Tensor) -> KeysValues:
        """Of tokens [B, n, d] that are attended to."""
        return self._by_head(self.key(tokens)), self._by_head(self.value(tokens))

    def forward(
        self, tokens: torch.Tensor, seen: KeysValues, *, mask: torch.Tensor | None = None, is_causal: bool = False
    ) -> torch.Tensor:
        """[B, n, d] -> [B, n, d]; `mask` is True where a key of `seen` counts and broadcasts to [B, h, n, keys]."""
        query, (key, value) = self._by_head(self.query(tokens)), seen
        heads = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=is_causal)
        return self.out(heads.transpose(1, 2).flatten(2))

    def _by_head(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class FeedForward(nn.Sequential):
    """Two linear layers and a ReLU."""

    def __init__(self, size: int, hidden_size: int) -> None:
        super().__init__(nn.Linear(size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, size))


class EncoderLayer(nn.Module):
    """Tokens of the memory see each other."""

    def __init__(self, config: ChainOfActionConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.norm, self.attention = nn.LayerNorm(size), Attention(size, config.num_heads)
        self.ffn_norm, self.ffn = nn.LayerNorm(size), FeedForward(size, config.ffn_size)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[B, M, d] -> [B, M, d]."""
        normed = self.norm(tokens)
        tokens = tokens + self.attention(normed, self.attention.keys_values(normed))
        return tokens + self.ffn(self.ffn_norm(tokens))


@dataclass(slots=True)
class LayerState:
    """What a layer keeps of a chain that is decoded token by token."""

    memory: KeysValues
    chain: KeysValues | None = None
    """Of the tokens so far."""

    def add(self, new: KeysValues) -> KeysValues:
        """Keys and values of all tokens so far, one more among them."""
        if self.chain is not None:
            new = torch.cat([self.chain[0], new[0]], dim=2), torch.cat([self.chain[1], new[1]], dim=2)
        self.chain = new
        return new


class DecoderLayer(nn.Module):
    """Each token of a chain sees those before it, and the memory."""

    def __init__(self, config: ChainOfActionConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.norm, self.attention = nn.LayerNorm(size), Attention(size, config.num_heads)
        self.memory_norm, self.memory_attention = nn.LayerNorm(size), Attention(size, config.num_heads)
        self.ffn_norm, self.ffn = nn.LayerNorm(size), FeedForward(size, config.ffn_size)

    def begin(self, memory: torch.Tensor) -> LayerState:
        """What the layer keeps of a memory [B, M, d]."""
        return LayerState(memory=self.memory_attention.keys_values(memory))

    def forward(self, tokens: torch.Tensor, state: LayerState, *, is_next: bool) -> torch.Tensor:
        """[B, T, d] -> [B, T, d]: a whole chain; with `is_next`, [B, 1, d], the token after those of `state`."""
        normed = self.norm(tokens)
        own = self.attention.keys_values(normed)
        seen = state.add(own) if is_next else own
        tokens = tokens + self.attention(normed, seen, is_causal=not is_next)
        tokens = tokens + self.memory_attention(self.memory_norm(tokens), state.memory)
        return tokens + self.ffn(self.ffn_norm(tokens))


class Memory(NamedTuple):
    """What a chain is decoded from."""

    tokens: torch.Tensor
    """[B, M, d]; none is padding."""
    places: torch.Tensor | None
    """[B, d] where in the pictures something is; the first position of a chain has it added."""


@dataclass(slots=True)
class DecodingState:
    """A chain that is decoded token by token; `ChainDecoder.next` adds to it."""

    start: torch.Tensor
    """[B, 1, d]."""
    layers: list[LayerState]
    num_tokens: int = 0


class ChainDecoder(nn.Module):
    """Embedded actions so far -> hidden states of those to come; the first position reads a learned start."""

    def __init__(self, config: ChainOfActionConfig) -> None:
        super().__init__()
        self.start = nn.Embedding(1, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.heads = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_future))
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, memory: Memory, embedded: torch.Tensor, num_heads: int) -> torch.Tensor:
        """Teacher-forced: [B, T, d] embedded actions -> [B, num_heads, T, d].

        Position j sees the actions before j; head k says of it what comes k actions after the next.
        """
        tokens = torch.cat([self._start(memory), embedded[:, :-1]], dim=1)
        tokens = tokens + self._positions(0, tokens)
        for layer in _typed(self.layers):
            tokens = layer(tokens, layer.begin(memory.tokens), is_next=False)
        heads = [head(tokens, head.begin(memory.tokens), is_next=False) for head in _typed(self.heads)[:num_heads]]
        return self.norm(torch.stack(heads, dim=1))

    def begin(self, memory: Memory) -> DecodingState:
        """Nothing decoded yet."""
        return DecodingState(start=self._start(memory), layers=[layer.begin(memory.tokens) for layer in self._acting])

    def next(self, state: DecodingState, fed: torch.Tensor | None) -> torch.Tensor:
        """[B, d] of the action before, None of the first -> [B, d] hidden state of the next."""
        tokens = state.start if fed is None else fed[:, None]
        tokens = tokens + self._positions(state.num_tokens, tokens)
        for layer, kept in zip(self._acting, state.layers, strict=True):
            tokens = layer(tokens, kept, is_next=True)
        state.num_tokens += 1
        return self.norm(tokens[:, 0])

    @property
    def _acting(self) -> list[DecoderLayer]:
        """Layers that the next token goes through."""
        return _typed(self.layers) + _typed(self.heads)[:1]

    def _start(self, memory: Memory) -> torch.Tensor:
        """[B, 1, d], what the first position reads."""
        numbers = torch.zeros(len(memory.tokens), 1, dtype=torch.long, device=memory.tokens.device)
        start = self.start(numbers)
        return start if memory.places is None else start + memory.places[:, None]

    @staticmethod
    def _positions(first: int, tokens: torch.Tensor) -> torch.Tensor:
        """[T, d] of positions from `first` on."""
        numbers = torch.arange(first, first + tokens.shape[1], device=tokens.device)
        return waves(numbers, tokens.shape[2]).to(tokens.dtype)


def _typed(layers: nn.ModuleList) -> list[DecoderLayer]:
    """What a list of modules does not say of them."""
    return cast(list[DecoderLayer], [*layers])
