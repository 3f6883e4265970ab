"""`rlvla/Libero-v0` against LIBERO's own env: the same bits, whatever happened before."""

# MuJoCo's compiled bindings carry no types.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import importlib
import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest

from rlvla.pictures import center_crop
from rlvla_envs import check_env
from rlvla_envs.check_states import check_other_process

pytest.importorskip("libero")

from official import Official
from rlvla_envs.libero.camera import CAMERAS, NATIVE_SIZE
from rlvla_envs.libero.env import SETTLE_ACTION, LiberoEnv
from rlvla_envs.libero.tasks import load_init_states
from rlvla_envs.spec import box_to_pixels, resize

pytestmark = pytest.mark.libero

SUITE, TASK = "libero_spatial", 4
"""A bowl in a drawer: fixtures that resets move, and an object that robosuite places by them."""
SETTLE_STEPS = 3
"""Not 10, to save time."""


@pytest.fixture(scope="module")
def env(libero_assets: Path) -> Iterator[LiberoEnv]:
    """One env for the module: that no test can disturb the next is part of what is tested."""
    env = LiberoEnv(SUITE, assets=libero_assets, cameras=CAMERAS, center_crop=False, settle_steps=SETTLE_STEPS)
    yield env
    env.close()


@pytest.fixture(scope="module")
def cropped(libero_assets: Path) -> Iterator[LiberoEnv]:
    """With the defaults of a policy, and small views."""
    env = LiberoEnv("libero_object", assets=libero_assets, view_size=64, settle_steps=SETTLE_STEPS)
    env.reset(options={"task_id": 0, "init_state_id": 0})
    yield env
    env.close()


def start(env: LiberoEnv, init_state_id: int = 3) -> dict[str, np.ndarray]:
    return env.reset(options={"task_id": TASK, "init_state_id": init_state_id})[0]


def draw_actions(num: int, gripper: float = -1.0) -> np.ndarray:
    """[num, 7], downwards to the table."""
    actions = np.random.default_rng(0).uniform(-0.5, 0.5, (num, 7))
    actions[:, 2], actions[:, 6] = -0.8, gripper
    return actions


def physics(env: LiberoEnv) -> np.ndarray:
    """Time, qpos and qvel."""
    return env.robosuite.sim.get_state().flatten()


def mean_difference(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first.astype(float) - second).mean())


def test_states_frames_and_proprio_are_the_official_ones(env: LiberoEnv) -> None:
    official = Official(env.tasks[TASK])
    official.reset(3)
    official.settle(SETTLE_STEPS)
    # First a messy episode on our side, which a soft reset has to forget.
    start(env, 7)
    env.step_chunk(draw_actions(8, gripper=1.0))
    obs = start(env)
    for action in [None, *draw_actions(4, gripper=1.0)]:
        if action is not None:
            official.step(action)
            obs = env.step(action)[0]
        assert np.array_equal(physics(env), official.state())
        assert np.array_equal(obs["images"], official.frames())
        assert np.array_equal(obs["proprio"], official.proprio())
    official.close()


def test_reset_forgets_what_was_before_and_draws_from_no_generator_of_others(env: LiberoEnv) -> None:
    """Another task, and back: the scene is compiled anew, as one is kept."""
    first, state = start(env), env.get_state()
    np.random.seed(5)  # robosuite draws from NumPy's global generator
    expected = np.random.rand(3)
    np.random.seed(5)
    other = env.reset(options={"task_id": 0, "init_state_id": 3})[0]
    assert other["instruction"] != first["instruction"]
    assert env.task_name == env.task_names[0]
    again = start(env)
    assert np.array_equal(env.get_state(), state)
    assert np.array_equal(again["images"], first["images"])
    assert np.array_equal(np.random.rand(3), expected)


@pytest.mark.slow
def test_contract(libero_assets: Path) -> None:
    env = gymnasium.make("rlvla/Libero-v0", suite="libero_object", assets=libero_assets, view_size=64).unwrapped
    assert isinstance(env, LiberoEnv)
    check_other_process(env)  # as where a process has died, and its episode is played again
    env.task_names = env.task_names[:1]  # each task costs a compilation
    check_env(env)
    env.close()


@pytest.mark.parametrize("camera", range(len(CAMERAS)))
@pytest.mark.parametrize(
    "box", [(250, 375, 500, 625), (400, 420, 470, 480), (613, 771, 1000, 1000), (0, 0, 1000, 1000)]
)
def test_rendered_zoom_is_the_crop_of_the_native_frame(
    env: LiberoEnv, camera: int, box: tuple[int, int, int, int]
) -> None:
    start(env)
    rendered = env.zoom(camera, box)
    env.zoom_source = "crop"
    cut = env.zoom(camera, box)
    env.zoom_source = "render"
    assert mean_difference(rendered, cut) < 0.05
    assert mean_difference(rendered[:, ::-1], cut) > 1, "a mirrored picture would have passed"


