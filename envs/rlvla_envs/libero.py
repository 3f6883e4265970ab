"""`rlvla/Libero-v0`: the 130 tasks of LIBERO, with the states and frames of its official env, only faster.

Protocol and numbers are OpenVLA-OFT's (experiments/robot/libero/run_libero_eval.py): a robosuite reset, one of the 50
official initial states, 10 env steps to let things settle, 256-pixel frames rotated by 180 degrees and centre-cropped,
at most `HORIZONS` env steps, success by LIBERO's own goal test after each. docs/libero.md says how to get the assets.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import gymnasium
import numpy as np

from rlvla_envs.libero_assets import find_assets, import_libero
from rlvla_envs.libero_camera import CAMERAS, NATIVE_SIZE, LiberoCameras, project
from rlvla_envs.libero_sim import TaskSim
from rlvla_envs.libero_tasks import (
    FIXTURES,
    HORIZONS,
    OFFICIAL,
    charset,
    check_suite,
    load_init_states,
    load_splits,
    load_tasks,
)
from rlvla_envs.spec import Box, Observation, VLAEnv, box_to_pixels, check_actions, check_image, resize

ACTION_SIZE = 7
SETTLE_ACTION = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0)
"""Stand still, open: `get_libero_dummy_action` of OpenVLA's experiments/robot/libero/libero_utils.py."""
_PROPRIO_SIZE = 8
_MAX_INSTRUCTION = 100
"""Characters; LIBERO's longest instruction has 83."""
_HEAD_SIZE = 4


def from_openvla_gripper(actions: np.ndarray) -> np.ndarray:
    """Actions [..., 7] of an OpenVLA policy (gripper 0 closed .. 1 open) in robosuite's sign: -1 open, +1 closed.

    `normalize_gripper_action(binarize=True)` and `invert_gripper_action` of OpenVLA's
    experiments/robot/robot_utils.py.
    """
    converted = np.array(actions)
    converted[..., 6] = -np.sign(2 * converted[..., 6] - 1)
    return converted


