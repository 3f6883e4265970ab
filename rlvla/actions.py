"""Continuous action chunks <-> discrete bins, OpenVLA's scheme (arXiv 2406.09246, section 3.2).

Each dimension's range between the 1st and the 99th percentile of the training actions is cut into `num_bins` equal
bins; what lies outside is clipped. The quantiles travel with the checkpoint: decoding with others is a silent error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

QUANTILES = (0.01, 0.99)
"""Robust against the few outliers that teleoperation records (OpenVLA)."""


@dataclass(frozen=True, kw_only=True)
class QuantileCodec:
    """An `ActionCodec` over the range of the training actions."""

    low: tuple[float, ...]
    """[A] 1st percentile of each dimension, simulator units; the gripper's: its smallest value."""
    high: tuple[float, ...]
    """[A] 99th percentile of each dimension, simulator units; the gripper's: its largest value."""
    num_bins: int
    """Symbols are 0..num_bins-1."""
    chunk_length: int
    """K."""
    gripper_dim: int | None = None
    """Dimension that decodes to exactly its low or its high, nothing between; negative counts from the end."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the field that makes no codec."""
        if len(self.low) != len(self.high) or not self.low:
            raise ValueError(f"low has {len(self.low)} dimensions and high {len(self.high)}: need the same, at least 1")
        for dim, (low, high) in enumerate(zip(self.low, self.high, strict=True)):
            if not (np.isfinite(low) and np.isfinite(high) and low <= high):
                raise ValueError(f"dimension {dim} ranges from {low} to {high}: need finite low <= high")
        if self.num_bins < 2 or self.chunk_length < 1:
            raise ValueError(f"num_bins is {self.num_bins} (at least 2), chunk_length {self.chunk_length} (at least 1)")
        _gripper_index(self.gripper_dim, len(self.low))

    @classmethod
    def fit(
        cls, actions: np.ndarray, num_bins: int, chunk_length: int, gripper_dim: int | None = None
    ) -> QuantileCodec:
        """The codec of these training actions.

        Args:
            actions: [M, A] single steps, simulator units.
            num_bins: bins per dimension.
            chunk_length: K.
            gripper_dim: dimension that is open or closed; its range is [min, max], since one of the two may be rare.

        Raises:
            ValueError: `actions` is empty, not [M, A], or not finite; the message names the dimension.
        """
        actions = np.asarray(actions, np.float64)
        if actions.ndim != 2 or 0 in actions.shape:
            raise ValueError(f"actions must be [M, A] with at least one row, got {list(actions.shape)}")
        _check_finite(actions)
        low, high = np.quantile(actions, QUANTILES, axis=0)
        gripper = _gripper_index(gripper_dim, actions.shape[1])
        if gripper is not None:
            low[gripper], high[gripper] = actions[:, gripper].min(), actions[:, gripper].max()
        return cls(
            low=tuple(low.tolist()),
            high=tuple(high.tolist()),
            num_bins=num_bins,
            chunk_length=chunk_length,
            gripper_dim=gripper_dim,
        )

    @property
    def chunk_shape(self) -> tuple[int, int]:
        """(K, A)."""
        return self.chunk_length, len(self.low)

    def encode(self, actions: np.ndarray) -> np.ndarray:
        """[K, A] simulator units -> [K * A] int64 bins, step after step; values out of range are clipped.

        Raises:
            ValueError: another shape, or a value that is NaN or infinite; the message names the dimension.
        """
        actions = np.asarray(actions, np.float64)
        if actions.shape != self.chunk_shape:
            raise ValueError(f"actions have shape {list(actions.shape)}, this codec takes {list(self.chunk_shape)}")
        _check_finite(actions)
        low, width = self._bins()
        # A constant dimension has no width: all of it is bin 0.
        bins = np.floor((np.clip(actions, low, self.high) - low) / np.where(width > 0, width, 1.0))
        return np.clip(bins, 0, self.num_bins - 1).astype(np.int64).reshape(-1)

    def decode(self, symbols: np.ndarray) -> np.ndarray:
        """[K * A] bins -> [K, A] float32, the centre of each bin in simulator units.

        Raises:
            ValueError: another number of symbols, or one outside 0..num_bins-1.
        """
        symbols = np.asarray(symbols)
        if symbols.shape != (self.chunk_length * len(self.low),):
            raise ValueError(
                f"got {list(symbols.shape)} symbols, a chunk of {list(self.chunk_shape)} has their product"
            )
        if symbols.min() < 0 or symbols.max() >= self.num_bins:
            raise ValueError(f"symbols range {symbols.min()}..{symbols.max()}, bins 0..{self.num_bins - 1}")
        bins = symbols.reshape(self.chunk_shape)
        low, width = self._bins()
        actions = np.where(width > 0, low + (bins + 0.5) * width, low)
        gripper = _gripper_index(self.gripper_dim, len(self.low))
        if gripper is not None:
            is_high = bins[:, gripper] >= self.num_bins / 2
            actions[:, gripper] = np.where(is_high, self.high[gripper], self.low[gripper])
        return actions.astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able fields."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> QuantileCodec:
        """Inverse of `to_dict`; raises ValueError naming the fields that are missing or unknown."""
        names = {field.name for field in dataclasses.fields(cls)}
        if wrong := names.symmetric_difference(fields):
            raise ValueError(f"codec fields missing or unknown: {', '.join(sorted(wrong))}")
        return cls(**{**fields, "low": tuple(fields["low"]), "high": tuple(fields["high"])})

    def _bins(self) -> tuple[np.ndarray, np.ndarray]:
        """[A] start of the first bin, [A] width of each bin."""
        low, high = np.array(self.low), np.array(self.high)
        return low, high / self.num_bins - low / self.num_bins


def _gripper_index(gripper_dim: int | None, num_dims: int) -> int | None:
    if gripper_dim is None:
        return None
    if not -num_dims <= gripper_dim < num_dims:
        raise ValueError(f"gripper_dim is {gripper_dim}, actions have {num_dims} dimensions")
    return gripper_dim % num_dims


def _check_finite(actions: np.ndarray) -> None:
    bad = np.flatnonzero(~np.isfinite(actions).all(axis=0))
    if bad.size:
        raise ValueError(f"action dimension {bad[0]} holds NaN or infinity")
