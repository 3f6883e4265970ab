"""Pictures without what is out of them: the same pixels, mirrors included."""

# MuJoCo's compiled bindings carry no types.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Iterator

import mujoco
import numpy as np
import pytest

import rlvla_envs  # noqa: F401, says how MuJoCo renders
from rlvla_envs.offscreen import Renderer

NONE = int(mujoco.mjtGeom.mjGEOM_NONE)
SIDE = 48


def scene(mirrors: str, *, shadows: bool = False, ball: str = "0 0 1.4") -> mujoco.MjModel:
    """Boxes all around, cameras that look down, ahead and up, and a ball above them all."""
    rng = np.random.default_rng(0)
    boxes = "".join(
        f'<geom type="box" size=".1 .05 .2" pos="{x} {y} {z}" euler="{a} {b} 0" rgba="{r} {g} .5 1"/>'
        for x, y, z, a, b, r, g in rng.uniform([-3, -3, 0, 0, 0, 0, 0], [3, 3, 1, 360, 360, 1, 1], (40, 7))
    )
    return mujoco.MjModel.from_xml_string(f"""<mujoco>
      <asset><material name="mirror" reflectance=".9" rgba=".3 .3 .3 1"/></asset>
      <worldbody>
        <light pos="0 0 4" dir="0 0 -1" castshadow="{str(shadows).lower()}"/>
        <camera name="down" pos="0 -.2 .8" xyaxes="1 0 0 0 .97 .22"/>
        <camera name="ahead" pos="0 -1.5 .6" xyaxes="1 0 0 0 .3 .95"/>
        <camera name="up" pos="0 0 .3" xyaxes="1 0 0 0 -1 0"/>
        {mirrors}{boxes}
        <geom name="ball" type="sphere" size=".15" pos="{ball}" rgba="1 0 0 1"/>
      </worldbody></mujoco>""")


BOX = '<geom type="box" size=".5 .5 .02" pos="0 0 .05" material="mirror"/>'
FAR = '<geom type="box" size=".2 .2 .02" pos="9 0 .05" material="mirror"/>'
PLANE = '<geom type="plane" size="4 4 .1" material="mirror"/>'


def pictures(model: mujoco.MjModel, *, culls: bool) -> Iterator[tuple[np.ndarray, int]]:
    """Each camera's, whole and of a part; and how many geoms were left out."""
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer = Renderer(model, SIDE, max_geoms=100, culls=culls)
    for camera in ("down", "ahead", "up"):
        for window in (None, (0.3, 0.2, 0.5, 0.4), (0.0, 0.7, 0.3, 1.0)):
            image = renderer.draw(data, camera, SIDE, SIDE, window)
            geoms = renderer.picture.geoms[: renderer.picture.ngeom]
            yield image, sum(geom.type == NONE for geom in geoms)
    renderer.close()


@pytest.mark.parametrize("mirrors", ["", BOX, PLANE, FAR + BOX], ids=["none", "box", "plane", "two"])
def test_pixels_are_the_same(mirrors: str) -> None:
    model = scene(mirrors)
    left_out = num_empty = 0
    for (whole, none), (culled, number) in zip(pictures(model, culls=False), pictures(model, culls=True), strict=True):
        assert np.array_equal(whole, culled)
        num_empty += whole.std() == 0
        assert none == 0
        left_out += number
    assert left_out > 100, "of 9 pictures with 40 boxes all around"
    assert num_empty < 6


@pytest.mark.parametrize("mirror", [BOX, PLANE])
def test_what_only_a_mirror_shows_stays(mirror: str) -> None:
    """The ball is above the camera that looks down: without its image the first picture would be another."""
    (shown, _), *_ = pictures(scene(mirror), culls=True)
    (without, _), *_ = pictures(scene(mirror, ball="0 0 50"), culls=True)
    assert not np.array_equal(shown, without)


def test_nothing_is_left_out_where_it_may_throw_a_shadow() -> None:
    assert all(number == 0 for _, number in pictures(scene("", shadows=True), culls=True))
