"""Lines of the plan's table that recipes share, (subject, text), and problems."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rlvla.config import EpisodeConfig, LearnerConfig, PlanConfig
from rlvla.plan.memory import GIB, LearnerMemory, zero
from rlvla.plan.model import ModelFigures
from rlvla.plan.speed import DEVICES, REACHED, TurnTokens
from rlvla.plan.world import World

Lines = tuple[tuple[str, str], ...]


def size(num_bytes: float) -> str:
    """`12.3 GiB`, or MiB below a tenth of one."""
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB / 10 else f"{num_bytes / (1 << 20):.1f} MiB"


def time(seconds: float) -> str:
    """`12 s`, `3.4 min` or `5.6 h`."""
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def model_lines(figures: ModelFigures, learner: LearnerConfig | None) -> Lines:
    """Where the figures come from, and parameters."""
    counts = (figures.num_parameters, figures.num_vision_parameters, figures.num_trained_parameters)
    whole, vision, trained = (f"{count / 1e6:,.1f} M" for count in counts)
    text = f"{whole}, {vision} of them for pixels"
    if learner is not None:
        how = "all of them" if learner.lora is None else f"LoRA of rank {learner.lora.rank}"
        text += f"; trained: {trained} ({how})"
    return (("model", figures.source), ("parameters", text))


def turn_lines(turn: TurnTokens, world: World, episode: EpisodeConfig, tokens_per_image: int) -> Lines:
    """The token budget of a decision."""
    height, width = world.view_shape
    budget = (
        f"prompt {turn.prompt} ({world.num_images} image(s) of {tokens_per_image} at {height} x {width}), thought "
        f"{episode.max_think_tokens}, zooms {episode.max_tool_calls} x {tokens_per_image}, action "
        f"{world.chunk_length} x {world.action_size} = {world.chunk_length * world.action_size}"
    )
    if turn.block:
        budget += f", in one forward of {turn.block}"
    cut = f" (all limits used up: {turn.most}, cut by episode.max_turn_tokens)" if turn.most > turn.limit else ""
    return (("tokens of a turn", budget), ("", f"{turn.limit} at most{cut}, {turn.forwards:.0f} forwards to sample"))


def learner_lines(memory: LearnerMemory, learner: LearnerConfig, world: int, num_rows: int, gpu: str) -> Lines:
    """Memory of a rank by purpose; the largest transient part counts."""

    def parts(sizes: Mapping[str, float]) -> str:
        return ", ".join(f"{name} {size(value)}" for name, value in sizes.items())

    rank = f"ZeRO {zero(learner).stage:d}, {learner.dtype}, {world} rank(s)"
    checkpointing = f"{'with' if learner.gradient_checkpointing else 'without'} gradient checkpointing"
    return (
        ("learner rank", f"{size(memory.peak)} on {gpu}: {rank}"),
        ("  all the time", parts(memory.resident)),
        ("  in turn", f"{parts(memory.transient)}; {num_rows} row(s) a forward, {checkpointing}"),
    )


def time_lines(seconds: Mapping[str, float], num_steps: int, note: str = "") -> Lines:
    """The estimate by phase, and the phase that limits. Simulators and samplers work side by side, then the learner."""
    phases = ", ".join(f"{name} {time(value)}" for name, value in seconds.items())
    total = seconds.get("learner", 0.0) + max((s for name, s in seconds.items() if name != "learner"), default=0.0)
    return (
        ("time (estimate)", f"{phases}; {time(total)} a step, {time(total * num_steps)} in all{note}"),
        ("", f"with every limit used up, and GPUs at {REACHED:.0%} of their data sheet"),
        ("limited by", f"the {max(seconds, key=lambda name: seconds[name])}"),
    )


def misfits(plan: PlanConfig, needs: Mapping[str, float]) -> tuple[str, ...]:
    """What needs more than the GPU has."""
    there = DEVICES[plan.gpu].memory_gb * GIB
    return tuple(
        f"{name} needs {size(need)}, {plan.gpu} has {size(there)}: raise learner.zero_stage or the number of ranks, "
        "turn learner.gradient_checkpointing on, lower learner.micro_batch_rows or the KV cache, or use learner.lora"
        for name, need in needs.items()
        if there and need > there
    )


def refusals(check: Callable[..., None], *args: Any) -> tuple[str, ...]:
    """What a check of `rlvla.run.preflight` would end the run with."""
    try:
        check(*args)
    except (ValueError, FileNotFoundError) as error:
        return (str(error),)
    return ()