@pytest.mark.parametrize("camera", CAMERAS)
def test_what_is_out_of_the_picture_is_left_out_and_no_pixel_changes(env: LiberoEnv, camera: str) -> None:
    """In a scene with a stove that reflects, at two poses of the arm."""
    start(env)
    renderer, seen, num_left_out = env._renderer, [], 0
    culling = renderer._culling
    for pose in range(2):
        if pose:
            env.step_chunk(draw_actions(4, gripper=1.0))
        for window in (None, (0.3, 0.3, 0.5, 0.5), (0.0, 0.6, 0.2, 0.8)):
            pictures = []
            for renderer._culling in (None, culling):
                pictures.append(renderer.draw(env._sim.look(), camera, 96, 96, window))
            seen.append(np.array_equal(*pictures))
            geoms = renderer.picture.geoms[: renderer.picture.ngeom]
            num_left_out += sum(geom.type == mujoco.mjtGeom.mjGEOM_NONE for geom in geoms)
    assert all(seen)
    assert num_left_out > len(geoms), "of six pictures"


def test_zoom_with_center_crop_and_single_camera(cropped: LiberoEnv) -> None:
    box = (300, 400, 450, 550)
    left, top, right, bottom = box_to_pixels(box, NATIVE_SIZE, NATIVE_SIZE)
    frame = cropped.native_frames()[0]
    assert mean_difference(cropped.zoom(0, box), resize(frame[top:bottom, left:right], 64, 64)) < 0.05


def test_native_frame_shows_what_the_view_shows(cropped: LiberoEnv) -> None:
    view = cropped._observe()["images"][0]
    native = resize(cropped.native_frames()[0], 64, 64)
    assert mean_difference(view, native) < 8  # fine textures alias in the smaller frame
    for axis, shift in itertools.product((0, 1), (1, -1)):  # of 64 pixels; the centre crop moves the borders by 1.6
        assert mean_difference(np.roll(view, shift, axis=axis), native) > mean_difference(view, native) + 2


def test_project_says_where_an_object_appears(cropped: LiberoEnv) -> None:
    """The object, painted magenta, has its middle where `project` says."""
    sim = cropped.robosuite.sim
    body = cropped.robosuite.obj_body_id["milk_1"]
    before = cropped.native_frames()[0].astype(int)
    geoms = np.flatnonzero((sim.model.geom_bodyid == body) & (sim.model.geom_group == 1))
    materials = sim.model.geom_matid[geoms].copy()
    sim.model.geom_matid[geoms] = -1
    sim.model.geom_rgba[geoms] = (1, 0, 1, 1)
    rows, columns = np.nonzero(np.abs(cropped.native_frames()[0] - before).sum(-1) > 60)
    sim.model.geom_matid[geoms] = materials
    assert len(rows) > 200
    middle = (columns.min() + columns.max()) / 2, (rows.min() + rows.max()) / 2
    x, y = cropped.project(sim.data.body_xpos[body])
    assert abs(x - middle[0] / 1.024) < 15
    assert abs(y - middle[1] / 1.024) < 15


def test_success_ends_a_chunk(env: LiberoEnv) -> None:
    start(env)
    bowl, plate = env.robosuite.objects_dict["akita_black_bowl_1"], env.robosuite.obj_body_id["plate_1"]
    data = env.robosuite.sim.data
    data.set_joint_qpos(bowl.joints[0], [*(data.body_xpos[plate] + [0, 0, 0.02]), 1, 0, 0, 0])
    _, rewards, terminated, truncated, info = env.step_chunk(np.tile(SETTLE_ACTION, (40, 1)))
    assert (terminated, truncated, info["is_success"]) == (True, False, True)
    assert len(rewards) < 40
    assert rewards.tolist() == [0.0] * (len(rewards) - 1) + [1.0]
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(np.array(SETTLE_ACTION))


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.slow
def test_memory_does_not_grow_over_episodes(cropped: LiberoEnv) -> None:
    def play(num: int) -> None:
        for init_state_id in range(num):
            cropped.reset(options={"task_id": 0, "init_state_id": init_state_id})
            cropped.step_chunk(draw_actions(2))

    play(3)
    before = resident_mb()
    play(20)
    assert resident_mb() - before < 10


