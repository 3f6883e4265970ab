"""What holds for every action codec and every action."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rlvla.policies.thinker.actions import BinCodec, QuantileCodec

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


@given(
    low=st.integers(-50, 50), span=st.integers(1, 50), num_bins=st.integers(4, 256), gripper=st.sampled_from([-1, 1])
)
def test_openvlas_symbols_come_back_but_for_the_last_which_has_no_interval(low, span, num_bins, gripper):
    codec = BinCodec(low=(low, -1), high=(low + span, 1), num_bins=num_bins, chunk_length=num_bins, gripper_dim=-1)
    edges = np.linspace(low, low + span, num_bins)
    actions = np.stack([edges, np.full(num_bins, gripper)], axis=1)
    symbols = codec.encode(codec.decode(codec.encode(actions)))
    first = codec.encode(actions)
    assert (symbols[::2] == np.minimum(first[::2], num_bins - 2)).all()
    assert (symbols[1::2] == first[1::2]).all()  # the gripper is not a centre: it comes back whole
    assert (np.diff(first[::2]) >= 0).all()
