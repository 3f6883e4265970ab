"""Both decoders, on a video whose frames are told apart by their grey."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rlvla.dataset import DatasetError
from rlvla.read_video import FrameReader, decode_opencv, decode_pyav
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
        greys = reader.take(video, first / FPS, number, FPS)[:, 32, 32, 0].astype(int)
        assert np.abs(greys - GREYS[first : first + number]).max() <= 8


def test_a_file_is_decoded_once_for_all_its_episodes(video: Path) -> None:
    opened = []

    def counting(file: Path) -> Iterator[tuple[float, np.ndarray]]:
        opened.append(file)
        return decode_opencv(file)

    reader = FrameReader(counting)
    for first in (0, 4, 8):
        reader.take(video, first / FPS, 4, FPS)
    assert opened == [video]


def test_a_time_between_frames_takes_the_nearest_and_beyond_the_end_is_an_error(video: Path) -> None:
    reader = FrameReader()
    grey = int(reader.take(video, 0.34, 1, FPS)[0, 32, 32, 0])
    assert abs(grey - GREYS[3]) <= 8
    with pytest.raises(DatasetError, match=r"v\.mp4: no frame at 1\.200 s"):
        reader.take(video, 1.1, 2, FPS)


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
