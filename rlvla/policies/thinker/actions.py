"""Continuous action chunks <-> discrete bins, OpenVLA's scheme (arXiv 2406.09246, section 3.2).

Each dimension's range between the 1st and the 99th percentile of the training actions is cut into `num_bins` equal
bins; what lies outside is clipped. The quantiles travel with the checkpoint: decoding with others is a silent error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import TypeAdapter

MAX_BINS, MAX_CHUNK = 65_536, 10_000
"""A checkpoint from elsewhere must not make us list the tokens of a billion bins."""
NUM_BINS = 64
"""Of a policy that has no action tokens yet, where nobody says how many."""
QUANTILES = (0.01, 0.99)
"""Robust against the few outliers that teleoperation records (OpenVLA)."""
StatisticsKind = Literal["bounds_q99", "bounds"]
"""What OpenVLA's -1 and 1 stand for: 1st and 99th percentile, or least and largest value (openvla-oft
prismatic/vla/constants.py: LIBERO and Bridge have the former, ALOHA, which RoboTwin runs follow, the latter)."""
_BOUNDS = {"bounds_q99": ("q01", "q99"), "bounds": ("min", "max")}

_MAX_ACTION = float(np.finfo(np.float32).max)


@dataclass(frozen=True, kw_only=True)
class QuantileCodec:
    """Symbols over the range of the training actions."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    kind: str = "quantile"
    """Its name in a checkpoint."""
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
            if not -_MAX_ACTION <= low <= high <= _MAX_ACTION:  # never true of NaN
                raise ValueError(f"dimension {dim} ranges from {low} to {high}: need finite float32 low <= high")
        if not (2 <= self.num_bins <= MAX_BINS and 1 <= self.chunk_length <= MAX_CHUNK):
            raise ValueError(
                f"num_bins is {self.num_bins} (2 to {MAX_BINS}), chunk_length {self.chunk_length} (1 to {MAX_CHUNK})"
            )
        _gripper_index(self.gripper_dim, len(self.low))

    @classmethod
    def fit(
        cls, actions: np.ndarray, num_bins: int, chunk_length: int, gripper_dim: int | None = None
    ) -> QuantileCodec:
        """The codec of training actions [M, A], single steps in simulator units.

        The range of `gripper_dim`, open or closed, is [min, max], since one of the two may be rare.

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
        return self._to_bins(actions).astype(np.int64).reshape(-1)

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
        return self._to_actions(symbols.reshape(self.chunk_shape)).astype(np.float32)

    def _to_bins(self, actions: np.ndarray) -> np.ndarray:
        """[K, A] simulator units, finite -> [K, A] bins."""
        low, width = self._bins(self.num_bins)
        # A constant dimension has no width: all of it is bin 0.
        bins = np.floor((np.clip(actions, low, self.high) - low) / np.where(width > 0, width, 1.0))
        return np.clip(bins, 0, self.num_bins - 1)

    def _to_actions(self, bins: np.ndarray) -> np.ndarray:
        """[K, A] bins -> [K, A] simulator units."""
        actions = self._centres(bins, self.num_bins)
        gripper = _gripper_index(self.gripper_dim, len(self.low))
        if gripper is not None:
            is_high = bins[:, gripper] >= self.num_bins / 2
            actions[:, gripper] = np.where(is_high, self.high[gripper], self.low[gripper])
        return actions

    def _centres(self, bins: np.ndarray, num_intervals: int) -> np.ndarray:
        """[K, A] intervals -> [K, A] their centres."""
        low, width = self._bins(num_intervals)
        return np.where(width > 0, low + (bins + 0.5) * width, low)

    def _bins(self, num_intervals: int) -> tuple[np.ndarray, np.ndarray]:
        """[A] start of the first interval, [A] width of each."""
        low, high = np.array(self.low), np.array(self.high)
        return low, high / num_intervals - low / num_intervals


@dataclass(frozen=True, kw_only=True)
class BinCodec(QuantileCodec):
    """A codec whose symbols mean what published OpenVLA checkpoints mean by their action tokens.

    OpenVLA places `num_bins` edges, not bins, at equal distances from -1 to 1 of a normalised dimension: they enclose
    `num_bins - 1` intervals, and the last symbol is the upper edge alone. It decodes to the interval below it, but
    training data hold it wherever an action reaches the edge, above all for an open gripper
    (openvla prismatic/vla/action_tokenizer.py, modeling_prismatic.py `predict_action`).

    `low` and `high` are what a dimension's -1 and 1 stand for; -1 and 1 themselves where it is not normalised.
    `gripper_dim` is 1 when open and 0 when closed in OpenVLA's data, -1 and 1 in the simulator (robosuite); None leaves
    the last dimension as it is (openvla-oft experiments/robot/robot_utils.py).
    """

    kind: str = "openvla"

    @classmethod
    def from_norm_stats(
        cls,
        norm_stats: Mapping[str, Any],
        key: str | None = None,
        *,
        num_bins: int = 256,
        chunk_length: int,
        gripper_dim: int | None = None,
        kind: StatisticsKind = "bounds_q99",
    ) -> BinCodec:
        """The codec of a data set that a checkpoint was trained on, by its key, or of the only one that there is.

        `norm_stats` are those of its config.json or dataset_statistics.json: of each data set `action` with `q01` and
        `q99` [A], or `min` and `max` [A], and `mask` [A], False where a dimension is not normalised. `num_bins` are
        edges, OpenVLA's `n_action_bins`.

        Raises:
            ValueError: there is no such data set or statistic, the message names those that there are; or they are of
                a wrong type.
        """
        names = ", ".join(sorted(norm_stats)) or "none"
        if key is None and len(norm_stats) != 1:
            raise ValueError(f"name one of the checkpoint's data sets: {names}")
        key = next(iter(norm_stats)) if key is None else key
        if key not in norm_stats:
            raise ValueError(f"the checkpoint has no statistics of {key!r}; it has those of {names}")
        stats = _STATISTICS.validate_python(norm_stats[key]).action
        bounds = _BOUNDS[kind]
        if missing := [name for name in bounds if name not in stats]:
            raise ValueError(f"the statistics of {key!r} lack {', '.join(missing)} of the actions")
        low, high = (_ROW.validate_python(stats[name]) for name in bounds)
        mask = _MASK.validate_python(stats.get("mask", (True,) * len(low)))
        if not len(low) == len(high) == len(mask):
            raise ValueError(
                f"the statistics of {key!r} have {len(low)} {bounds[0]}, {len(high)} {bounds[1]} and {len(mask)} mask"
            )
        return cls(
            low=tuple(value if is_on else -1.0 for value, is_on in zip(low, mask, strict=True)),
            high=tuple(value if is_on else 1.0 for value, is_on in zip(high, mask, strict=True)),
            num_bins=num_bins,
            chunk_length=chunk_length,
            gripper_dim=gripper_dim,
        )

    def _to_bins(self, actions: np.ndarray) -> np.ndarray:
        gripper = _gripper_index(self.gripper_dim, len(self.low))
        if gripper is not None:
            actions = _openvla_gripper(actions, gripper)
        low, width = self._bins(1)
        # OpenVLA's data loader writes 0 into a dimension that is constant (rlds/utils/data_utils.py).
        normalised = np.where(width > 0, 2 * (actions - low) / np.where(width > 0, width, 1.0) - 1, 0.0)
        # `digitize` on the very edges that OpenVLA uses: an action on an edge falls on the same side of it.
        return np.digitize(np.clip(normalised, -1, 1), np.linspace(-1, 1, self.num_bins)) - 1

    def _to_actions(self, bins: np.ndarray) -> np.ndarray:
        actions = self._centres(np.minimum(bins, self.num_bins - 2), self.num_bins - 1)
        gripper = _gripper_index(self.gripper_dim, len(self.low))
        if gripper is not None:
            actions[:, gripper] = np.where(actions[:, gripper] > 0.5, -1.0, 1.0)
        return actions


@dataclass(frozen=True, kw_only=True)
class _Statistics:
    """Of one data set, in so far as they are read."""

    action: dict[str, Any] = dataclasses.field(default_factory=dict)


_STATISTICS = TypeAdapter(_Statistics)
_ROW = TypeAdapter(tuple[float, ...])
_MASK = TypeAdapter(tuple[bool, ...])
_CODECS = {cls.kind: TypeAdapter[QuantileCodec](cls) for cls in (QuantileCodec, BinCodec)}


def statistics_of(actions: np.ndarray, gripper_dim: int | None = None) -> dict[str, list[Any]]:
    """The statistics of training actions [M, A] as OpenVLA's fine-tuning writes them, `action` of a data set.

    `mean`, `std`, `min`, `max`, `q01`, `q99` and `mask`, [A] each. `gripper_dim` is open at -1 and closed at 1 in the
    simulator; it is kept in OpenVLA's convention, and not normalised (`mask`), as its LIBERO data have it.

    Raises:
        ValueError: an action is not finite; the message names the dimension.
    """
    actions = np.asarray(actions, np.float64)
    _check_finite(actions)
    gripper = _gripper_index(gripper_dim, actions.shape[1])
    if gripper is not None:
        actions = _openvla_gripper(actions, gripper)
    low, high = np.quantile(actions, QUANTILES, axis=0)
    rows = {"mean": actions.mean(0), "std": actions.std(0), "min": actions.min(0), "max": actions.max(0)}
    rows |= {"q01": low, "q99": high}
    mask = [dim != gripper for dim in range(actions.shape[1])]
    return {name: row.tolist() for name, row in rows.items()} | {"mask": mask}


def read_codec(fields: Any) -> Any:
    """A codec from its fields, without a `kind` a QuantileCodec; what is no mapping stays as it is.

    Raises:
        ValueError: the kind is unknown, or fields are missing, unknown or of a wrong type; the message names them.
    """
    if not isinstance(fields, Mapping):
        return fields
    kind = fields.get("kind", QuantileCodec.kind)
    if kind not in _CODECS:
        raise ValueError(f"the action codec is of kind {kind!r}; known are {', '.join(_CODECS)}")
    return _CODECS[kind].validate_python(dict(fields))


def _openvla_gripper(actions: np.ndarray, gripper: int) -> np.ndarray:
    """[M, A] with the gripper from robosuite's -1 open, 1 closed to OpenVLA's 1 open, 0 closed."""
    actions = actions.copy()
    actions[:, gripper] = (1 - actions[:, gripper]) / 2
    return actions


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
