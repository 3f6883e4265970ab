"""The MuJoCo model of `rlvla/Tabletop-v0`: sizes, and the MJCF of each task."""

from __future__ import annotations

import math
from importlib.metadata import version

BADGES = ("red", "green", "blue")

CM = 0.01
TABLE_SIZE = 0.64
"""Side of the square that the camera sees, m."""
BADGE_SIZE = 0.04
"""Side of a badge, m."""
TIMESTEP_S = 0.005
MAX_OPENING = 0.07
"""Distance between the open fingers, m."""
PAD_TOP = 0.03
"""Height of a pad at rest, m."""
BOWL_RADIUS = 0.052
"""Apothem of the inside of the octagonal bowl, m."""
BOWL_HEIGHT = 0.03

STRIPES = ((-1.75, 0.25), (-1.0, 0.5), (0.0, 0.5), (1.0, 0.5), (1.75, 0.25))
"""Centre and half width of each stripe, cm: the colours alternate, and change at half cells."""

_MODEL = """
<mujoco model="tabletop_{task}">
  <option timestep="{timestep}" integrator="implicitfast"/>
  <statistic extent="1" center="0 0 0"/>
  <visual>
    <global offwidth="512" offheight="512"/>
    <quality shadowsize="0" offsamples="0"/>
    <headlight ambient=".5 .5 .5" diffuse="0 0 0" specular="0 0 0"/>
  </visual>
  <!-- Contact bits: the hand meets all but itself; blocks meet all; pads meet only the hand. -->
  <default>
    <geom contype="0" conaffinity="3"/>
    <default class="picture"><geom contype="0" conaffinity="0" mass="0"/></default>
    <default class="hand"><geom type="box" contype="1" conaffinity="0" friction="1.5"/></default>
  </default>
  <worldbody>
    <light directional="true" dir="0 0 -1" castshadow="false" diffuse=".5 .5 .5" specular="0 0 0"/>
    <camera name="top" pos="0 0 1" xyaxes="1 0 0 0 1 0" {orthographic} fovy="{table_size}"/>
    <geom type="box" size=".5 .5 .02" pos="0 0 -.02" rgba=".5 .5 .5 1"/>
    <body name="hand" gravcomp="1">
      <joint name="hand_x" type="slide" axis="1 0 0"/>
      <joint name="hand_y" type="slide" axis="0 1 0"/>
      <joint name="hand_z" type="slide" axis="0 0 1"/>
      <geom class="hand" size=".048 .014 .015" pos="0 0 .075" mass=".4" rgba=".9 .55 .1 1"/>
      <body gravcomp="1">
        <joint name="finger_left" type="slide" axis="-1 0 0" range="0 {max_half}" limited="true"/>
        <geom class="hand" size=".006 .01 .03" pos="-.006 0 .03" mass=".05" rgba=".8 .45 .05 1"/>
      </body>
      <body gravcomp="1">
        <joint name="finger_right" type="slide" axis="1 0 0" range="0 {max_half}" limited="true"/>
        <geom class="hand" size=".006 .01 .03" pos=".006 0 .03" mass=".05" rgba=".8 .45 .05 1"/>
      </body>
    </body>
    {objects}
  </worldbody>
  <actuator>
    <position joint="hand_x" kp="800" kv="40"/>
    <position joint="hand_y" kp="800" kv="40"/>
    <position joint="hand_z" kp="1600" kv="60"/>
    <position joint="finger_left" kp="300" kv="8"/>
    <position joint="finger_right" kp="300" kv="8"/>
  </actuator>
</mujoco>
"""

_PAD = """
<body name="object{i}" pos="0 0 {pad_top}" gravcomp="1">
  <joint name="object{i}" type="slide" axis="0 0 1" range="-.01 0"
    limited="true" stiffness="150" damping="3"/>
  <geom type="box" size=".04 .04 .01" pos="0 0 -.01" mass=".1"
    conaffinity="1" rgba="0 0 0 1"/>
  {badge}
</body>"""

_BLOCK = """
<body name="object{i}">
  <freejoint name="object{i}"/>
  <geom type="box" size=".02 .02 .02" mass=".03" contype="2" friction="1.5" rgba="0 0 0 1"/>
  {badge}
</body>"""


def model_xml(task: str) -> str:
    """MJCF of one task."""
    if task == "press":
        objects = [_PAD.format(i=i, pad_top=PAD_TOP, badge=_badge_xml(i, 0.0)) for i in range(len(BADGES))]
    else:
        objects = [_BLOCK.format(i=i, badge=_badge_xml(i, BADGE_SIZE / 2)) for i in range(len(BADGES))]
        objects.append(_bowl_xml())
    return _MODEL.format(
        task=task,
        timestep=TIMESTEP_S,
        table_size=TABLE_SIZE,
        max_half=MAX_OPENING / 2,
        objects="".join(objects),
        orthographic=_orthographic(version("mujoco")),
    )


def _orthographic(mujoco: str) -> str:
    """The attribute of an orthographic camera, which MuJoCo 3.5 renamed."""
    major, minor = (int(part) for part in mujoco.split(".")[:2])
    return 'projection="orthographic"' if (major, minor) >= (3, 5) else 'orthographic="true"'


def _badge_xml(index: int, height: float) -> str:
    """Stripes on a top at `height` above the body's origin, m."""
    return "".join(
        f'<geom class="picture" name="badge{index}_{stripe}" type="box" pos="{x * CM} 0 {height}" '
        f'size="{half * CM} {BADGE_SIZE / 2} .0005"/>'
        for stripe, (x, half) in enumerate(STRIPES)
    )


def _bowl_xml() -> str:
    """An octagonal bowl around the origin."""
    radius, thick = BOWL_RADIUS + 0.003, 0.003
    side = radius * math.tan(math.pi / 8) + 0.001
    walls = "".join(
        f'<geom type="box" size="{thick} {side} {BOWL_HEIGHT / 2}" '
        f'pos="{radius * math.cos(a)} {radius * math.sin(a)} {BOWL_HEIGHT / 2}" '
        f'quat="{math.cos(a / 2)} 0 0 {math.sin(a / 2)}" rgba=".35 .22 .12 1"/>'
        for a in (k * math.pi / 4 for k in range(8))
    )
    floor = f'<geom type="cylinder" size="{BOWL_RADIUS} .002" pos="0 0 .002" rgba=".55 .4 .25 1"/>'
    return f'<body name="bowl">{floor}{walls}</body>'
