"""The action codec on numbers that can be checked by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rlvla.actions import QuantileCodec


def codec(**changes) -> QuantileCodec:
    fields = {"low": (0.0, -1.0), "high": (8.0, 1.0), "num_bins": 4, "chunk_length": 1, "gripper_dim": None}
    return QuantileCodec(**{**fields, **changes})


def test_bins_are_equal_parts_and_decode_to_their_centres():
    four_bins = codec(chunk_length=4)
    actions = np.array([[0.5, -1.0], [2.0, -0.5], [5.9, 0.0], [8.0, 1.0]])
    symbols = four_bins.encode(actions)
    assert symbols.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert four_bins.decode(symbols).tolist() == [[1, -0.75], [3, -0.25], [5, 0.25], [7, 0.75]]
    assert four_bins.decode(symbols).dtype == np.float32


def test_values_out_of_range_are_clipped():
    assert codec().encode(np.array([[-100.0, 100.0]])).tolist() == [0, 3]


def test_gripper_decodes_to_exactly_open_or_closed():
    gripper = codec(gripper_dim=-1, chunk_length=4)
    decoded = gripper.decode(np.array([0, 0, 0, 1, 0, 2, 0, 3]))
    assert decoded[:, 1].tolist() == [-1, -1, 1, 1]
    assert gripper.encode(np.array([[0, -1.0], [0, 1.0], [0, 1.0], [0, -1.0]]))[1::2].tolist() == [0, 3, 3, 0]


def test_gripper_range_survives_a_rare_state():
    actions = np.zeros((1000, 2))
    actions[:, 1] = -1
    actions[0, 1] = 1  # closed once in 1000 steps: no quantile sees it
    assert QuantileCodec.fit(actions, 64, 5, gripper_dim=1).high == (0.0, 1.0)


def test_fit_takes_the_first_and_the_last_percentile():
    actions = np.arange(101.0)[:, None]
    fitted = QuantileCodec.fit(actions, num_bins=98, chunk_length=1)
    assert (fitted.low, fitted.high) == ((1.0,), (99.0,))


def test_constant_dimension_round_trips_exactly():
    fitted = QuantileCodec.fit(np.full((10, 1), 0.3), 64, 2)
    assert fitted.decode(fitted.encode(np.full((2, 1), 0.3))).tolist() == [[np.float32(0.3)]] * 2


def test_json_round_trip():
    fitted = codec(gripper_dim=1)
    assert QuantileCodec.from_dict(json.loads(json.dumps(fitted.to_dict()))) == fitted


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_actions_name_the_dimension(bad):
    with pytest.raises(ValueError, match="dimension 1"):
        codec().encode(np.array([[0.0, bad]]))
    with pytest.raises(ValueError, match="dimension 1"):
        QuantileCodec.fit(np.array([[0.0, bad]]), 4, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: codec().encode(np.zeros((2, 2))), r"shape \[2, 2\]"),
        (lambda: codec().decode(np.zeros(3, int)), r"\[3\] symbols"),
        (lambda: codec().decode(np.array([0, 4])), r"0\.\.4"),
        (lambda: codec(gripper_dim=2), "gripper_dim is 2"),
        (lambda: codec(num_bins=1), "num_bins is 1"),
        (lambda: codec(low=(9.0, -1.0)), "dimension 0"),
        (lambda: QuantileCodec.fit(np.zeros((0, 2)), 4, 1), r"\[0, 2\]"),
        (lambda: QuantileCodec.from_dict({**codec().to_dict(), "bins": 1}), "bins"),
    ],
)
def test_errors_name_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
