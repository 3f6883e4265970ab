"""The env contract: kept by every registered env and by a third party's, and its breaches named."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import rlvla_envs
from rlvla_envs import EnvContractError, VLAEnv, check_env
from rlvla_envs.spec import box_to_pixels, load_manifest, resize

TINY = '''
"""A third party's env, whole: a robot on a line, told to go left or right."""

import gymnasium
import numpy as np
from rlvla_envs import VLAEnv


class TinyEnv(VLAEnv):
    suite = "tiny"
    task_names = ("left", "right")
    observation_space = gymnasium.spaces.Dict(
        images=gymnasium.spaces.Box(0, 255, (1, 8, 8, 3), np.uint8),
        proprio=gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32),
        instruction=gymnasium.spaces.Text(8),
    )
    action_space = gymnasium.spaces.Box(-0.1, 0.1, (1,), np.float32)

    def init_state_ids(self, task_id, split):
        splits = {"train": range(8), "evaluate": range(8, 10)}
        if split not in splits:
            raise ValueError(f"unknown split {split!r}")
        return splits[split]

    def max_env_steps(self, task_id):
        return 6

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        options = options or {}
        self.task_id = options.get("task_id", 0)
        if self.task_id not in (0, 1):
            raise ValueError(f"unknown task_id {self.task_id}")
        self.place = options.get("init_state_id", self.np_random.integers(8)) / 100
        self.num_env_steps = 0
        return self.observe(), {}

    def step(self, action):
        self.place += float(np.clip(action[0], -0.1, 0.1))
        self.num_env_steps += 1
        success = self.place < -0.25 if self.task_id == 0 else self.place > 0.25
        truncated = not success and self.num_env_steps >= 6
        return self.observe(), float(success), success, truncated, {"is_success": success}

    def observe(self):
        return {
            "images": self.native_frames()[0][None, ::2, ::2],
            "proprio": np.array([self.place], np.float32),
            "instruction": self.task_names[self.task_id],
        }

    def native_frames(self):
        frame = np.zeros((16, 16, 3), np.uint8)
        frame[:, int(np.clip(8 + 20 * self.place, 0, 15))] = 255
        return (frame,)

    def get_state(self):
        return np.array([self.task_id, self.place, self.num_env_steps])

    def set_state(self, state):
        self.task_id, self.num_env_steps = int(state[0]), int(state[2])
        self.place = float(state[1])


