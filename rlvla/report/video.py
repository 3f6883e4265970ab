"""The report's videos: an episode as a small animated picture, one frame a decision.

WebP, because it is small, plays in an `<img>` and so runs nothing.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from rlvla.report.decision import Picture, look_colour

Views = Sequence[Picture]
"""What one decision saw: the picture of each camera."""
HEIGHT = 192
"""Of a frame, pixels: about what the page's column shows."""
MAX_FRAMES = 80
"""LIBERO's longest episodes have 65 decisions; of a longer one only every second, third, ... is shown."""
MAX_BYTES = 400_000
"""Of a video, before base64; frames are left out until it fits. 65 of LIBERO take 92,000, of two cameras 170,000."""
FRAME_MS, LAST_FRAME_MS = 500, 2000
QUALITY = 60
"""Of WebP, 0 to 100. The stills of the turns are without loss."""


@dataclass(frozen=True, kw_only=True)
class Video:
    """WebP files."""

    moving: bytes
    still: bytes
    """The last frame."""
    stride: int
    """Turns from one frame to the next."""


def animation(turns: Sequence[Views]) -> Video | None:
    """The video of an episode; None where it has fewer than two decisions."""
    if len(turns) < 2:
        return None
    stride = -(-len(turns) // MAX_FRAMES)
    while len(video := _encode(frames := _frames(turns, stride))) > MAX_BYTES and len(frames) > 2:
        stride *= 2
    return Video(moving=video, still=_encode(frames[-1:]), stride=stride)


def _frames(turns: Sequence[Views], stride: int) -> list[Image.Image]:
    """Every so many turns, and the last one, where the outcome shows."""
    indices = sorted({*range(0, len(turns), stride), len(turns) - 1})
    return [_frame(turns[index], (index + 1) / len(turns)) for index in indices]


def _frame(views: Views, elapsed: float) -> Image.Image:
    """The cameras side by side over a bar that grows from left to right with the share of turns that has passed."""
    pictures = [_draw(view) for view in views]
    width = sum(picture.width for picture in pictures)
    frame = Image.new("RGB", (width, HEIGHT + 4), "#15181b")
    left = 0
    for picture in pictures:
        frame.paste(picture, (left, 0))
        left += picture.width
    ImageDraw.Draw(frame).rectangle((0, HEIGHT, max(0, round(elapsed * width) - 1), HEIGHT + 3), fill="#98a2ac")
    return frame


def _draw(view: Picture) -> Image.Image:
    """A view at the video's height with its boxes, each with a dark line around it to be seen on any ground."""
    height, width = view.image.shape[:2]
    size = round(HEIGHT * width / height), HEIGHT
    # Few large pixels stay pixels, as in the stills.
    how = Image.Resampling.NEAREST if height < HEIGHT else Image.Resampling.BOX
    picture = Image.fromarray(view.image).resize(size, how)
    draw = ImageDraw.Draw(picture)
    for index, (x1, y1, x2, y2) in view.boxes.items():
        place = [x1 * size[0] / 1000, y1 * size[1] / 1000, x2 * size[0] / 1000 - 1, y2 * size[1] / 1000 - 1]
        for margin, ink, line in ((1, "#000000", 4), (0, look_colour(index), 2)):
            left, top = place[0] - margin, place[1] - margin
            draw.rectangle(
                (left, top, max(left, place[2] + margin), max(top, place[3] + margin)), outline=ink, width=line
            )
    return picture


def _encode(frames: Sequence[Image.Image]) -> bytes:
    buffer = io.BytesIO()
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    frames[0].save(
        buffer, "WEBP", save_all=True, append_images=frames[1:], duration=durations, loop=0, quality=QUALITY, method=4
    )
    return buffer.getvalue()