def test_center_crop_is_bilinear_with_aligned_corners() -> None:
    torch = pytest.importorskip("torch")
    frame = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    image = torch.tensor(frame).permute(2, 0, 1)[None].double()
    scale = 0.9**0.5
    grid = torch.nn.functional.affine_grid(
        torch.tensor([[[scale, 0, 0], [0, scale, 0]]], dtype=torch.float64), [1, 3, 64, 64], align_corners=True
    )
    sampled = torch.nn.functional.grid_sample(image, grid, align_corners=True)[0].permute(1, 2, 0).numpy()
    assert np.abs(center_crop(frame) - np.floor(sampled / 255 * 255.5)).max() <= 1
    assert (center_crop(np.full((64, 64, 3), 255, np.uint8)) == 255).all()


@pytest.mark.slow
def test_envs_in_threads_reset_to_the_states_of_an_env_alone(libero_assets: Path) -> None:
    def reset_often(task_id: int) -> list[np.ndarray]:
        env = LiberoEnv(suite="libero_goal", assets=libero_assets, settle_steps=0, view_size=64)
        states = []
        for init_state_id in range(6):
            env.reset(options={"task_id": task_id, "init_state_id": init_state_id})
            states.append(env.get_state())
        env.close()
        return states

    alone = [reset_often(task_id) for task_id in (0, 7)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(reset_often, (0, 7)))
    for expected, states in zip(alone, together, strict=True):
        np.testing.assert_array_equal(states, expected)


def places_of(env: LiberoEnv, init_state_id: int) -> np.ndarray:
    """Where all bodies stand after a reset, [num bodies, 3] m."""
    start(env, init_state_id)
    return env.robosuite.sim.model.body_pos.copy()


@pytest.mark.slow
def test_each_episode_has_the_places_of_the_official_one(libero_assets: Path) -> None:
    """OpenVLA-OFT's script seeds once for a task, so that its episodes go on drawing."""
    env = LiberoEnv(SUITE, libero_assets, settle_steps=SETTLE_STEPS, view_size=64, fixtures="episode")
    task = env.tasks[TASK]
    wrapper = importlib.import_module("libero.libero.envs.env_wrapper")
    official = wrapper.ControlEnv(str(task.bddl_file), has_offscreen_renderer=False, use_camera_obs=False)
    official.seed(0)
    expected = []
    for init_state in load_init_states(task)[:3]:
        official.reset()
        official.set_init_state(init_state)
        for _ in range(SETTLE_STEPS):
            official.step(list(SETTLE_ACTION))
        expected.append((official.sim.model.body_pos.copy(), official.get_sim_state()))
    official.close()
    for init_state_id in (2, 0, 1, 2):  # out of order, and again
        places, state = expected[init_state_id]
        assert np.array_equal(places_of(env, init_state_id), places)
        assert np.array_equal(env.robosuite.sim.get_state().flatten(), state)
    assert np.abs(expected[2][0] - expected[0][0]).max() > 0.005  # m
    saved = env.get_state()
    env.step_chunk(np.tile(np.array([0.3, 0, -0.3, 0, 0, 0, 1]), (2, 1)))
    start(env, 0)
    env.set_state(saved)
    assert np.array_equal(env.robosuite.sim.model.body_pos, expected[2][0])
    env.close()


def test_by_default_all_episodes_have_the_fixtures_of_the_first_and_a_result_says_which(env: LiberoEnv) -> None:
    assert np.array_equal(places_of(env, 0), places_of(env, 2))
    assert "in all of its episodes" in env.split_notes["official"]
    notes = LiberoEnv(fixtures="episode").split_notes
    assert list(notes) == ["official"]
    assert "OpenVLA-OFT's script finds them" in notes["official"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("suite", "libero_100"),
        ("cameras", ("frontview",)),
        ("cameras", ()),
        ("view_size", 0),
        ("max_scenes", 0),
        ("fixtures", "glued"),
    ],
)
def test_a_wrong_argument_is_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} "):
        LiberoEnv(**{name: value})


def test_wrong_calls_are_named(env: LiberoEnv) -> None:
    with pytest.raises(RuntimeError, match="call reset first"):
        LiberoEnv().native_frames()
    with pytest.raises(ValueError, match="init_state_id 50"):
        env.reset(options={"init_state_id": 50})
    start(env)
    with pytest.raises(ValueError, match="numbers, but pick_up_the_black_bowl"):
        env.set_state(env.get_state()[:-1])
    assert len(env.init_state_ids(9, "official")) == 50