gymnasium.register("tiny/Tiny-v0", entry_point=TinyEnv)
'''


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[VLAEnv]:
    """The class of a third party's env, in a module of its own outside this repository."""
    (tmp_path / "tiny_envs.py").write_text(TINY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tiny_envs", raising=False)
    monkeypatch.setattr(gymnasium.envs.registration, "registry", dict(gymnasium.registry))
    import tiny_envs

    return tiny_envs.TinyEnv


TESTED_ELSEWHERE = {"rlvla/Libero-v0"}
"""Ids that need assets and minutes for all their tasks: `test_libero_env.py` checks one task."""


@pytest.mark.parametrize(
    "env_id", [i for i in gymnasium.registry if i.startswith("rlvla/") and i not in TESTED_ELSEWHERE]
)
def test_registered_envs_keep_the_contract(env_id: str) -> None:
    pytest.importorskip("mujoco")
    check_env(env_id)


@pytest.mark.parametrize("kwargs", [{"zoom_source": "render"}, {"tasks": ("pick",), "view_size": 128}])
def test_tabletop_variants_keep_the_contract(kwargs: dict[str, Any]) -> None:
    pytest.importorskip("mujoco")
    check_env("rlvla/Tabletop-v0", **kwargs)


def test_a_third_party_env_is_one_file_and_an_id(tiny: type[VLAEnv]) -> None:
    check_env("tiny_envs:tiny/Tiny-v0")
    check_env(tiny())


def breach(**members: Any) -> dict[str, Any]:
    """Members of a subclass of TinyEnv that breaks the contract."""
    return members


def _step_with(**changes: Any) -> Any:
    def step(self: Any, action: np.ndarray) -> Any:
        values = dict(zip(("obs", "reward", "terminated", "truncated", "info"), self._step(action), strict=True))
        return tuple({**values, **changes}.values())

    return step


def _forgetful_set_state(self: Any, state: np.ndarray) -> None:
    self.place = 0.0


def _drifting_reset(self: Any, *, seed: int | None = None, options: Any = None) -> Any:
    _obs, info = self._reset(seed=seed, options=options)
    self.place += self.np_random.normal()
    return self.observe(), info


_DRAWN = itertools.cycle(range(8))


def _unseeded_reset(self: Any, *, seed: int | None = None, options: Any = None) -> Any:
    return self._reset(options={"init_state_id": next(_DRAWN)} | (options or {}))


def _all_ids(self: Any, task_id: int, split: str) -> range:
    if split == "nowhere":
        raise ValueError(split)
    return range(3)


@pytest.mark.parametrize(
    ("members", "named"),
    [
        (breach(suite=""), "suite"),
        (breach(task_names=["left"]), "task_names"),
        (breach(init_state_ids=_all_ids), "share"),
        (breach(action_space=gymnasium.spaces.Discrete(3)), "action_space"),
        (breach(observation_space=gymnasium.spaces.Dict()), "observation_space"),
        (breach(reset=_drifting_reset), "two resets"),
        (breach(reset=_unseeded_reset), "same seed"),
        (breach(step=_step_with(info={})), "is_success"),
        (breach(step=_step_with(reward=0.5)), "reward 0.5"),
        (breach(step=_step_with(truncated=False)), "max_env_steps"),
        (breach(set_state=_forgetful_set_state), "set_state"),
        (breach(get_state=lambda self: np.zeros(3, np.float32)), "get_state"),
        (breach(max_env_steps=lambda self, task_id: 0), "max_env_steps"),
        (breach(zoom=lambda self, image, bbox: np.zeros((4, 4, 3), np.uint8)), "zoom"),
        (breach(native_frames=lambda self: (np.zeros((16, 16, 3)),)), "images"),
    ],
)
def test_a_breach_is_named(tiny: type[VLAEnv], members: dict[str, Any], named: str) -> None:
    members = {**members, "_step": tiny.step, "_reset": tiny.reset}
    broken = type("Broken", (tiny,), members)
    with pytest.raises(EnvContractError, match=named):
        check_env(broken())


def test_default_chunk_stops_at_the_end_of_the_episode(tiny: type[VLAEnv]) -> None:
    env = tiny()
    env.reset(options={"task_id": 1, "init_state_id": 0})
    _, rewards, terminated, truncated, info = env.step_chunk(np.full((5, 1), 0.1, np.float32))
    assert rewards.tolist() == [0, 0, 1]
    assert (terminated, truncated, info["is_success"]) == (True, False, True)
    with pytest.raises(ValueError, match="at least one"):
        env.step_chunk(np.zeros((0, 1), np.float32))


def test_default_zoom_shows_native_pixels(tiny: type[VLAEnv]) -> None:
    env = tiny()
    env.reset(options={"task_id": 0, "init_state_id": 0})
    frame = env.native_frames()[0]
    assert np.array_equal(env.zoom(0, (250, 500, 750, 1000)), frame[8:16, 4:12])


@pytest.mark.parametrize("box", [(0, 0, 0, 1000), (0, 0, 1000, 0), (500, 0, 400, 10), (-1, 0, 5, 5), (0, 0, 5, 1001)])
def test_bad_boxes_are_named(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match=str(box[2])):
        box_to_pixels(box, 512, 512)


def test_boxes_cover_whole_pixels() -> None:
    assert box_to_pixels((0, 0, 1000, 1000), 512, 256) == (0, 0, 512, 256)
    assert box_to_pixels((125, 250, 126, 251), 512, 512) == (64, 128, 65, 129)
    with pytest.raises(ValueError, match="four integers"):
        box_to_pixels((0.5, 0, 10, 10), 512, 512)  # type: ignore[arg-type]


def test_resize_averages_areas() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    image[:2, :2] = 200
    assert resize(image, 2, 2)[:, :, 0].tolist() == [[200, 0], [0, 0]]
    assert resize(image, 1, 1)[0, 0].tolist() == [50, 50, 50]
    assert np.array_equal(resize(resize(image, 2, 2), 4, 4), image)


def test_manifests_keep_train_and_evaluate_apart() -> None:
    manifests = Path(rlvla_envs.__file__).parent / "manifests"
    for path in manifests.glob("*.json"):
        splits = load_manifest(path.stem)
        assert not set(splits["train"]) & set(splits["evaluate"])


def test_overlapping_manifest_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "overlapping_envs"
    (package / "manifests").mkdir(parents=True)
    (package / "__init__.py").touch()
    text = '{"splits": {"train": [0, 10], "evaluate": [9, 12]}}'
    (package / "manifests" / "bad.json").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(EnvContractError, match="overlap"):
        load_manifest("bad", package="overlapping_envs")


def test_importing_the_package_is_light() -> None:
    code = """
    import sys, rlvla_envs
    assert not {"mujoco", "torch", "ray", "libero"} & set(sys.modules)
    """
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=60, env=paths)


def test_mesa_has_one_thread_in_an_env_unless_someone_says_otherwise() -> None:
    code = "import os, rlvla_envs; print(os.environ['LP_NUM_THREADS'])"
    bare = {name: value for name, value in os.environ.items() if name != "LP_NUM_THREADS"}
    bare["PYTHONPATH"] = os.pathsep.join(sys.path)
    for own, expected in (({}, "1\n"), ({"LP_NUM_THREADS": "4"}, "4\n")):
        said = subprocess.check_output([sys.executable, "-c", code], env={**bare, **own}, text=True, timeout=60)
        assert said == expected
