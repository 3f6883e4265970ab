"""Frames of a video file by their number, decoded forwards once.

By PyAV, which brings software decoders for all that LeRobot encodes: AV1 by default, H.264, HEVC, VP9.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError

from rlvla.data.dataset import DatasetError
from rlvla.pictures import MAX_PIXELS

_LIMITS = {"format_whitelist": "mov,matroska,avi", "max_pixels": str(MAX_PIXELS)}
"""Of FFmpeg: no playlist, which would lead to other files, and no small file that claims a huge picture."""
HALF = 0.5
"""Of a frame: so near to its time is each frame of an episode, seen from its first."""
WHOLE = 0.95
"""Of a frame: times that differ by so much are of two frames; containers round them to a few hundredths."""
ON_A_FRAME = 0.1
"""Of a frame: so near to a frame's time is an episode's start where nothing but the time tells the frame."""


def decode(file: Path) -> Iterator[tuple[float, np.ndarray]]:
    """Every frame in order: (seconds since the beginning, [H, W, 3] uint8 RGB)."""
    try:
        with av.open(str(file), options=_LIMITS, metadata_errors="replace") as container:
            codec = next((stream.codec_context for stream in container.streams.video), None)
            if codec is None:
                raise DatasetError(f"{file}: holds no video that PyAV decodes")
            codec.options = _LIMITS
            for frame in container.decode(video=0):
                yield float(frame.time or 0.0), frame.to_ndarray(format="rgb24")
    except FFmpegError as error:
        raise DatasetError(f"{file}: not a video that PyAV decodes ({error})") from error


class FrameReader:
    """Stretches of frames from the videos of one camera; asked for in order, each file is decoded once."""

    def __init__(self, decoder: Callable[[Path], Iterator[tuple[float, np.ndarray]]] = decode) -> None:
        self._decoder = decoder
        self._file: Path | None = None
        self._number = 0
        """Of the frame that comes next."""
        self._frames: Iterator[tuple[float, np.ndarray]] = iter(())

    def take(self, file: Path, first: int, start_s: float, num_frames: int, fps: float) -> np.ndarray:
        """The frames of an episode.

        Args:
            file: the video.
            first: number of the first frame.
            start_s: second at which somebody says that it is; a frame off, it is another one.
            num_frames: from the first on, one every 1 / fps seconds.
            fps: frames a second.

        Returns:
            [num_frames, H, W, 3] uint8.

        Raises:
            DatasetError: a frame is missing or not at its time, so that it may be another one; or the file cannot be
                decoded. The message names the file.
        """
        if not file.is_file():
            raise DatasetError(f"{file}: this video is missing")
        if file != self._file or self._number > first:
            self._file, self._number, self._frames = file, 0, self._decoder(file)
        times, frames = zip(*(self._next(number, fps) for number in range(first, first + num_frames)), strict=True)
        if abs(times[0] - start_s) * fps >= WHOLE:
            raise DatasetError(
                f"{file}: no frame at {start_s:.3f} s, the episode's from_timestamp: by the lengths of the episodes "
                f"before it begins with frame {first}, which is at {times[0]:.3f} s"
            )
        late = np.abs((np.array(times) - times[0]) * fps - np.arange(num_frames)) >= HALF
        if late.any():
            at = int(np.argmax(late))
            raise DatasetError(
                f"{file}: no frame at {times[0] + at / fps:.3f} s: the one that should be is at {times[at]:.3f} s; "
                "frames are missing, or come at another rate than the fps of the data set"
            )
        return np.stack(frames)

    def _next(self, wanted: int, fps: float) -> tuple[float, np.ndarray]:
        """Decode on to the frame of a number."""
        for time_s, frame in self._frames:
            self._number += 1
            if self._number > wanted:
                return time_s, frame
        raise DatasetError(f"{self._file}: no frame at {wanted / fps:.3f} s: the video has {self._number} frames")


def first_frames(starts_s: Sequence[float], lengths: Sequence[int], fps: float, name: str) -> list[int]:
    """Numbers of the first frames of episodes that lie in one video, one behind the other.

    Times are sums of durations and drift (LeRobot issue 3177), lengths are exact. So an episode begins where the one
    before it ends, as long as less than a frame lies between the two by their times. Where a whole frame or more does,
    other frames lie there, and the times count; then each has to be that of a frame.

    Args:
        starts_s: seconds at which they begin, ascending.
        lengths: of the episodes, frames.
        fps: frames a second.
        name: for errors.

    Raises:
        DatasetError: times and lengths contradict each other; it begins with `name`.
    """
    times = [start_s * fps for start_s in starts_s]
    ends = [0.0, *(time + length for time, length in zip(times, lengths, strict=True))]
    if all(abs(time - end) < WHOLE for time, end in zip(times, ends, strict=False)):
        return [*itertools.accumulate(lengths[:-1], initial=0)]
    numbers = [round(time) for time in times]
    for at, (time, number) in enumerate(zip(times, numbers, strict=True)):
        if abs(time - number) > ON_A_FRAME or (at and number < numbers[at - 1] + lengths[at - 1]):
            raise DatasetError(
                f"{name}: episode {at} of the file has from_timestamp {starts_s[at]:.4f} s, which is frame {time:.2f}, "
                f"but the one before ends with frame {ends[at]:.2f}: their lengths leave it open where it begins"
            )
    return numbers
