"""Shapes as point clouds: where a parallel gripper can grasp, and how far a held thing can come down.

Pure numpy, world frame, metres. LIBERO's collision shapes are boxes, so a few thousand points 5 mm apart say
everything that the scripted experts need: a rim, a handle and a narrow side are all "points between the fingers,
none where the fingers go".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SPACING = 0.005
"""Largest distance between neighbouring points of a shape, m."""
CELL = 0.005
"""Side of the cells of height maps and of the grid of grasp candidates, m."""

# The Panda gripper when open, in the frame of its grip site: x along the finger axis, z towards the object. Extents of
# the collision geoms of robosuite 1.4.0, models/assets/grippers/panda_gripper.xml.
FINGER_INNER, FINGER_OUTER = 0.037, 0.056
FINGER_HALF_WIDTH = 0.011
TIP_DEPTH = 0.0125
"""The finger tips reach this far below the grip site."""
PAD_LOW, PAD_HIGH = -0.0116, 0.0044
"""The pads, along z."""
PALM_HEIGHT = 0.026
"""The underside of the hand is this far above the grip site."""
HAND_HALF_LENGTH, HAND_HALF_WIDTH, HAND_HEIGHT = 0.106, 0.032, 0.124
# From the grip site of a hand that points down to the centre of the wrist, up and back: the kinematics of the Panda.
WRIST_RISE, WRIST_OFFSET = 0.204, 0.088
EASY_REACH = 0.64
"""From the shoulder to the wrist. Further out robosuite's controller no longer holds its course (measured: at 0.69 it
drifts by centimetres), and at 0.71 the elbow is straight."""

UP = np.array([0.0, 0.0, 1.0])
POINTING_DOWN = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
"""Columns: the grip site's axes where the hand points down and the fingers close along world y."""


@dataclass(frozen=True, kw_only=True)
class Grasp:
    """Where the grip site goes, and how the hand is turned."""

    position: np.ndarray
    """[3]."""
    yaw: float
    """About world z, from `POINTING_DOWN`; half a turn is the same grasp."""
    cost: float


def box_points(half_size: np.ndarray, spacing: float = SPACING) -> np.ndarray:
    """A regular grid that fills a box around the origin, corners included.

    Args:
        half_size: [3].
        spacing: upper bound of the distance along each axis.

    Returns:
        [N, 3].
    """
    axes = [np.linspace(-half, half, int(np.ceil(2 * half / spacing)) + 1) for half in half_size]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


