"""The report's videos: frames, boxes, length, bytes and what the page may load."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

import report_episodes
import report_video
from report_video import HEIGHT, MAX_BYTES, MAX_FRAMES, animation
from rlvla import Turn
from tests.examples import act, think, trajectory, turn, zoom

DATA_URL = re.compile(r'(?:src|srcset)="([^"]*)"')


def view(grey: int = 0, size: int = 64) -> np.ndarray:
    return np.full((size, size, 3), grey, np.uint8)


def pictures(html: str) -> tuple[Image.Image, Image.Image]:
    """The still of who wants no motion, and the video."""
    still, video = (
        Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/webp;base64,"))))
        for url in DATA_URL.findall(html)
    )
    return still, video


def frames(video: Image.Image) -> list[np.ndarray]:
    """int [H, W, 3] each, to be subtracted."""
    shown = []
    for index in range(video.n_frames):  # type: ignore[attr-defined]
        video.seek(index)
        shown.append(np.asarray(video.convert("RGB")).astype(int))
    return shown


def test_a_frame_a_turn_in_order_and_the_last_one_as_a_still() -> None:
    still, video = pictures(animation([[(view(grey), [])] for grey in (20, 120, 220)], "press"))
    shown = frames(video)
    assert [round(frame[:HEIGHT].mean(), -1) for frame in shown] == [20, 120, 220]
    assert shown[0].shape == (HEIGHT + 4, HEIGHT, 3)
    assert np.abs(frames(still)[0] - shown[-1]).mean() < 3
    # The bar below: a third, two thirds, all of the width.
    assert [np.mean(frame[-2, :, 0] > 100) for frame in shown] == pytest.approx([1 / 3, 2 / 3, 1], abs=0.03)


def test_the_box_is_on_the_frame_and_camera_that_it_was_asked_of() -> None:
    boxed = turn(think(), *zoom((250, 250, 750, 750), image=1), act(), num_cameras=2)
    plain = turn(think(), act(), num_cameras=2)
    with_box, without = (_black(t) for t in (boxed, plain))
    _, video = pictures(animation([with_box, without], "press"))
    first, second = frames(video)
    yellow = (first[..., 0] > 150) & (first[..., 2] < 110)
    rows, columns = np.nonzero(yellow[:HEIGHT])
    assert second[:HEIGHT].max() < 60
    edges = [rows.min(), rows.max(), columns.min() - HEIGHT, columns.max() - HEIGHT]
    assert edges == pytest.approx([HEIGHT / 4, HEIGHT * 3 / 4, HEIGHT / 4, HEIGHT * 3 / 4], abs=3)


def _black(of: Turn) -> report_video.Views:
    return [(np.zeros_like(image), boxes) for image, boxes in report_episodes._views(of)]


def test_boxes_at_the_border_and_of_no_size_are_drawn() -> None:
    tiny = [("#ffd60a", box) for box in ((0, 0, 1, 1), (999, 999, 1000, 1000), (0, 0, 1000, 1000))]
    shown = frames(pictures(animation([[(view(), tiny)], [(view(), [])]], "press"))[1])
    assert (shown[0][[0, HEIGHT - 1], [0, HEIGHT - 1]].max(axis=1) > 100).all()  # the corners


def test_long_episodes_and_heavy_frames_are_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    long: Sequence[report_video.Views] = [[(view(i % 250), [])] for i in range(MAX_FRAMES + 1)]
    html = animation(long, "press")
    assert len(frames(pictures(html)[1])) == MAX_FRAMES // 2 + 1
    assert "each 2. decision and the last" in html
    noise = np.random.default_rng(0).integers(0, 256, (40, 256, 256, 3), np.uint8)
    heavy: Sequence[report_video.Views] = [[(frame, [])] for frame in noise]
    assert len(animation(heavy, "press")) < 2 * 4 / 3 * MAX_BYTES
    monkeypatch.setattr(report_video, "MAX_BYTES", 20_000)
    assert len(frames(pictures(animation(heavy, "press"))[1])) < 5


def test_one_decision_is_no_video_and_only_the_unfolded_episode_has_one() -> None:
    once, twice = trajectory([turn(act())]), trajectory([turn(act()), turn(act(), seed=1)])
    assert "<picture>" not in report_episodes.section([("run", [once, twice])])
    html = report_episodes.section([("a", [twice, twice]), ("b", [twice])])
    assert html.count("<picture>") == 2
    assert all(url.startswith("data:image/") and " " not in url for url in DATA_URL.findall(html))


def test_words_are_escaped_and_the_bytes_are_the_same_every_time() -> None:
    turns = [[(view(grey), [])] for grey in (1, 2)]
    html = animation(turns, '"><script>')
    assert "<script>" not in html
    assert animation(turns, '"><script>') == html
