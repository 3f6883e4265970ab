"""The report's videos: frames, boxes, length, bytes and which episodes have one."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import report
from rlvla.report import video as report_video
from rlvla.report.decision import Picture
from rlvla.report.episodes import ShownEpisode, shown
from rlvla.report.video import HEIGHT, MAX_BYTES, MAX_FRAMES, Video, Views, animation
from rlvla.types import Box, Turn
from tests.examples import act, think, trajectory, turn, zoom


def view(grey: int = 0, size: int = 64, boxes: Sequence[Box] = ()) -> Picture:
    image = np.full((size, size, 3), grey, np.uint8)
    return Picture(image=image, caption="", boxes=dict(enumerate(boxes)))


def played(turns: Sequence[Views]) -> Video:
    video = animation(turns)
    assert video is not None
    return video


def frames(webp: bytes) -> list[np.ndarray]:
    """int [H, W, 3] each, to be subtracted."""
    found, video = [], Image.open(io.BytesIO(webp))
    for index in range(video.n_frames):  # type: ignore[attr-defined]
        video.seek(index)
        found.append(np.asarray(video.convert("RGB")).astype(int))
    return found


def episode(*turns: Turn, is_open: bool = True) -> ShownEpisode:
    return shown(trajectory(list(turns)), report.camera_of, is_open=is_open)


def test_a_frame_a_turn_in_order_and_the_last_one_as_a_still() -> None:
    video = played([[view(grey)] for grey in (20, 120, 220)])
    seen = frames(video.moving)
    assert [round(frame[:HEIGHT].mean(), -1) for frame in seen] == [20, 120, 220]
    assert seen[0].shape == (HEIGHT + 4, HEIGHT, 3)
    assert np.abs(frames(video.still)[0] - seen[-1]).mean() < 3
    # The bar below: a third, two thirds, all of the width.
    assert [np.mean(frame[-2, :, 0] > 100) for frame in seen] == pytest.approx([1 / 3, 2 / 3, 1], abs=0.03)


def test_the_box_is_on_the_frame_and_camera_that_it_was_asked_of() -> None:
    boxed = turn(think(), *zoom((250, 250, 750, 750), image=1), act(), num_cameras=2)
    plain = turn(think(), act(), num_cameras=2)
    boxed, plain = (replace(t, images=tuple(np.zeros_like(image) for image in t.images)) for t in (boxed, plain))
    video = episode(boxed, plain).video
    assert video is not None
    first, second = frames(video.moving)
    yellow = (first[..., 0] > 150) & (first[..., 2] < 110)
    rows, columns = np.nonzero(yellow[:HEIGHT])
    assert second[:HEIGHT].max() < 60
    edges = [rows.min(), rows.max(), columns.min() - HEIGHT, columns.max() - HEIGHT]
    assert edges == pytest.approx([HEIGHT / 4, HEIGHT * 3 / 4, HEIGHT / 4, HEIGHT * 3 / 4], abs=3)


def test_boxes_at_the_border_and_of_no_size_are_drawn() -> None:
    boxes = [(0, 0, 1, 1), (999, 999, 1000, 1000), (0, 0, 1000, 1000)]
    seen = frames(played([[view(boxes=boxes)], [view()]]).moving)
    assert (seen[0][[0, HEIGHT - 1], [0, HEIGHT - 1]].max(axis=1) > 100).all()  # the corners


def test_long_episodes_and_heavy_frames_are_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    long = played([[view(i % 250)] for i in range(MAX_FRAMES + 1)])
    assert (len(frames(long.moving)), long.stride) == (MAX_FRAMES // 2 + 1, 2)
    noise = np.random.default_rng(0).integers(0, 256, (40, 256, 256, 3), np.uint8)
    heavy = [[Picture(image=frame, caption="")] for frame in noise]
    assert len(played(heavy).moving) < MAX_BYTES
    monkeypatch.setattr(report_video, "MAX_BYTES", 20_000)
    assert len(frames(played(heavy).moving)) < 5


def test_one_decision_is_no_video_and_only_the_unfolded_episode_has_one() -> None:
    twice = (turn(act()), turn(act(), seed=1))
    assert episode(turn(act())).video is None
    assert episode(*twice, is_open=False).video is None
    first, second = episode(*twice), episode(*twice)
    assert first.video is not None
    assert first.video == second.video  # the same bytes every time
