"""What a run meets: tasks, pictures and actions, from simulator, data and checkpoint, or assumed where they are not."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlvla.config import ActionDecoding, EvaluateConfig, GRPOConfig, PlanConfig, SFTConfig
from rlvla.data.dataset import read_sizes
from rlvla.policies.thinker.prompt import read_decoding, read_settings
from rlvla.rollout.env_server import make_env
from rlvla.rollout.tasks import task_ids
from rlvla.run.preflight import check_world


@dataclass(frozen=True, kw_only=True)
class World:
    """Sizes of what the policy sees and does."""

    note: str
    """Where they come from, to print."""
    num_images: int
    view_shape: tuple[int, int]
    """(H, W), px."""
    chunk_length: int
    action_size: int
    max_env_steps: int
    """Of the longest task."""
    num_tasks: int | None
    """None: the simulator is not here."""
    action_decoding: ActionDecoding
    """Of the policy."""
    num_frames: int = 0
    """Decisions in the data set; 0: it is not here."""


def assumed(plan: PlanConfig, note: str) -> World:
    """The config's own figures."""
    return World(
        note=note,
        num_images=plan.num_images,
        view_shape=(plan.view_size, plan.view_size),
        chunk_length=plan.chunk_length,
        action_size=plan.action_size,
        max_env_steps=plan.max_env_steps,
        num_tasks=None,
        action_decoding=plan.action_decoding,
    )


def of_env(cfg: EvaluateConfig | GRPOConfig | SFTConfig) -> World:
    """Construct the env, without a reset, and ask it; or say why it is not here and take the config's figures.

    Args:
        cfg: which env, tasks and policy, and `plan`: figures for an env that is not here, and the chunk length.

    Raises:
        ValueError: the env refuses its arguments, or see `preflight.check_world`.
    """
    config, plan = cfg.env, cfg.plan
    try:
        env: Any = make_env(config)
    except (ImportError, FileNotFoundError) as error:
        return assumed(plan, f"{config.id} is not here ({str(error).splitlines()[0]}): figures of plan.*")
    check_world(cfg, env)
    tasks = task_ids(env, config)
    shape = env.observation_space["images"].shape
    splits = ", ".join(f"{len(env.init_state_ids(tasks[0], name))} {name}" for name in ("train", "evaluate"))
    world = World(
        note=f"{config.id}, suite {env.suite}: {len(tasks)} tasks, {splits} states a task",
        num_images=shape[0],
        view_shape=(shape[1], shape[2]),
        chunk_length=plan.chunk_length,
        action_size=env.action_space.shape[0],
        max_env_steps=max(env.max_env_steps(task) for task in tasks),
        num_tasks=len(tasks),
        action_decoding=plan.action_decoding,
    )
    env.close()
    return world


def with_checkpoint(world: World, model: Path) -> World:
    """How a checkpoint decodes which chunk, if there is one."""
    settings = read_settings(model)
    if not settings:
        return world
    return replace(world, chunk_length=settings["codec"]["chunk_length"], action_decoding=read_decoding(model))


def of_dataset(path: Path, plan: PlanConfig, action_decoding: ActionDecoding) -> World:
    """Sizes in a data set's `meta/info.json`, or the config's figures; of a policy that is to decode as told."""
    file = path / "meta/info.json"
    if not file.is_file():
        note = f"{path} is not here: figures of plan.*"
        return replace(assumed(plan, note), action_decoding=action_decoding)
    info = json.loads(file.read_text())
    views, (chunk_length, action_size) = read_sizes(path)
    return World(
        note=f"{path}: {info['total_frames']} decisions of {info['total_episodes']} episodes",
        num_images=len(views),
        view_shape=views[0],
        chunk_length=chunk_length,
        action_size=action_size,
        max_env_steps=plan.max_env_steps,
        num_tasks=info["total_tasks"],
        action_decoding=action_decoding,
        num_frames=info["total_frames"],
    )
