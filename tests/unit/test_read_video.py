"""Both decoders, on a video whose frames are told apart by their grey."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rlvla.data.dataset import DatasetError
from rlvla.data.read_video import FrameReader, decode_opencv, decode_pyav, first_frames
from tests.unit.recorded import FPS, write_video

has_pyav = importlib.util.find_spec("av") is not None
GREYS = np.arange(10, 250, 20)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    pytest.importorskip("cv2")
    frames = np.full((len(GREYS), 64, 64, 3), GREYS[:, None, None, None], np.uint8)
    frames[..., 2] = 0  # so that a swap of red and blue shows
    write_video(tmp_path / "v.mp4", frames)
    return tmp_path / "v.mp4"


@pytest.mark.parametrize(
    "decode",
    [
        decode_opencv,
        pytest.param(decode_pyav, marks=pytest.mark.skipif(not has_pyav, reason="PyAV is optional: pip install av")),
    ],
)
def test_frames_come_with_their_times_and_colours(
    video: Path, decode: Callable[[Path], Iterator[tuple[float, np.ndarray]]]
) -> None:
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
        return decode_opencv(file)

    reader = FrameReader(counting)
    for first in (0, 4, 8):
        reader.take(video, first, first / FPS, 4, FPS)
    assert opened == [video]


def film(times: Sequence[float]) -> FrameReader:
    """A reader of a video whose frame i shows i and is at `times[i]`, in frames."""

    def decode(file: Path) -> Iterator[tuple[float, np.ndarray]]:
        for number, time in enumerate(times):
            yield time / FPS, np.full((2, 2, 3), number, np.uint8)

    return FrameReader(decode)


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


def test_av1_without_pyav_says_what_to_do(tmp_path: Path) -> None:
    """OpenCV's wheels open AV1 but have no software decoder for it; the pictures of an AVIF file are AV1."""
    pytest.importorskip("cv2")
    frames = [Image.new("RGB", (64, 64), (grey, 0, 0)) for grey in (0, 100)]
    file = tmp_path / "v.avif"
    frames[0].save(file, save_all=True, append_images=frames[1:], duration=100)
    with pytest.raises(DatasetError, match=r"v\.avif: .*codec AV01.*install av"):
        list(decode_opencv(file))


def test_a_playlist_leads_to_no_other_file(video: Path) -> None:
    pytest.importorskip("av")
    playlist = video.with_name("list.mp4")
    playlist.write_text(f"ffconcat version 1.0\nfile {video.name}\n")
    with pytest.raises(DatasetError, match=r"list\.mp4: not a video that PyAV decodes"):
        list(decode_pyav(playlist))


def test_a_title_in_another_encoding_does_no_harm(video: Path) -> None:
    pytest.importorskip("av")
    named = video.with_name("named.mp4")
    content = video.read_bytes()
    assert b"VideoHandler" in content
    named.write_bytes(content.replace(b"VideoHandler", b"Video\x8fandler"))
    assert len(list(decode_pyav(named))) == len(GREYS)


def test_a_video_of_an_unknown_codec_is_refused(video: Path) -> None:
    pytest.importorskip("av")
    unknown = video.with_name("unknown.mp4")
    content = video.read_bytes()
    assert b"mp4v" in content
    unknown.write_bytes(content.replace(b"mp4v", b"zzzz").replace(b"esds", b"free"))  # either names the codec
    with pytest.raises(DatasetError, match=r"unknown\.mp4: holds no video that PyAV decodes"):
        list(decode_pyav(unknown))


def test_a_small_file_of_a_huge_video_is_refused(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    file = tmp_path / "huge.mp4"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 4096, 4112, "yuv420p"
        container.mux([*stream.encode(av.VideoFrame(4096, 4112, "yuv420p")), *stream.encode(None)])
    with pytest.raises(DatasetError, match=r"huge\.mp4: not a video that PyAV decodes"):
        list(decode_pyav(file))
