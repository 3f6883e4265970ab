"""Weights on their way to a sampler: bucket after bucket, so that nobody holds a second copy of all of them."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class Packed:
    """A tensor as bytes: NumPy, and so Ray's store, has no bfloat16."""

    data: np.ndarray
    """uint8 [bytes]."""
    dtype: str
    """Of torch, without its `torch.`."""
    shape: tuple[int, ...]


Bucket = dict[str, Packed]
"""{name in the checkpoint: tensor}."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """All weights of a policy without an adapter."""

    names: frozenset[str]
    """In the checkpoint: all that will come."""
    buckets: Iterable[Bucket]
    """To be gone through once. Who takes one copies out of it before asking for the next, which may empty it."""
    num_alive: int = 2
    """Buckets that may be there at a time, one being made while one is taken; 1: making one takes as much beside it."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What of a model has to be there to make some weights of its checkpoint: mostly one parameter for one weight."""

    held: Mapping[str, torch.Tensor]
    """{name in the model: parameter or buffer}; under ZeRO-3 this rank's share of it."""
    names: tuple[str, ...]
    """In the checkpoint."""

    @staticmethod
    def of(parts: Sequence[Part]) -> Part:
        """Several as one."""
        held = {name: tensor for part in parts for name, tensor in part.held.items()}
        return Part(held=held, names=tuple(name for part in parts for name in part.names))

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """What ZeRO-3 cuts up."""
        return [tensor for tensor in self.held.values() if isinstance(tensor, torch.nn.Parameter)]

    @property
    def num_bytes(self) -> int:
        """Of the whole, on whichever ranks it lies."""
        return sum(getattr(t, "ds_numel", t.numel()) * t.element_size() for t in self.held.values())


def pack(tensor: torch.Tensor) -> Packed:
    """A tensor's bytes, which are its own where it lies in one piece in main memory."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return Packed(flat.view(torch.uint8).numpy(), str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))


def unpack(packed: Packed) -> torch.Tensor:
    """The tensor over the same bytes; to be read alone, as they may lie in Ray's store."""
    dtype = getattr(torch, packed.dtype)
    if not packed.data.size:
        return torch.empty(packed.shape, dtype=dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(packed.data).view(dtype).view(packed.shape)


def make_buckets(
    parts: Sequence[Part],
    num_bytes: int,
    named_weights: Callable[[Part], Iterable[tuple[str, torch.Tensor]]],
    gathered: Callable[[list[torch.nn.Parameter]], AbstractContextManager[Any]] = nullcontext,
) -> Iterator[Bucket]:
    """A model's weights in buckets of at most `num_bytes`, or of one tensor that is larger; views wherever they can be.

    Args:
        parts: of the model.
        num_bytes: of a bucket, and of the parameters that are whole at a time, but for a part that is larger.
        named_weights: `Policy.named_weights` of a part.
        gathered: a context in which some parameters are whole, see ZeRO-3.
    """
    for run in runs([part.num_bytes for part in parts], num_bytes):
        part = Part.of(parts[run])
        with gathered(part.parameters):
            named = list(named_weights(part))
            for few in runs([tensor.nbytes for _, tensor in named], num_bytes):
                # Without a name: nothing here may keep what was handed out.
                yield {name: pack(tensor) for name, tensor in named[few]}
            del named


def runs(sizes: Sequence[int], largest: int) -> list[slice]:
    """Things of these sizes cut into runs of at most `largest` together, in order; one alone may be larger."""
    cuts, total = [0], 0
    for index, size in enumerate(sizes):
        if total + size > largest and index > cuts[-1]:
            cuts.append(index)
            total = 0
        total += size
    return [slice(start, end) for start, end in itertools.pairwise([*cuts, len(sizes)])]
