"""Pictures [H, W, 3] uint8 RGB: as PNG and back, and the two ways in which a policy looks at them."""

from __future__ import annotations

import io
import itertools
import struct
import zlib

import numpy as np
from PIL import Image

from rlvla.types import Box

MAX_PIXELS = 4096 * 4096
"""Of a picture; a few kilobytes of PNG may claim to be gigabytes."""
CROP_SIDE = 0.9**0.5
"""Side of the centre crop as a share of the frame's: 0.9 of its area, `crop_scale` of OpenVLA's
experiments/robot/openvla_utils.py, `center_crop_image`."""
_MODES = ("L", "RGB", "RGBA", "P")
"""Pillow's, of 8 bits a channel."""
_NO_FILTER, _UP = 0, 2
"""PNG's filters of a row: its bytes, or what they are more than those of the row above."""


def to_png(image: np.ndarray, *, level: int = 1) -> bytes:
    """A picture as PNG.

    Pillow and OpenCV take three times as long at this level, and twenty times as long at level 0: they choose a filter
    for each row.

    Args:
        image: [H, W, 3] uint8.
        level: of zlib; 0 stores the pixels, which is the quickest to write and to read.
    """
    height, width, _ = image.shape
    pixels = image.reshape(height, 3 * width)
    rows = np.empty((height, 1 + 3 * width), np.uint8)  # a row begins with the number of its filter
    if level:
        rows[:, 0] = _UP
        rows[0, 1:] = pixels[0]
        np.subtract(pixels[1:], pixels[:-1], out=rows[1:, 1:])  # modulo 256, as PNG wants it
    else:
        rows[:, 0] = _NO_FILTER
        rows[:, 1:] = pixels
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    chunks = (_chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(rows.data, level)), _chunk(b"IEND", b""))
    return b"".join((b"\x89PNG\r\n\x1a\n", *itertools.chain(*chunks)))


def _chunk(kind: bytes, content: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    return struct.pack(">I", len(content)), kind, content, struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))


def decode(data: bytes) -> np.ndarray:
    """A PNG or JPEG of 8 bits a channel.

    Other kinds of files are refused unread: Pillow would hand some of them to other programs.

    Raises:
        ValueError: what is wrong with it.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                problem = f"is {width} x {height} pixels large, more than {MAX_PIXELS}"
            elif picture.mode not in _MODES:  # converting 16 bits to 8 would saturate
                problem = f"has mode {picture.mode}, need 8 bits a channel ({', '.join(_MODES)})"
            else:
                return np.array(picture.convert("RGB"))
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        problem = f"cannot be decoded ({error})"
    raise ValueError(f"a picture {problem}")


def box_pixels(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    """The pixels [x1, y1, x2, y2], ends exclusive, that a box of thousandths touches."""
    x1, y1, x2, y2 = box
    # -(-a // b) rounds up.
    return x1 * width // 1000, y1 * height // 1000, -(-x2 * width // 1000), -(-y2 * height // 1000)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """A copy of this size by a box filter: area mean where it shrinks, nearest where it grows."""
    if image.shape[:2] == (height, width):
        return np.array(image)
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))


def center_crop(frame: np.ndarray) -> np.ndarray:
    """The middle `CROP_SIDE` of a frame, interpolated back to its size: uint8 [H, W, 3].

    Bilinear with aligned corners and truncated to integers, as `tf.image.crop_and_resize` and
    `tf.image.convert_image_dtype` do in OpenVLA.
    """
    values = frame.astype(np.float32) / 255
    for axis in (0, 1):
        length = frame.shape[axis]
        positions = (1 - CROP_SIDE) / 2 * (length - 1) + np.arange(length) * CROP_SIDE
        low = np.floor(positions).astype(int)
        share = (positions - low).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (-1, 1))
        lower, upper = values.take(low, axis), values.take(np.minimum(low + 1, length - 1), axis)
        values = lower + share * (upper - lower)
    return (np.clip(values, 0, 1) * 255.5).astype(np.uint8)
