"""Frames of a video file by their time, decoded forwards once.

PyAV where it is installed: it brings software decoders for H.264, HEVC, VP9 and AV1. Else OpenCV, whose wheels decode
H.264, HEVC, MPEG-4 and VP9, but AV1 (what LeRobot encodes by default) only on hardware.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from rlvla.dataset import DatasetError
from rlvla.dataset_rows import MAX_PIXELS

_LIMITS = {"format_whitelist": "mov,matroska,avi", "max_pixels": str(MAX_PIXELS)}
"""Of FFmpeg: no playlist, which would lead to other files, and no small file that claims a huge picture."""


def decode(file: Path) -> Iterator[tuple[float, np.ndarray]]:
    """Every frame in order: (seconds since the beginning, [H, W, 3] uint8 RGB)."""
    return decode_pyav(file) if importlib.util.find_spec("av") else decode_opencv(file)


def decode_pyav(file: Path) -> Iterator[tuple[float, np.ndarray]]:
    """`decode` by PyAV."""
    import av
    from av.error import FFmpegError

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


def decode_opencv(file: Path) -> Iterator[tuple[float, np.ndarray]]:
    """`decode` by OpenCV."""
    import cv2

    capture = cv2.VideoCapture(str(file))
    try:
        is_read, image = capture.read()
        if not is_read:
            # -1 or 0 where the file is no video at all
            number = int(capture.get(cv2.CAP_PROP_FOURCC)) if capture.isOpened() else 0
            codec = number.to_bytes(4, "little").decode("latin-1").strip("\0")
            raise DatasetError(
                f"{file}: OpenCV cannot decode this video (codec {codec or 'unknown'}). AV1 needs PyAV: install av; "
                "or convert the file: ffmpeg -i in.mp4 -c:v libx264 -crf 12 out.mp4"
            )
        while is_read:
            yield capture.get(cv2.CAP_PROP_POS_MSEC) / 1000, cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
            is_read, image = capture.read()
    finally:
        capture.release()


class FrameReader:
    """Stretches of frames from the videos of one camera; asked for in order, each file is decoded once."""

    def __init__(self, decoder: Callable[[Path], Iterator[tuple[float, np.ndarray]]] = decode) -> None:
        self._decoder = decoder
        self._file: Path | None = None
        self._time = 0.0
        self._frames: Iterator[tuple[float, np.ndarray]] = iter(())

    def take(self, file: Path, start_s: float, num_frames: int, fps: float) -> np.ndarray:
        """The frames at `start_s`, `start_s + 1 / fps`, ..., each within half a frame.

        Returns:
            [num_frames, H, W, 3] uint8.

        Raises:
            DatasetError: a frame is missing, or the file cannot be decoded; the message names the file.
        """
        if not file.is_file():
            raise DatasetError(f"{file}: this video is missing")
        slack_s = 0.5 / fps
        if file != self._file or self._time > start_s - slack_s:
            self._file, self._time, self._frames = file, -np.inf, self._decoder(file)
        return np.stack([self._next(start_s + number / fps, slack_s) for number in range(num_frames)])

    def _next(self, wanted_s: float, slack_s: float) -> np.ndarray:
        """Decode on to the frame at a time."""
        for time_s, frame in self._frames:
            self._time = time_s
            if time_s > wanted_s + slack_s:
                break
            if time_s > wanted_s - slack_s:
                return frame
        raise DatasetError(f"{self._file}: no frame at {wanted_s:.3f} s")
