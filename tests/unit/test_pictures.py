"""Pictures: PNG without loss; how damaged ones are refused is in test_bad_data, crops in test_demonstrations."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from rlvla.pictures import decode, to_png


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 7, 3), (5, 1, 3), (33, 20, 3)])
def test_png_is_without_loss(shape: tuple[int, int, int], level: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    turned = image[::-1, ::-1]  # as views of recorded frames are: not in the order of memory
    png = to_png(turned, level=level)
    with Image.open(io.BytesIO(png)) as read:
        assert (read.format, read.mode) == ("PNG", "RGB")
    np.testing.assert_array_equal(decode(png), turned)
    assert png == to_png(turned.copy(), level=level)