def yaw_rotation(yaw: float) -> np.ndarray:
    """[3, 3]: the grip site's frame when the hand points down and is turned by `yaw`."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]]) @ POINTING_DOWN


def hand_yaw(rotation: np.ndarray) -> float:
    """The yaw of a hand that points roughly down, in (-pi, pi]; inverse of `yaw_rotation`."""
    finger_axis = rotation[:, 0]
    return float(np.arctan2(-finger_axis[0], finger_axis[1]))


def half_turn(angle: float) -> float:
    """The angle modulo pi, in [-pi/2, pi/2): fingers are interchangeable."""
    return (angle + np.pi / 2) % np.pi - np.pi / 2


def rotation_error(current: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """The turn from one rotation [3, 3] to another as axis times angle [3], rad, world frame."""
    turn = goal @ current.T
    axis = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]]) / 2
    sin, cos = float(np.linalg.norm(axis)), (float(np.trace(turn)) - 1) / 2
    if sin < 1e-6:
        # Half a turn has no unique axis; about the vertical one the hand stays clear of the table.
        return np.zeros(3) if cos > 0 else np.array([0.0, 0.0, np.pi])
    return axis * (np.arctan2(sin, cos) / sin)


def gripper_points(opening: float = 0.08) -> np.ndarray:
    """Hand and fingers as points [N, 3] in the grip site's frame.

    Args:
        opening: distance between the pads, m.
    """
    hand = box_points(np.array([HAND_HALF_LENGTH, HAND_HALF_WIDTH, HAND_HEIGHT / 2]))
    hand = hand - (PALM_HEIGHT + HAND_HEIGHT / 2) * UP
    thickness = (FINGER_OUTER - FINGER_INNER) / 2
    finger = box_points(np.array([thickness, FINGER_HALF_WIDTH, (TIP_DEPTH + PALM_HEIGHT) / 2]))
    offset = np.array([opening / 2 + thickness, 0, (TIP_DEPTH - PALM_HEIGHT) / 2])
    return np.concatenate([hand, finger + offset, finger + offset * [-1, 1, 1]])


class Occupancy:
    """How many points lie in rectangles of a plane; sums over any rectangle take constant time."""

    def __init__(self, points: np.ndarray, origin: np.ndarray, shape: tuple[int, int], weights: np.ndarray) -> None:
        """Counts points [N, 2], with weights [N], on a grid of cells that starts at `origin` [2]."""
        cells = np.floor((points - origin) / CELL).astype(int)
        inside = ((cells >= 0) & (cells < shape)).all(axis=1)
        flat = np.ravel_multi_index(tuple(cells[inside].T), shape)
        counts = np.bincount(flat, weights[inside], minlength=shape[0] * shape[1]).reshape(shape)
        self._sums = np.pad(counts.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))

    def window(self, low: tuple[float, float], high: tuple[float, float], margin: int) -> np.ndarray:
        """For each cell at least `margin` from the border: the sum over the rectangle from low to high around it."""
        (u0, v0), (u1, v1) = (tuple(round(v / CELL) for v in corner) for corner in (low, high))
        rows, columns = (n - 1 - 2 * margin for n in self._sums.shape)

        def corner(u: int, v: int) -> np.ndarray:
            return self._sums[margin + u : margin + u + rows, margin + v : margin + v + columns]

        return corner(u1 + 1, v1 + 1) - corner(u0, v1 + 1) - corner(u1 + 1, v0) + corner(u0, v0)


def choose_grasps(
    shape: np.ndarray,
    obstacles: np.ndarray,
    center: np.ndarray,
    *,
    floor: float,
    shoulder: np.ndarray,
    way: np.ndarray,
    present_yaw: float,
    yaws: np.ndarray,
) -> list[Grasp]:
    """Top-down grasps of a shape, the cheapest of each yaw and height first to last.

    A grasp is possible where something of the shape is between the pads, and nothing where the open fingers and the
    hand go. Cheap ones hold much, between parallel sides, centred, near the centre of mass, within reach, and
    turn the hand little.

    Args:
        shape: [N, 3], the object.
        obstacles: [M, 3], everything else but the table.
        center: [3], the object's centre of mass.
        floor: height of the table.
        shoulder: [3], of the arm.
        way: [3], along which the object goes afterwards; its end has to be within reach too.
        present_yaw: of the hand.
        yaws: [Y], candidates, from `POINTING_DOWN`.

    Returns:
        Sorted by cost; empty where the shape cannot be grasped from above.
    """
    near = np.linalg.norm(obstacles[:, :2] - center[:2], axis=1) < np.ptp(shape[:, :2], axis=0).max() / 2 + 0.17
    obstacles = obstacles[near & (obstacles[:, 2] > shape[:, 2].min() - 0.01)]
    top, lowest = shape[:, 2].max(), floor + TIP_DEPTH + 0.001
    heights = np.unique(np.maximum(top - np.arange(0.006, 0.12, 0.008), lowest))
    grasps = []
    for yaw in yaws:
        turn = abs(half_turn(yaw - present_yaw)) / (np.pi / 2)
        frame = yaw_rotation(yaw)[:, :2]  # finger axis and the axis across it, both horizontal
        own, other = shape @ frame, obstacles @ frame
        for height in heights[::-1]:
            planes = (own, shape[:, 2]), (other, obstacles[:, 2])
            shoulders = [np.array([*(point @ frame), point[2]]) for point in (shoulder, shoulder - way)]
            best = _best_grasp_of_plane(*planes, height, center @ frame, shoulders)
            if best is not None:
                spot, cost = best
                position = np.array([*(frame[:2] @ spot), height])
                grasps.append(Grasp(position=position, yaw=float(yaw), cost=cost + 0.6 * turn))
    return sorted(grasps, key=lambda grasp: grasp.cost)


def _best_grasp_of_plane(
    shape: tuple[np.ndarray, np.ndarray],
    obstacles: tuple[np.ndarray, np.ndarray],
    height: float,
    center: np.ndarray,
    shoulders: list[np.ndarray],
) -> tuple[np.ndarray, float] | None:
    """The cheapest position of the grip site at one yaw and height, [2] in the hand's plane, and its cost."""
    (own, own_z), (other, other_z) = shape, obstacles
    margin = int(np.ceil(HAND_HALF_LENGTH / CELL)) + 3
    origin = own.min(axis=0) - (margin + 4) * CELL
    size = tuple(int(n) for n in np.ceil(np.ptp(own, axis=0) / CELL).astype(int) + 2 * margin + 8)

    def count(points: np.ndarray, mask: np.ndarray, weights: np.ndarray | None = None) -> Occupancy:
        weights = np.ones(len(points)) if weights is None else weights
        return Occupancy(points[mask], origin, size, weights[mask])  # type: ignore[arg-type]

    def blocked(points: np.ndarray, z: np.ndarray, slack: float) -> np.ndarray:
        fingers = count(points, (z > height - TIP_DEPTH - slack) & (z < height + PALM_HEIGHT + 0.02))
        hand = count(points, (z > height + PALM_HEIGHT - slack) & (z < height + PALM_HEIGHT + HAND_HEIGHT))
        wide, long = FINGER_HALF_WIDTH + slack, HAND_HALF_LENGTH + slack
        inner, outer, across = FINGER_INNER - slack / 2, FINGER_OUTER + slack, HAND_HALF_WIDTH + slack
        total = fingers.window((inner, -wide), (outer, wide), margin)
        total = total + fingers.window((-outer, -wide), (-inner, wide), margin)
        return total + hand.window((-long, -across), (long, across), margin)

    padded = (own_z > height - PAD_HIGH) & (own_z < height - PAD_LOW)
    pads = ((-FINGER_INNER, -0.008), (FINGER_INNER, 0.008))
    held = count(own, padded).window(*pads, margin)
    free = (blocked(own, own_z, 0.002) == 0) & (blocked(other, other_z, 0.003) == 0) & (held >= 4)
    if not free.any():
        return None
    cells = np.stack(np.meshgrid(*(np.arange(n) for n in held.shape), indexing="ij"), axis=-1)
    spots = origin + (cells + margin + 0.5) * CELL
    along, across = (own - center).T

    def average(values: np.ndarray) -> np.ndarray:
        return count(own, padded, values).window(*pads, margin) / np.maximum(held, 1)

    mean_along, mean_across = average(along), average(across)
    variance = average(across**2) - mean_across**2
    # Of what is held: a wall that stands askew between the fingers, and a corner of a box, slip out of them.
    askew = np.abs(average(along * across) - mean_along * mean_across) / np.maximum(variance, 1e-6)
    front = count(own, padded).window((-FINGER_INNER, 0), pads[1], margin)
    back = count(own, padded).window(pads[0], (FINGER_INNER, 0), margin)
    uneven = np.abs(front - back) / (front + back + 1)
    off_center = np.abs(mean_along - (spots[..., 0] - center[0]))
    far = np.linalg.norm(spots - center, axis=-1)
    idle = np.clip((height - PAD_LOW - own_z.max()) / (PAD_HIGH - PAD_LOW), 0, 1)  # share of the pads above the top
    cost = far / 0.05 + off_center / 0.005 + 2 * askew + 4 * uneven + 2 * idle + (1 - held / held.max())
    cost = cost + 8 / np.maximum(held, 1)
    cost = cost + sum(np.maximum(0, reach(spots, height, shoulder) - EASY_REACH) for shoulder in shoulders) / 0.01
    cost = cost + (blocked(other, other_z, 0.012) > 0)
    cost = np.where(free, cost, np.inf)
    index = np.unravel_index(np.argmin(cost), cost.shape)
    return spots[index], float(cost[index])


