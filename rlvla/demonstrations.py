"""Recorded expert episodes as users have them: a frame, a state and an action at every env step, and no thought.

`rlvla.read_hdf5` and `rlvla.read_lerobot` read them. This module says what an episode is, drops its no-ops, and cuts
it into decisions; what a policy should think at them is the business of an annotator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image

from rlvla.dataset import DatasetError
from rlvla.types import Box, Decision

NOOP_THRESHOLD = 1e-4
"""Norm of all action components but the gripper below which nothing moves: `is_noop` of OpenVLA's
experiments/robot/libero/regenerate_libero_dataset.py."""
CROP_SIDE = 0.9**0.5
"""Side of the centre crop as a share of the frame's: 0.9 of its area, `center_crop_image` of OpenVLA's
experiments/robot/openvla_utils.py."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """One recorded success of an expert, T env steps long; frame t is what is seen before action t."""

    name: str
    """File and episode; errors begin with it."""
    instruction: str
    frames: Mapping[str, np.ndarray]
    """By camera, [T, H, W, 3] uint8 RGB, the right way round for the policy, at the resolution they are stored in."""
    state: np.ndarray
    """[T, P] float32, simulator units."""
    actions: np.ndarray
    """[T, A] float32, simulator units; all but the last are deltas, the last is the gripper (-1 open, +1 close)."""
    fps: float
    """Env steps a second."""

    def __post_init__(self) -> None:
        """Raises DatasetError naming the episode and what is wrong with it."""
        if not self.instruction:
            raise DatasetError(f"{self.name}: there is no instruction")
        if not self.fps > 0:
            raise DatasetError(f"{self.name}: fps is {self.fps}")
        for kind, values in (("actions", self.actions), ("state", self.state)):
            if values.ndim != 2 or 0 in values.shape:
                raise DatasetError(f"{self.name}: {kind} have shape {list(values.shape)}, need [frames, dimensions]")
            bad = np.argwhere(~np.isfinite(values))
            if len(bad):
                raise DatasetError(f"{self.name}: {kind} hold NaN or infinity at frame {bad[0, 0]}")
        if len(self.state) != len(self.actions):
            raise DatasetError(f"{self.name}: {len(self.state)} states for {len(self.actions)} actions")
        if not self.frames:
            raise DatasetError(f"{self.name}: there is no camera")
        for camera, frames in self.frames.items():
            if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape or frames.dtype != np.uint8:
                raise DatasetError(
                    f"{self.name}: camera {camera} is {frames.dtype} {list(frames.shape)}, "
                    "need uint8 [frames, height, width, 3]"
                )
            if len(frames) != len(self.actions):
                raise DatasetError(
                    f"{self.name}: camera {camera} has {len(frames)} frames for {len(self.actions)} actions"
                )


@dataclass(frozen=True, kw_only=True)
class Source:
    """A folder or file of recorded episodes, read one at a time."""

    robot: str
    fps: float
    """Env steps a second."""
    num_episodes: int
    episodes: Iterator[Episode]
    """Once through, in the order of the files; holds one episode in memory."""


def prepared(episodes: Iterable[Episode], *, filter_noops: bool) -> Iterator[Episode]:
    """What every reader ends with: the episodes without their no-ops.

    Raises:
        DatasetError: an episode is recorded twice; the message names both places.
    """
    seen: dict[bytes, str] = {}
    for episode in episodes:
        digest = hashlib.blake2b(episode.actions.tobytes() + episode.state.tobytes(), digest_size=16).digest()
        if digest in seen:
            raise DatasetError(f"{episode.name} repeats {seen[digest]}, action for action: remove one of them")
        seen[digest] = episode.name
        yield drop_noops(episode) if filter_noops else episode


def moves(actions: np.ndarray) -> np.ndarray:
    """Which actions do something, by OpenVLA's rule: the arm moves, or the gripper is told something new.

    OpenVLA compares the gripper with the last action that it kept. Behind the first motion that is the action before,
    since a dropped one repeats its gripper; up to the first motion there is none, and the gripper does not count.

    Args:
        actions: [T, A], the gripper last.

    Returns:
        [T] bool.
    """
    is_motion = np.linalg.norm(actions[:, :-1].astype(np.float64), axis=1) >= NOOP_THRESHOLD
    is_switch = np.diff(actions[:, -1], prepend=actions[:1, -1]) != 0
    has_begun = np.logical_or.accumulate(is_motion)
    return is_motion | (is_switch & has_begun)


def drop_noops(episode: Episode) -> Episode:
    """The episode without the frames whose action does nothing; raises DatasetError where none is left."""
    keep = moves(episode.actions)
    if not keep.any():
        raise DatasetError(f"{episode.name}: every action is a no-op")
    return replace(
        episode,
        frames={camera: frames[keep] for camera, frames in episode.frames.items()},
        state=episode.state[keep],
        actions=episode.actions[keep],
    )


def see_before_acting(episode: Episode) -> Episode:
    """An episode whose frame t was recorded behind action t, with each frame before its action.

    What is seen before action t is then frame t - 1; before action 0 there is none, so that it goes, and so does the
    last frame, which no action follows.
    """
    return replace(
        episode,
        frames={camera: frames[:-1] for camera, frames in episode.frames.items()},
        state=episode.state[:-1],
        actions=episode.actions[1:],
    )


def robosuite_gripper(actions: np.ndarray, convention: Literal["robosuite", "openvla"], name: str) -> np.ndarray:
    """Actions whose gripper is robosuite's, -1 open and +1 close.

    Args:
        actions: [T, A], the gripper last; returned as they are when `convention` is `robosuite`.
        convention: that of `actions`. `openvla`: 1 open, 0 close, as its `libero_dataset_transform` makes them
            (prismatic/vla/datasets/rlds/oxe/transforms.py).
        name: of the episode, for errors.

    Raises:
        DatasetError: the gripper takes values that the convention does not have.
    """
    gripper = actions[:, -1]
    if convention == "openvla":
        if ((gripper < 0) | (gripper > 1)).any():
            raise DatasetError(
                f"{name}: the gripper goes from {gripper.min()} to {gripper.max()}, "
                "but with read.gripper openvla it is 0 (close) to 1 (open); try read.gripper robosuite"
            )
        return np.concatenate([actions[:, :-1], 1 - 2 * actions[:, -1:]], axis=1)
    if (np.abs(gripper) > 1).any():
        raise DatasetError(f"{name}: the gripper goes from {gripper.min()} to {gripper.max()}, need -1 to 1")
    if np.isin(gripper, (0, 1)).all() and (gripper == 0).any():
        raise DatasetError(f"{name}: the gripper is 0 or 1, which is OpenVLA's convention: set read.gripper openvla")
    return actions


def decisions(
    episode: Episode, *, chunk_length: int, stride: int, center_crop: bool = False, view_size: int = 0
) -> list[Decision]:
    """The episode as a policy would have decided on it.

    Args:
        episode: T env steps.
        chunk_length: K. Behind the end of the episode the chunk holds still: no motion, the last gripper.
        stride: env steps from one decision to the next.
        center_crop: see `policy_view`.
        view_size: side of the policy view in pixels; 0: as recorded.

    Returns:
        ceil(T / stride) decisions.
    """
    still = np.zeros((chunk_length - 1, episode.actions.shape[1]), np.float32)
    still[:, -1] = episode.actions[-1, -1]
    actions = np.concatenate([episode.actions, still])

    def decision(t: int) -> Decision:
        frames = [camera[t] for camera in episode.frames.values()]
        return Decision(
            instruction=episode.instruction,
            images=tuple(policy_view(frame, center_crop, view_size) for frame in frames),
            proprio=episode.state[t].copy(),
            actions=actions[t : t + chunk_length].copy(),
            zoom=lambda image, box: zoom(frames[image], box, center_crop, view_size),
        )

    return [decision(t) for t in range(0, len(episode.actions), stride)]


def zoom(frame: np.ndarray, box: Box, center_crop: bool, size: int) -> np.ndarray:
    """Part of a recorded frame as the policy's tool shows it.

    Args:
        frame: [H, W, 3] uint8.
        box: in the frame that the model sees; widened to whole recorded pixels.
        center_crop: see `policy_view`.
        size: of the picture, likewise.

    Returns:
        uint8 [size, size, 3], or [H, W, 3]; area mean where it shrinks, nearest where it grows.
    """
    seen = policy_view(frame, center_crop, 0)
    height, width = seen.shape[:2]
    x1, y1, x2, y2 = box
    # -(-a // b) rounds up.
    part = seen[y1 * height // 1000 : -(-y2 * height // 1000), x1 * width // 1000 : -(-x2 * width // 1000)]
    shape = (size, size) if size else (width, height)
    return np.asarray(Image.fromarray(part).resize(shape, Image.Resampling.BOX))


def policy_view(frame: np.ndarray, center_crop: bool, size: int) -> np.ndarray:
    """A frame as OpenVLA's policies see it: resized, then its middle interpolated back to the size.

    Args:
        frame: [H, W, 3] uint8.
        center_crop: keep the middle `CROP_SIDE`, bilinear with aligned corners and truncated to integers, as
            `tf.image.crop_and_resize` and `tf.image.convert_image_dtype` do there, and as our LIBERO env does.
        size: side in pixels, by Lanczos as OpenVLA does (`resize_image`, experiments/robot/libero/libero_utils.py);
            0: the frame's own.

    Returns:
        uint8 [size, size, 3], or [H, W, 3].
    """
    if size and frame.shape[:2] != (size, size):
        frame = np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.LANCZOS))
    if not center_crop:
        return frame.copy()
    values = frame.astype(np.float32) / 255
    for axis in (0, 1):
        length = frame.shape[axis]
        positions = (1 - CROP_SIDE) / 2 * (length - 1) + np.arange(length) * CROP_SIDE
        low = np.floor(positions).astype(int)
        share = (positions - low).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (-1, 1))
        lower, upper = values.take(low, axis), values.take(np.minimum(low + 1, length - 1), axis)
        values = lower + share * (upper - lower)
    return (np.clip(values, 0, 1) * 255.5).astype(np.uint8)
