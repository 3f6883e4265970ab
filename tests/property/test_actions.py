"""What holds for every action codec and every action."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rlvla.actions import QuantileCodec

VALUES = st.floats(-1e6, 1e6, width=32)
DATA = hnp.arrays(np.float32, st.tuples(st.integers(1, 30), st.integers(1, 7)), elements=VALUES)
BINS = st.integers(2, 256)


@given(data=DATA, num_bins=BINS)
def test_round_trip_is_within_half_a_bin_of_the_clipped_action(data, num_bins):
    codec = QuantileCodec.fit(data, num_bins, chunk_length=len(data))
    low, high = np.array(codec.low), np.array(codec.high)
    error = np.abs(codec.decode(codec.encode(data)) - np.clip(data.astype(np.float64), low, high))
    rounding = np.spacing(np.maximum(np.abs(low), np.abs(high)).astype(np.float32))  # decode returns float32
    assert (error <= (high - low) / num_bins / 2 + rounding).all()


@given(data=hnp.arrays(np.float32, (20, 3), elements=st.integers(-50, 50)), num_bins=BINS)
def test_encoding_a_decoded_chunk_gives_its_symbols_back(data, num_bins):
    codec = QuantileCodec.fit(data, num_bins, chunk_length=len(data))
    symbols = codec.encode(data)
    assert (codec.encode(codec.decode(symbols)) == symbols).all()


@given(data=DATA, num_bins=BINS, signs=st.lists(st.booleans(), min_size=30, max_size=30))
def test_a_binary_gripper_round_trips_exactly(data, num_bins, signs):
    data = data.copy()
    data[:, -1] = np.where(signs[: len(data)], 1.0, -1.0)
    codec = QuantileCodec.fit(data, num_bins, chunk_length=len(data), gripper_dim=-1)
    assert (codec.decode(codec.encode(data))[:, -1] == data[:, -1]).all()


@given(data=DATA, num_bins=BINS)
def test_symbols_are_monotone_in_the_action(data, num_bins):
    codec = QuantileCodec.fit(data, num_bins, chunk_length=len(data))
    in_order = np.sort(data, axis=0)
    assert (np.diff(codec.encode(in_order).reshape(data.shape), axis=0) >= 0).all()