def reach(spots: np.ndarray, height: float | np.ndarray, shoulder: np.ndarray) -> np.ndarray:
    """From the shoulder [3] to the wrist of a hand that points down at spots [..., 2] and a height: [...], m."""
    out = np.linalg.norm(spots - shoulder[:2], axis=-1) - WRIST_OFFSET
    return np.hypot(out, height + WRIST_RISE - shoulder[2])


class HeightMap:
    """The upper envelope of a scene over a square of the table."""

    def __init__(self, points: np.ndarray, floor: float, center: np.ndarray, half_side: float = 0.6) -> None:
        """The highest of points [N, 3] in each cell; `floor` where there is none."""
        self._origin = center[:2] - half_side
        self._size = int(2 * half_side / CELL)
        self.heights = np.full((self._size, self._size), floor)
        cells = np.floor((points[:, :2] - self._origin) / CELL).astype(int)
        inside = ((cells >= 0) & (cells < self._size)).all(axis=1)
        np.maximum.at(self.heights, tuple(cells[inside].T), points[inside, 2])

    def contact(self, held: np.ndarray, spots: np.ndarray) -> np.ndarray:
        """How high a held thing is when, coming straight down, it first touches something.

        Args:
            held: [N, 3], relative to its reference point.
            spots: [S, 2], where the reference point is.

        Returns:
            [S], height of the reference point.
        """
        cells = np.floor(held[:, :2] / CELL).astype(int)
        unique, inverse = np.unique(cells, axis=0, return_inverse=True)
        bottom = np.full(len(unique), np.inf)
        np.minimum.at(bottom, inverse.reshape(-1), held[:, 2])
        shifts = np.floor((spots - self._origin) / CELL).astype(int)
        where = np.clip(unique[None] + shifts[:, None], 0, self._size - 1)
        return (self.heights[where[..., 0], where[..., 1]] - bottom).max(axis=1)
