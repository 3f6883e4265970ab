"""What the LIBERO experts know: privileged poses and shapes, read from a robosuite env's MuJoCo state."""

from __future__ import annotations

from typing import Any

import numpy as np

from rlvla_envs.libero.expert.geometry import box_points, hand_yaw

_GRIP_SITE = "gripper0_grip_site"
_ROUND = {2: (0, 1, 2), 3: (0, 1), 4: (0, 1, 2), 5: (0, 1)}
"""mjtGeom sphere, capsule, ellipsoid and cylinder, and the axes in which they are round."""


class Scene:
    """Reads the present state at each call; it keeps nothing but the shapes of the geoms."""

    def __init__(self, env: Any) -> None:
        """Looks up ids and samples the collision geoms.

        Args:
            env: a robosuite env of LIBERO: `sim`, `parsed_problem`, `obj_body_id`, `objects_dict`,
                `object_sites_dict`, `_eval_predicate`.
        """
        self.env = env
        self.model, self.data = env.sim.model._model, env.sim.data._data
        self._site = self.model.site(_GRIP_SITE).id
        self._fingers = [self.model.joint(f"gripper0_finger_joint{i}").qposadr[0] for i in (1, 2)]
        ancestors: list[set[int]] = [{0}]
        for body in range(1, self.model.nbody):  # a parent comes before its children
            ancestors.append({body, *ancestors[self.model.body_parentid[body]]})
        solid = (self.model.geom_contype != 0) | (self.model.geom_conaffinity != 0)
        roots = set(env.obj_body_id.values())
        self._ancestors: dict[int, set[int]] = {}
        self._shapes: dict[int, np.ndarray] = {}
        for geom in np.flatnonzero(solid):
            above = ancestors[self.model.geom_bodyid[geom]]
            if above & roots:
                self._ancestors[int(geom)] = above
                self._shapes[int(geom)] = self._sample(int(geom))

    def _sample(self, geom: int) -> np.ndarray:
        """Points of a geom in its own frame, [N, 3]."""
        center, half = self.model.geom_aabb[geom][:3], self.model.geom_aabb[geom][3:]
        points = box_points(half)
        axes = _ROUND.get(int(self.model.geom_type[geom]))
        if axes is not None:
            points = points[(np.square(points[:, axes] / half[list(axes)])).sum(axis=1) <= 1.001]
        return points + center

    @property
    def hand(self) -> np.ndarray:
        """The grip site's position, [3]."""
        return self.data.site_xpos[self._site].copy()

    @property
    def hand_rotation(self) -> np.ndarray:
        """[3, 3]; columns are finger axis, axis across, and pointing direction."""
        return self.data.site_xmat[self._site].reshape(3, 3).copy()

    @property
    def yaw(self) -> float:
        """Of the hand, see `hand_yaw`."""
        return hand_yaw(self.hand_rotation)

    @property
    def shoulder(self) -> np.ndarray:
        """Of the arm, where its first two axes meet, [3]."""
        return self.data.body("robot0_link2").xpos.copy()

    @property
    def opening(self) -> float:
        """Between the pads, 0 to 0.08 m."""
        left, right = (self.data.qpos[address] for address in self._fingers)
        return float(left - right)

    @property
    def floor(self) -> float:
        """Height of what the objects stand on: the lowest point of any movable object."""
        return min(self.points(name)[:, 2].min() for name in self.env.objects_dict)

    def position(self, name: str) -> np.ndarray:
        """[3]: of an object's or a fixture's root body, as LIBERO's predicates use it, or of a region's site."""
        if name in self.env.obj_body_id:
            return self.data.xpos[self.env.obj_body_id[name]].copy()
        return self.data.site(name).xpos.copy()

    def center_of_mass(self, name: str) -> np.ndarray:
        """[3]."""
        return self.data.subtree_com[self.env.obj_body_id[name]].copy()

    def points(self, name: str) -> np.ndarray:
        """The solid parts of an object or a fixture, [N, 3]."""
        return self.body_points(self.env.obj_body_id[name])

    def body_points(self, body: int) -> np.ndarray:
        """The solid parts of a body and of what hangs on it, [N, 3]."""
        return self._world([geom for geom, above in self._ancestors.items() if body in above])

    def other_points(self, *names: str) -> np.ndarray:
        """The solid parts of all objects and fixtures but these, [N, 3]."""
        excluded = {self.env.obj_body_id[name] for name in names}
        return self._world([geom for geom, above in self._ancestors.items() if not above & excluded])

    def _world(self, geoms: list[int]) -> np.ndarray:
        if not geoms:
            return np.zeros((0, 3))
        rotations = self.data.geom_xmat.reshape(-1, 3, 3)
        return np.concatenate([self._shapes[g] @ rotations[g].T + self.data.geom_xpos[g] for g in geoms])

    def region_half_size(self, region: str) -> np.ndarray:
        """[3], along the world's axes."""
        size = np.asarray(self.env.object_sites_dict[region].size, float)
        return np.abs(self.data.site(region).xmat.reshape(3, 3) @ size)

    def is_inside_goal(self, region: str) -> bool:
        """Whether the task wants something in, rather than on, a region."""
        return ["in", region] in [[goal[0], goal[-1]] for goal in self.env.parsed_problem["goal_state"]]

    def holds(self, predicate: list[str]) -> bool:
        """Whether a goal predicate is true now, by LIBERO's own check."""
        return bool(self.env._eval_predicate(predicate))
