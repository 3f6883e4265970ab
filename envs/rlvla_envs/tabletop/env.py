"""`rlvla/Tabletop-v0`: press the pad, or move the block, whose colour only a zoom can tell.

A 64-pixel view shows where the objects are, but all their badges as the same grey; see
`scene` for why. That holds until the hand moves or half covers a block, by which time the
policy has chosen.
"""

# MuJoCo's compiled bindings carry no types.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium
import mujoco
import numpy as np

from rlvla_envs.spec import (
    Box,
    Observation,
    VLAEnv,
    box_to_pixels,
    check_actions,
    check_image,
    load_manifest,
    resize,
)
from rlvla_envs.tabletop.camera import NATIVE_SIZE, TopCamera
from rlvla_envs.tabletop.model import TIMESTEP_S
from rlvla_envs.tabletop.objects import ObjectInfo, describe_objects, project
from rlvla_envs.tabletop.scene import (
    SUITE,
    TASKS,
    WORKSPACE_HIGH,
    WORKSPACE_LOW,
    Layout,
    Scene,
    sample_layout,
)

ENV_STEP_S = 0.2
MAX_MOVE = 0.28
"""How far the hand moves towards its target in one env step, m."""
MAX_ENV_STEPS = {"press": 15, "pick": 40}
_TICKS = round(ENV_STEP_S / TIMESTEP_S)
_CHARSET = "abcdefghijklmnopqrstuvwxyz "
_RUNNING, _SUCCESS, _FAILURE = 0, 1, 2


