"""Videos whose frames are told apart by their grey, and such as are none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from rlvla.data.dataset import DatasetError
from rlvla.data.read_video import FrameReader, decode, first_frames
from tests.unit.recorded import FPS, write_video

GREYS = np.arange(10, 250, 20)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    frames = np.full((len(GREYS), 64, 64, 3), GREYS[:, None, None, None], np.uint8)
    frames[..., 2] = 0  # so that a swap of red and blue shows
    write_video(tmp_path / "v.mp4", frames)
    return tmp_path / "v.mp4"


def test_frames_come_with_their_times_and_colours(video: Path) -> None:
    times, frames = zip(*decode(video), strict=True)
    assert list(times) == pytest.approx(np.arange(len(GREYS)) / FPS, abs=1e-3)
    middle = np.array([frame[32, 32] for frame in frames]).astype(int)
    assert np.abs(middle[:, 0] - GREYS).max() <= 8
    assert middle[:, 2].max() <= 12


def test_stretches_are_found_forwards_backwards_and_with_gaps(video: Path) -> None:
    reader = FrameReader()
    for first, number in ((0, 3), (3, 2), (8, 4), (1, 2), (1, 2)):
        greys = reader.take(video, first, first / FPS, number, FPS)[:, 32, 32, 0].astype(int)
        assert np.abs(greys - GREYS[first : first + number]).max() <= 8


def test_a_file_is_decoded_once_for_all_its_episodes(video: Path) -> None:
    opened = []

    def counting(file: Path) -> Iterator[tuple[float, np.ndarray]]:
        opened.append(file)
        return decode(file)

    reader = FrameReader(counting)
    for first in (0, 4, 8):
        reader.take(video, first, first / FPS, 4, FPS)
    assert opened == [video]


def film(times: Sequence[float]) -> FrameReader:
    """A reader of a video whose frame i shows i and is at `times[i]`, in frames."""

    def frames(file: Path) -> Iterator[tuple[float, np.ndarray]]:
        for number, time in enumerate(times):
            yield time / FPS, np.full((2, 2, 3), number, np.uint8)

    return FrameReader(frames)


def taken(reader: FrameReader, file: Path, first: int, start: float, number: int) -> list[int]:
    return reader.take(file, first, start / FPS, number, FPS)[:, 0, 0, 0].tolist()


def test_a_number_says_which_frame_whatever_the_container_rounds(video: Path) -> None:
    drifting = film([number * 1.02 for number in range(60)])
    assert taken(drifting, video, 0, 0, 5) == [0, 1, 2, 3, 4]
    assert taken(drifting, video, 50, 50.3, 5) == [50, 51, 52, 53, 54]  # at 51 of the clock


def test_frames_that_may_be_others_are_refused(video: Path) -> None:
    lost = [0, 1, 2, 4, 5, 6, 7, 8]  # the fourth is not there
    with pytest.raises(DatasetError, match=r"v\.mp4: no frame at 0\.300 s: the one that should be is at 0\.400 s"):
        taken(film(lost), video, 0, 0, 5)
    with pytest.raises(DatasetError, match=r"v\.mp4: no frame at 0\.500 s, the episode's from_timestamp"):
        taken(film(lost), video, 5, 5, 2)
    with pytest.raises(DatasetError, match=r"v\.mp4: no frame at 0\.800 s: the video has 8 frames"):
        taken(film(range(8)), video, 7, 7, 2)


@pytest.mark.parametrize(
    ("starts", "numbers"),
    [
        ([0, 6, 12, 18], [0, 6, 12, 18]),
        ([0, 6.3, 11.4, 18], [0, 6, 12, 18]),  # late, then early
        ([0, 6.8, 13.6, 20.4], [0, 6, 12, 18]),  # ever later: durations that were added up
        ([5, 11, 20, 30], [5, 11, 20, 30]),  # episodes between them are not listed
        ([0.04, 6.02, 20.01, 25.97], [0, 6, 20, 26]),
    ],
)
def test_episodes_begin_where_the_ones_before_them_end(starts: list[float], numbers: list[int]) -> None:
    assert first_frames([start / FPS for start in starts], [6, 6, 6, 6], FPS, "v") == numbers


@pytest.mark.parametrize(
    ("starts", "message"),
    [
        ([0, 6, 20.4, 26.4], r"v: episode 2 of the file has from_timestamp 2\.0400 s, which is frame 20\.40, but"),
        ([0, 6, 11, 17], r"v: episode 2 .* frame 11\.00, but the one before ends with frame 12\.00"),
    ],
)
def test_starts_that_contradict_the_lengths_are_refused(starts: list[float], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        first_frames([start / FPS for start in starts], [6, 6, 6, 6], FPS, "v")


def sound_alone(file: Path, video: bytes) -> None:
    with av.open(str(file), "w") as container:
        stream: Any = container.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        container.mux([*stream.encode(frame), *stream.encode(None)])


def huge(file: Path, video: bytes) -> None:
    """A small file of pictures of 17 million pixels."""
    with av.open(str(file), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 4096, 4112, "yuv420p"
        container.mux([*stream.encode(av.VideoFrame(4096, 4112, "yuv420p")), *stream.encode(None)])


def unknown_codec(file: Path, video: bytes) -> None:
    assert b"mp4v" in video
    file.write_bytes(video.replace(b"mp4v", b"zzzz").replace(b"esds", b"free"))  # either names the codec


def playlist(file: Path, video: bytes) -> None:
    """It would lead to another file."""
    file.write_text("ffconcat version 1.0\nfile v.mp4\n")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (sound_alone, "holds no video that PyAV decodes"),
        (unknown_codec, "holds no video that PyAV decodes"),
        (huge, "not a video that PyAV decodes"),
        (playlist, "not a video that PyAV decodes"),
    ],
)
def test_a_video_that_is_none_is_refused(video: Path, write: Callable[[Path, bytes], None], message: str) -> None:
    file = video.with_name("none.mp4")
    write(file, video.read_bytes())
    with pytest.raises(DatasetError, match=rf"none\.mp4: {message}"):
        list(decode(file))


def test_a_title_in_another_encoding_does_no_harm(video: Path) -> None:
    named = video.with_name("named.mp4")
    content = video.read_bytes()
    assert b"VideoHandler" in content
    named.write_bytes(content.replace(b"VideoHandler", b"Video\x8fandler"))
    assert len(list(decode(named))) == len(GREYS)