class LiberoEnv(VLAEnv):
    """One suite of LIBERO: a Franka arm under operational space control, seen by one or two cameras.

    Action [7], each in [-1, 1]: translation of the gripper x, y, z (1 is 5 cm), rotation vector x, y, z (1 is 0.5 rad),
    both relative to where it is, and the gripper's command, -1 open to +1 closed (robosuite's sign;
    `from_openvla_gripper` converts). Proprio [8]: gripper position (m), its rotation vector (rad), the two fingers (m).
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 20}
    official_kwargs = MappingProxyType({"center_crop": True, "settle_steps": 10, "reflections": True})

    def __init__(
        self,
        suite: str = "libero_object",
        assets: str | Path | None = None,
        cameras: Sequence[str] = ("agentview",),
        view_size: int = 256,
        center_crop: bool = True,
        zoom_source: str = "render",
        settle_steps: int = 10,
        reflections: bool = True,
        max_scenes: int = 1,
        fixtures: str = "first",
        render_mode: str | None = None,
    ) -> None:
        """Imports LIBERO; scenes are compiled on their first reset, a renderer waits for the first picture.

        Args:
            suite: one of libero_spatial, libero_object, libero_goal, libero_10 (Long), libero_90.
            assets: the folder of LIBERO's assets; else RLVLA_LIBERO_ASSETS, else what `make libero` installs.
            cameras: of the images, in their order: "agentview" and, for the wrist, "robot0_eye_in_hand".
            view_size: side of the policy view, pixels.
            center_crop: the middle 0.9 of the frame's area, as OpenVLA's policies that were trained on random crops
                see it.
            zoom_source: "render" renders only the box of a zoom, "crop" cuts it out of a native frame; both give the
                same pixels, the first faster.
            settle_steps: env steps of `SETTLE_ACTION` after a reset, not counted; `num_steps_wait` of OpenVLA-OFT.
            reflections: of the floor and of shiny things. Off takes a CPU 39 instead of 73 ms a frame (libero_spatial),
                but it is not quite the picture that published policies were trained on.
            max_scenes: compiled tasks to keep, 0.3 to 1.3 GB each; the least recently used goes first.
            fixtures: where they stand in an episode: "first" or "episode", see `FIXTURES`.
            render_mode: None or "rgb_array", as in Gymnasium.

        Raises:
            ValueError: an argument that is not one of these.
            FileNotFoundError: no assets; the message says how to get them. ValueError where a file differs.
            ModuleNotFoundError: LIBERO is not installed.
        """
        check_suite(suite)
        if not cameras or not set(cameras) <= set(CAMERAS) or len(set(cameras)) < len(cameras):
            raise ValueError(f"cameras {tuple(cameras)!r} are not one or two different ones of {CAMERAS}")
        if zoom_source not in ("crop", "render"):
            raise ValueError(f"zoom_source {zoom_source!r} is neither 'crop' nor 'render'")
        if not 1 <= view_size <= NATIVE_SIZE:
            raise ValueError(f"view_size {view_size} is not in 1..{NATIVE_SIZE}")
        if settle_steps < 0 or max_scenes < 1:
            raise ValueError(f"settle_steps {settle_steps} must be 0 or more, max_scenes {max_scenes} 1 or more")
        if fixtures not in FIXTURES:
            raise ValueError(f"fixtures {fixtures!r} is none of {', '.join(FIXTURES)}")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode {render_mode!r} is neither None nor 'rgb_array'")
        self._assets = find_assets(assets)
        import_libero(self._assets)
        self.suite, self.cameras, self.zoom_source, self.render_mode = suite, tuple(cameras), zoom_source, render_mode
        self.tasks = load_tasks(suite)
        """Indexed by task id, as `task_names`."""
        self.task_names = tuple(task.name for task in self.tasks)
        self._splits = load_splits(suite)
        self.split_notes = {OFFICIAL: FIXTURES[fixtures]}
        self._moves_fixtures = fixtures == "episode"
        self._center_crop, self._reflections = center_crop, reflections
        self._settle_steps, self._max_scenes = settle_steps, max_scenes
        self._sims: OrderedDict[int, TaskSim] = OrderedDict()
        self._renderers: dict[int, LiberoCameras] = {}
        self._init_states: dict[int, np.ndarray] = {}
        self._task_id: int | None = None
        self._init_state_id = self._num_env_steps = 0
        self._is_success = False
        self.action_space = gymnasium.spaces.Box(-1, 1, (ACTION_SIZE,), np.float32)
        self.observation_space = gymnasium.spaces.Dict(
            images=gymnasium.spaces.Box(0, 255, (len(cameras), view_size, view_size, 3), np.uint8),
            proprio=gymnasium.spaces.Box(-np.inf, np.inf, (_PROPRIO_SIZE,), np.float32),
            instruction=gymnasium.spaces.Text(_MAX_INSTRUCTION, charset=charset(self.tasks)),
        )

    @classmethod
    def preload(cls, **kwargs: Any) -> None:
        """See `VLAEnv`: LIBERO and, for its initial states, torch."""
        import_libero(find_assets(kwargs.get("assets")))
        load_tasks(kwargs.get("suite", "libero_object"))

    @classmethod
    def sizes(
        cls,
        suite: str = "libero_object",
        cameras: Sequence[str] = ("agentview",),
        view_size: int = 256,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """See `VLAEnv`; arguments and defaults are the constructor's."""
        check_suite(suite)
        return {
            "num_images": len(cameras),
            "view_shape": (view_size, view_size),
            "action_size": ACTION_SIZE,
            "max_env_steps": HORIZONS[suite],
        }

    def init_state_ids(self, task_id: int, split: str) -> range:
        """See `VLAEnv`; the same ids for each task.

        Besides "train" and "evaluate", "official" names all 50 states: the protocol of papers. It overlaps "train", so
        a policy that learned from train states cannot be compared on it with one that did not.
        """
        self._check_task(task_id)
        if split not in self._splits:
            raise ValueError(f"unknown split {split!r}; known: {', '.join(self._splits)}")
        return self._splits[split]

    def max_env_steps(self, task_id: int) -> int:
        """See `VLAEnv`; the steps to settle do not count."""
        self._check_task(task_id)
        return HORIZONS[self.suite]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """See `VLAEnv`. 0.2 s in the scene of the last episode, 1 to 4 s in another."""
        super().reset(seed=seed)
        options = options or {}
        task_id = int(options.get("task_id", 0))
        train = self.init_state_ids(task_id, "train")
        init_state_id = options.get("init_state_id")
        if init_state_id is None:
            init_state_id = self.np_random.integers(train.start, train.stop)
        self._place(task_id, int(init_state_id))
        for _ in range(self._settle_steps):
            self._sim.advance(np.array(SETTLE_ACTION))
        return self._observe(), self._info()

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """See `VLAEnv`. RuntimeError after the episode's end, ValueError for a malformed action."""
        obs, rewards, terminated, truncated, info = self.step_chunk(np.asarray(action)[None])
        return obs, float(rewards[0]), terminated, truncated, info

    def step_chunk(self, actions: np.ndarray) -> tuple[Observation, np.ndarray, bool, bool, dict[str, Any]]:
        """See `VLAEnv`; renders once, at the end."""
        rewards = []
        for action in np.clip(check_actions(actions, ACTION_SIZE), -1, 1):
            if self._is_success or self._is_truncated:
                raise RuntimeError("the episode has ended: call reset")
            self._is_success = self._sim.advance(action)
            self._num_env_steps += 1
            rewards.append(float(self._is_success))
            if self._is_success or self._is_truncated:
                break
        return self._observe(), np.array(rewards, np.float32), self._is_success, self._is_truncated, self._info()

    def native_frames(self) -> tuple[np.ndarray, ...]:
        """The cameras at 1024 x 1024, rotated and cropped as the images are."""
        view = self._sim.look()
        return tuple(self._renderer.native(view, camera) for camera in self.cameras)

    def zoom(self, image: int, bbox: Box) -> np.ndarray:
        """See `VLAEnv`."""
        if self.zoom_source == "crop":
            return super().zoom(image, bbox)
        check_image(image, len(self.cameras))
        pixels = box_to_pixels(bbox, NATIVE_SIZE, NATIVE_SIZE)
        return resize(self._renderer.native(self._sim.look(), self.cameras[image], pixels), *self.view_shape)

    def get_state(self) -> np.ndarray:
        """[4 + S] float64: task, initial state, env steps, success, then that of `TaskSim`."""
        sim = self._sim
        head = (self._task_id, self._init_state_id, self._num_env_steps, self._is_success)
        return np.concatenate([np.array(head, np.float64), sim.get_state()])

    def set_state(self, state: np.ndarray) -> None:
        """See `VLAEnv`. Raises ValueError for ids that do not exist or a state of another size."""
        task_id, init_state_id, num_env_steps, is_success = (int(v) for v in state[:_HEAD_SIZE])
        self._place(task_id, init_state_id)
        self._sim.set_state(state[_HEAD_SIZE:])
        self._num_env_steps, self._is_success = num_env_steps, bool(is_success)

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """The first camera's native frame where `render_mode` is "rgb_array", else None."""
        if self.render_mode != "rgb_array":
            return None
        return self._renderer.native(self._sim.look(), self.cameras[0])

    def close(self) -> None:
        """Frees scenes and renderers; the next reset compiles anew."""
        while self._sims:
            self._drop()
        self._task_id = None

    @property
    def task_name(self) -> str:
        """Of the present task. Raises RuntimeError before the first reset."""
        return self._sim.task.name

    @property
    def instruction(self) -> str:
        """Of the present task. Raises RuntimeError before the first reset."""
        return self._sim.task.instruction

    @property
    def robosuite(self) -> Any:
        """Privileged: the robosuite env of the present task. Raises RuntimeError before the first reset."""
        return self._sim.robosuite

    def project(self, positions: np.ndarray) -> np.ndarray:
        """Where points [..., 3] (m) appear in the first image: int [..., 2], 0..1000, clipped to it."""
        sim = self._sim
        return project(sim.model, sim.look(), self.cameras[0], positions, cropped=self._center_crop)

    @property
    def _sim(self) -> TaskSim:
        if self._task_id is None:
            raise RuntimeError("call reset first")
        return self._sims[self._task_id]

    @property
    def _renderer(self) -> LiberoCameras:
        sim = self._sim
        assert self._task_id is not None
        if self._task_id not in self._renderers:
            self._renderers[self._task_id] = LiberoCameras(
                sim.model, reflections=self._reflections, center_crop=self._center_crop
            )
        return self._renderers[self._task_id]

    @property
    def _is_truncated(self) -> bool:
        return not self._is_success and self._num_env_steps >= HORIZONS[self.suite]

    def _check_task(self, task_id: int) -> None:
        if not 0 <= task_id < len(self.task_names):
            raise ValueError(f"unknown task_id {task_id}: {self.suite} has {len(self.task_names)} tasks")

    def _place(self, task_id: int, init_state_id: int) -> None:
        self._check_task(task_id)
        if init_state_id not in self._splits[OFFICIAL]:
            raise ValueError(f"unknown init_state_id {init_state_id}: known are {self._splits['official']}")
        if task_id not in self._sims:
            self._task_id = None  # in case compiling fails
            while len(self._sims) >= self._max_scenes:
                self._drop()
            self._sims[task_id] = TaskSim(self.tasks[task_id], self._assets)
        self._sims.move_to_end(task_id)
        if task_id not in self._init_states:
            self._init_states[task_id] = load_init_states(self.tasks[task_id])
        self._task_id, self._init_state_id = task_id, init_state_id
        self._num_env_steps, self._is_success = 0, False
        episode = init_state_id if self._moves_fixtures else 0
        self._sim.reset(self._init_states[task_id][init_state_id], episode)

    def _drop(self) -> None:
        task_id, sim = self._sims.popitem(last=False)
        if task_id in self._renderers:
            self._renderers.pop(task_id).close()
        sim.close()

    def _observe(self) -> Observation:
        sim, size = self._sim, self.view_shape[0]
        view = sim.look()
        images = np.stack([self._renderer.view(view, camera, size) for camera in self.cameras])
        return {"images": images, "proprio": sim.proprio(), "instruction": self.instruction}

    def _info(self) -> dict[str, Any]:
        return {"is_success": self._is_success, "task_id": self._task_id, "init_state_id": self._init_state_id}
