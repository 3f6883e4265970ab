"""Templated embodied chain-of-thought for the tabletop expert: what it thinks, where it looks, what it does.

The annotator is imperfect on purpose, as annotated demonstrations are: it often acts before it has looked closely
enough. So the cold start teaches how to look, and leaves it to GRPO to find out when it pays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlvla.markup import print_think, print_zoom
from rlvla.types import Box, Demonstration
from rlvla_envs.tabletop import ObjectInfo, TabletopEnv
from rlvla_envs.tabletop_expert import expert_chunk


@dataclass(frozen=True, kw_only=True)
class Template:
    """How the annotator looks and writes; the fields are the `expert_kwargs` of `recipes/annotate.py`."""

    look_first: float = 0.7
    """Share of episodes in which it zooms on the first object rather than guess."""
    look_again: float = 0.35
    """Share in which it zooms again when the first object was not the target, rather than guess among the rest."""
    coordinate_step: int = 25
    """Grid of the coordinates it writes, in thousandths of the frame: fewer numbers are learned sooner."""
    box_side: int = 100
    """Side of its zoom boxes, in thousandths of the frame: a badge is 62 wide."""

    def point(self, center: tuple[int, int]) -> tuple[int, int]:
        """The centre on the grid."""
        return tuple(round(v / self.coordinate_step) * self.coordinate_step for v in center)  # type: ignore[return-value]

    def box(self, center: tuple[int, int]) -> Box:
        """The zoom box around the centre, moved into the frame where needed."""
        x, y = (min(max(v - self.box_side // 2, 0), 1000 - self.box_side) for v in self.point(center))
        return x, y, x + self.box_side, y + self.box_side


def demonstrate(
    env: TabletopEnv,
    task_id: int,
    init_state_id: int,
    chunk_length: int,
    rng: np.random.Generator,
    **template: float,
) -> list[Demonstration] | None:
    """Play and annotate one episode.

    Args:
        env: the built-in simulator.
        task_id: of the env's tasks.
        init_state_id: from the train split.
        chunk_length: K, env steps a decision.
        rng: decides how closely the annotator looks.
        **template: fields of `Template`.

    Returns:
        One demonstration a decision; None where the expert failed.
    """
    style = Template(**template)  # type: ignore[arg-type]
    observation, _ = env.reset(options={"task_id": task_id, "init_state_id": init_state_id})
    demonstrations: list[Demonstration] = []
    while True:
        texts, boxes = _annotate(env, style, rng, len(demonstrations))
        carried = demonstrations[-1].texts[-1] if demonstrations else ""
        demonstration = Demonstration(
            instruction=observation["instruction"],
            images=tuple(observation["images"]),
            proprio=observation["proprio"],
            texts=texts,
            crops=tuple(env.zoom(0, box) for box in boxes),
            actions=expert_chunk(env, chunk_length),
            carried_thought=carried.removeprefix("<think>").removesuffix("</think>"),
        )
        demonstrations.append(demonstration)
        observation, _, terminated, truncated, info = env.step_chunk(demonstration.actions)
        if terminated or truncated:
            return demonstrations if info["is_success"] else None


def _annotate(
    env: TabletopEnv, style: Template, rng: np.random.Generator, num_decisions: int
) -> tuple[tuple[str, ...], tuple[Box, ...]]:
    """Texts and zoom boxes of one decision; the first one is where the target must be found out."""
    objects = env.objects()
    target = next(o for o in objects if o.is_target)
    if num_decisions == 0:
        return _search(objects, target, style, rng, verb="press" if env.task == "press" else "pick")
    if env.task == "press":
        return (print_think(f"press {_words(style, target)}"),), ()
    bowl = next(o for o in objects if o.name == "bowl")
    if num_decisions == 1:
        return (print_think(f"grasp {_words(style, target)}"),), ()
    return (print_think(f"drop {_words(style, bowl)}"),), ()


def _search(
    objects: tuple[ObjectInfo, ...],
    target: ObjectInfo,
    style: Template,
    rng: np.random.Generator,
    verb: str,
) -> tuple[tuple[str, ...], tuple[Box, ...]]:
    """Look at one object after the other until the target is known, or until the annotator guesses.

    The first thought says where all the objects are: every demonstration then teaches to find them, and what comes
    later copies coordinates instead of finding them again.
    """
    candidates = [o for o in objects if o.badge is not None]
    texts: list[str] = []
    boxes: list[Box] = []
    verdict = f"{', '.join(_words(style, o) for o in candidates)}. "
    patience = (style.look_first, style.look_again)
    for seen, candidate in enumerate(candidates[:-1]):
        if rng.random() >= patience[min(seen, 1)]:
            break
        box = style.box(candidate.center)
        boxes.append(box)
        texts.append(print_think(f"{verdict}look {_words(style, candidate)}") + print_zoom(0, box))
        if candidate is target:
            verdict = f"{candidate.badge} match: "
            break
        verdict = f"{candidate.badge} not {target.badge}: "
    return (*texts, print_think(f"{verdict}{verb} {_words(style, target)}")), tuple(boxes)


def _words(style: Template, info: ObjectInfo) -> str:
    x, y = style.point(info.center)
    return f"{x} {y}"