def policy_view(frame: np.ndarray, size: int) -> np.ndarray:
    """Block means of a native frame, rounded half up, uint8 [size, size, 3]."""
    block = NATIVE_SIZE // size
    # Rows first: whole contiguous lines are added, five times as fast as both axes at once.
    rows = frame.reshape(size, block, -1).sum(axis=1, dtype=np.uint32)
    sums = rows.reshape(size, size, block, 3).sum(axis=2)
    return ((sums + block**2 // 2) // block**2).astype(np.uint8)


class TabletopEnv(VLAEnv):
    """A Cartesian gripper over a table, seen by one orthographic top camera.

    Action [4]: absolute fingertip target x, y, z (m), clipped to the workspace, and the gripper, -1
    closed to 1 open. The hand moves at most `MAX_MOVE` per env step of `ENV_STEP_S`. Proprio [4]:
    fingertips x, y, z and opening, m. Task "press" ends with the first pad pressed, be it right or
    wrong; "pick" ends when the target block rests in the bowl and the gripper has let go.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 5}
    suite = SUITE

    def __init__(
        self,
        tasks: Sequence[str] = TASKS,
        zoom_source: str = "crop",
        view_size: int = 64,
        render_mode: str | None = None,
    ) -> None:
        """Compiles the scenes; the renderer waits for the first picture.

        Args:
            tasks: names, in the order of the task ids.
            zoom_source: "crop" cuts the native frame, "render" renders only the box; both give the
                same pixels.
            view_size: side of the policy view, a divisor of 512. Above 64 the badges can be told
                without zoom.
            render_mode: None or "rgb_array", as in Gymnasium.

        Raises:
            ValueError: an argument that is not one of these.
        """
        if zoom_source not in ("crop", "render"):
            raise ValueError(f"zoom_source {zoom_source!r} is neither 'crop' nor 'render'")
        if view_size < 1 or NATIVE_SIZE % view_size:
            raise ValueError(f"view_size {view_size} does not divide {NATIVE_SIZE}")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode {render_mode!r} is neither None nor 'rgb_array'")
        if not tasks:
            raise ValueError("tasks is empty")
        self.task_names = tuple(tasks)
        self.render_mode = render_mode
        self.zoom_source = zoom_source
        self._scenes = [Scene(task) for task in tasks]
        self._cameras: dict[int, TopCamera] = {}
        self._splits = load_manifest(SUITE)
        self._layout: Layout | None = None
        self._task_id = 0
        self._init_state_id = 0
        self._num_env_steps = 0
        self._outcome = _RUNNING
        self.action_space = gymnasium.spaces.Box(
            np.array([*WORKSPACE_LOW, -1], np.float32), np.array([*WORKSPACE_HIGH, 1], np.float32)
        )
        self.observation_space = gymnasium.spaces.Dict(
            images=gymnasium.spaces.Box(0, 255, (1, view_size, view_size, 3), np.uint8),
            proprio=gymnasium.spaces.Box(-1, 1, (4,), np.float32),
            instruction=gymnasium.spaces.Text(80, charset=_CHARSET),
        )

    def init_state_ids(self, task_id: int, split: str) -> range:
        """See `VLAEnv`; the same ids for each task."""
        self._check_task(task_id)
        if split not in self._splits:
            raise ValueError(f"unknown split {split!r}; known: {', '.join(self._splits)}")
        return self._splits[split]

    def max_env_steps(self, task_id: int) -> int:
        """See `VLAEnv`."""
        self._check_task(task_id)
        return MAX_ENV_STEPS[self.task_names[task_id]]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """See `VLAEnv`."""
        super().reset(seed=seed)
        options = options or {}
        task_id = int(options.get("task_id", 0))
        train = self.init_state_ids(task_id, "train")
        init_state_id = options.get("init_state_id")
        if init_state_id is None:
            init_state_id = self.np_random.integers(train.start, train.stop)
        self._place(task_id, int(init_state_id))
        return self._observe(), self._info()

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """See `VLAEnv`. RuntimeError after the episode's end, ValueError for a malformed action."""
        obs, rewards, terminated, truncated, info = self.step_chunk(np.asarray(action)[None])
        return obs, float(rewards[0]), terminated, truncated, info

    def step_chunk(self, actions: np.ndarray) -> tuple[Observation, np.ndarray, bool, bool, dict[str, Any]]:
        """See `VLAEnv`; renders once, at the end."""
        rewards = []
        for action in check_actions(actions, 4):
            self._advance(action)
            rewards.append(float(self._outcome == _SUCCESS))
            if self._terminated or self._truncated:
                break
        return (
            self._observe(),
            np.array(rewards, np.float32),
            self._terminated,
            self._truncated,
            self._info(),
        )

    def native_frames(self) -> tuple[np.ndarray, ...]:
        """The top camera, 512 x 512."""
        return (self._camera.frame(),)

    def zoom(self, image: int, bbox: Box) -> np.ndarray:
        """See `VLAEnv`."""
        if self.zoom_source == "crop":
            return super().zoom(image, bbox)
        check_image(image, 1)
        return resize(self._camera.frame(box_to_pixels(bbox, NATIVE_SIZE, NATIVE_SIZE)), *self.view_shape)

    def get_state(self) -> np.ndarray:
        """[4 + physics] float64: task, initial state, env steps, outcome, then MuJoCo's state."""
        scene = self._scene
        physics = np.empty(mujoco.mj_stateSize(scene.model, mujoco.mjtState.mjSTATE_INTEGRATION))
        mujoco.mj_getState(scene.model, scene.data, physics, mujoco.mjtState.mjSTATE_INTEGRATION)
        ids = (self._task_id, self._init_state_id, self._num_env_steps, self._outcome)
        return np.concatenate([ids, physics])

    def set_state(self, state: np.ndarray) -> None:
        """See `VLAEnv`. Raises ValueError for ids that do not exist or a state of another size."""
        task_id, init_state_id, num_env_steps, outcome = (int(v) for v in state[:4])
        self._place(task_id, init_state_id)
        self._num_env_steps, self._outcome = num_env_steps, outcome
        scene, physics = self._scene, np.ascontiguousarray(state[4:], np.float64)
        size = mujoco.mj_stateSize(scene.model, mujoco.mjtState.mjSTATE_INTEGRATION)
        if len(physics) != size:
            raise ValueError(f"state has {len(state)} numbers, not {4 + size}")
        mujoco.mj_setState(scene.model, scene.data, physics, mujoco.mjtState.mjSTATE_INTEGRATION)

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """The native frame where `render_mode` is "rgb_array", else None."""
        return self.native_frames()[0] if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Frees the renderers."""
        while self._cameras:
            self._cameras.popitem()[1].close()

    @property
    def task(self) -> str:
        """Name of the present task."""
        return self.task_names[self._task_id]

    @property
    def scene(self) -> Scene:
        """The physics, for experts. Raises RuntimeError before the first reset."""
        return self._scene

    def objects(self) -> tuple[ObjectInfo, ...]:
        """Privileged: where everything is now; left to right as it was at the start, bowl last."""
        return describe_objects(self._scene)

    def project(self, position: np.ndarray) -> tuple[int, int]:
        """Where a point [3] (m) appears in the image, 0..1000, clipped to it."""
        return project(position)

    @property
    def layout(self) -> Layout:
        """Privileged: the initial state of this episode. RuntimeError before the first reset."""
        if self._layout is None:
            raise RuntimeError("call reset first")
        return self._layout

    @property
    def _scene(self) -> Scene:
        if self._layout is None:
            raise RuntimeError("call reset first")
        return self._scenes[self._task_id]

    @property
    def _camera(self) -> TopCamera:
        scene = self._scene
        if self._task_id not in self._cameras:
            self._cameras[self._task_id] = TopCamera(scene)
        return self._cameras[self._task_id]

    @property
    def _terminated(self) -> bool:
        return self._outcome != _RUNNING

    @property
    def _truncated(self) -> bool:
        return not self._terminated and self._num_env_steps >= self.max_env_steps(self._task_id)

    def _check_task(self, task_id: int) -> None:
        if not 0 <= task_id < len(self.task_names):
            raise ValueError(f"unknown task_id {task_id}: this env has {len(self.task_names)} tasks")

    def _place(self, task_id: int, init_state_id: int) -> None:
        self._check_task(task_id)
        if not any(init_state_id in ids for ids in self._splits.values()):
            raise ValueError(f"init_state_id {init_state_id} is in no split: {self._splits}")
        self._task_id, self._init_state_id = task_id, init_state_id
        self._num_env_steps, self._outcome = 0, _RUNNING
        self._layout = sample_layout(self.task, init_state_id)
        self._scenes[task_id].place(self._layout)

    def _advance(self, action: np.ndarray) -> None:
        """One env step: the servos' set point slides towards the target; judges the outcome."""
        scene = self._scene
        if self._terminated or self._truncated:
            raise RuntimeError("the episode has ended: call reset")
        start = scene.commanded
        way = np.clip(action[:3], WORKSPACE_LOW, WORKSPACE_HIGH) - start
        gripper = float(np.clip(action[3], -1, 1))
        # Constant speed: the shorter the way, the more time the servos have left to settle.
        speed = MAX_MOVE / max(float(np.linalg.norm(way)), 1e-9)
        for tick in range(1, _TICKS + 1):
            scene.command(start + way * min(1.0, speed * tick / _TICKS), gripper)
            mujoco.mj_step(scene.model, scene.data)
            if self.task == "press" and (pad := scene.pressed()) is not None:
                self._outcome = _SUCCESS if pad == self.layout.target else _FAILURE
                break
        if self.task == "pick" and scene.rests_in_bowl(self.layout.target):
            self._outcome = _SUCCESS
        self._num_env_steps += 1

    def _observe(self) -> Observation:
        view = policy_view(self._camera.frame(), self.view_shape[0])
        proprio = np.array([*self._scene.hand, self._scene.opening], np.float32)
        return {"images": view[None], "proprio": proprio, "instruction": self.layout.instruction}

    def _info(self) -> dict[str, Any]:
        return {
            "is_success": self._outcome == _SUCCESS,
            "task_id": self._task_id,
            "init_state_id": self._init_state_id,
        }
