"""One episode: look, (think, zoom)*, act, until the env ends it. Knows neither Ray nor vLLM."""

from __future__ import annotations

import itertools
import operator
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from rlvla.plugins import wrong
from rlvla.policies.thinker.markup import Span, parse
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.policies.thinker.tools import PICTURE, call_tool, is_picture
from rlvla.policies.thinker.turn_context import Context, Decider, Decision, Recall, executed
from rlvla.protocols import SampleOutput, SampleRequest, Simulator
from rlvla.rollout.env_thread import EnvCrashError, EnvThread, NeighbourCrashError
from rlvla.types import Box, EndReason, Observation, Segment, SegmentKind, TaskSpec, Trajectory, Turn

MAX_CALL_TOKENS = 64
"""Tokens that a tool call may take beyond the thought before it."""


def derive_seed(*parts: int) -> int:
    """A 31-bit seed that depends on all parts, alike on every machine."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0]) & 0x7FFFFFFF


async def decide(
    decider: Decider, observation: Observation, env: EnvThread, *, seed: int, recall: Recall | None = None
) -> Decision:
    """Sample one turn: thoughts and tool calls as mode and policy like, then one action chunk.

    Args:
        decider: policy side.
        observation: what there is to see.
        env: whose thread runs the tools.
        seed: of all that is sampled in this turn.
        recall: the thoughts before this decision; None: it is the first.
    """
    started = time.perf_counter()
    config, processor = decider.config, decider.processor
    context = _start(decider, observation, recall or Recall())
    num_calls = 0
    for generation in itertools.count():
        room = config.max_turn_tokens - len(context.token_ids)
        if processor.is_parallel and context.ends_in(processor.vocabulary.mark_ids["<act>"]):
            return await _act_at_once(decider, context, room, derive_seed(seed, generation), started)
        if room <= 0:
            break
        request = _request(decider, context, room, derive_seed(seed, generation))
        output = await decider.sampler.sample(request)
        segments = _segments(decider, context, output)
        last = segments[-1]
        if last.kind is SegmentKind.THINK:
            context.add_output(output, segments)
            _open_act(decider, context)
            continue
        if last.kind is SegmentKind.ACT and processor.is_parallel:
            context.add_output(output, segments)
            continue
        if last.kind is not SegmentKind.TOOL_CALL:
            context.add_output(output, segments)
            return _act(decider, context, last, started)
        num_calls += 1
        if num_calls > config.max_tool_calls + 1:
            segments[-1] = replace(last, kind=SegmentKind.MALFORMED, error="called again after the last refusal")
            context.add_output(output, segments)
            return _finish(context, started, end=EndReason.MALFORMED)
        if num_calls > config.max_tool_calls:
            result, box = "error: too many calls, act now", None
        else:
            call = partial(_use_tool, decider, observation, last.text)
            result, box = await env.call(lambda _, call=call: call())
        segments[-1] = replace(last, box=box, error=result if isinstance(result, str) else "")
        context.add_output(output, segments)
        _add_result(processor, context, result)
    return _finish(context, started, end=EndReason.CONTEXT_FULL)


def _start(decider: Decider, observation: Observation, recall: Recall) -> Context:
    processor = decider.processor
    ids = list(processor.prompt_ids(observation.instruction, len(observation.images), recall.carried))
    context = Context(compact_ids=ids, images=list(observation.images))
    context.add_context(processor.expand(ids, context.images), SegmentKind.PROMPT, observation.instruction)
    if recall.reuses:
        context.add_reused(recall.thought)
    if recall.reuses or decider.config.mode == "act":
        _open_act(decider, context)
    return context


def _open_act(decider: Decider, context: Context) -> None:
    """Put `<act>` there in the policy's place, so that nothing but the action is left to it."""
    _put_mark(decider, context, "<act>")


def _put_mark(decider: Decider, context: Context, name: str) -> None:
    mark = decider.processor.vocabulary.mark_ids[name]
    context.compact_ids.append(mark)
    context.add_context(np.array([mark]), SegmentKind.PROMPT)


def _request(decider: Decider, context: Context, room: int, seed: int) -> SampleRequest:
    config, vocabulary = decider.config, decider.processor.vocabulary
    marks = vocabulary.mark_ids
    num_last, end = decider.processor.num_action_tokens + 2, "</act>"
    if decider.processor.is_parallel:  # the policy decides to act, and the action is a request of its own
        num_last, end = 1, "<act>"
    return SampleRequest(
        prompt_ids=tuple(context.compact_ids),
        images=tuple(context.images),
        stop_ids=(marks["</think>" if config.mode == "think" else "</tool>"], marks[end]),
        max_tokens=min(room, config.max_think_tokens + 2 + max(MAX_CALL_TOKENS, num_last)),
        temperature=config.temperature,
        seed=seed,
        banned_ids=vocabulary.banned_ids(config.mode),
        num_prefix_tokens=context.num_prefix_tokens,
    )


async def _act_at_once(decider: Decider, context: Context, room: int, seed: int, started: float) -> Decision:
    """Draw the whole action chunk in one forward, behind an `<act>` that the policy chose or that we put there."""
    config, vocabulary, num_actions = decider.config, decider.processor.vocabulary, decider.processor.num_action_tokens
    last = context.segments[-1]
    if num_actions + 1 > room:
        if last.kind is SegmentKind.ACT:
            context.segments[-1] = replace(last, kind=SegmentKind.MALFORMED, error="the turn has no room for an action")
        return _finish(context, started, end=EndReason.CONTEXT_FULL)
    request = SampleRequest(
        prompt_ids=tuple(context.compact_ids),
        images=tuple(context.images),
        stop_ids=(),
        max_tokens=num_actions,
        temperature=config.temperature if config.action_temperature is None else config.action_temperature,
        seed=seed,
        slot_ids=vocabulary.slot_ids,
        action_ids=vocabulary.action_ids,
        num_prefix_tokens=context.num_prefix_tokens,
    )
    output = await decider.sampler.sample(request)
    bins = vocabulary.bins(output.token_ids.tolist())
    if bins is None or len(bins) != num_actions:
        raise RuntimeError(f"the sampler answered {output.token_ids.tolist()} when asked for {num_actions} actions")
    start = len(context.token_ids)
    if last.kind is SegmentKind.ACT:  # the policy's own `<act>`
        start = context.segments.pop().start
    text = vocabulary.decode(output.token_ids.tolist())
    end = len(context.token_ids) + num_actions
    context.add_output(output, [Segment(kind=SegmentKind.ACT, start=start, end=end, text=text)])
    _put_mark(decider, context, "</act>")
    return _finish(context, started, actions=decider.processor.codec.decode(np.array(bins)))


def _segments(decider: Decider, context: Context, output: SampleOutput) -> list[Segment]:
    """The spans of a generation as segments, at their place in the turn."""
    vocabulary, config = decider.processor.vocabulary, decider.config
    token_ids = output.token_ids.tolist()
    segments = []
    for span in _spans(decider, context, vocabulary.symbols(token_ids)):
        error, kind = span.error, span.kind
        if kind is SegmentKind.THINK and span.end - span.start > config.max_think_tokens + 2:
            kind, error = SegmentKind.MALFORMED, f"the thought is longer than {config.max_think_tokens} tokens"
        segments.append(
            Segment(
                kind=kind,
                start=len(context.token_ids) + span.start,
                end=len(context.token_ids) + span.end,
                text=_text(decider, token_ids, span),
                error=error,
            )
        )
        if kind is SegmentKind.MALFORMED:  # what follows a malformed span belongs to it
            segments[-1] = replace(segments[-1], end=len(context.token_ids) + len(token_ids))
            break
    return segments


def _spans(decider: Decider, context: Context, symbols: tuple[str | None, ...]) -> tuple[Span, ...]:
    """The spans of a generation; marks that we put before it, or will behind it, are none of its tokens."""
    if decider.processor.is_parallel and symbols[-1] == "<act>":  # the actions come in an output of their own
        return tuple(replace(s, end=min(s.end, len(symbols))) for s in parse((*symbols, "</act>")))
    if context.ends_in(decider.processor.vocabulary.mark_ids["<act>"]):
        return tuple(replace(s, start=max(s.start - 1, 0), end=s.end - 1) for s in parse(("<act>", *symbols)))
    if decider.config.mode != "think" or symbols[-1] != "</think>":
        return parse(symbols)
    spans = parse((*symbols, "<act>", "</act>"))
    return tuple(replace(s, end=min(s.end, len(symbols))) for s in spans if s.kind is not SegmentKind.ACT)


def _text(decider: Decider, token_ids: list[int], span: Span) -> str:
    marks = set(decider.processor.vocabulary.mark_ids.values())
    ids = token_ids[span.start : span.end]
    if span.kind is not SegmentKind.MALFORMED:
        ids = [id_ for id_ in ids if id_ not in marks]
    return decider.processor.vocabulary.decode(ids)


def _use_tool(decider: Decider, observation: Observation, text: str) -> tuple[np.ndarray | str, Box | None]:
    """`call_tool`; a crash of the simulator in a zoom below it is raised as such, whatever the tool made of it."""
    crashes: list[EnvCrashError] = []

    def zoom(image: int, box: Box) -> np.ndarray:
        x1, y1, x2, y2 = map(operator.index, box)
        if not (0 <= image < len(observation.images) and 0 <= x1 < x2 <= 1000 and 0 <= y1 < y2 <= 1000):
            there = f"there are images 0..{len(observation.images) - 1}, a box lies in 0..1000"
            raise ValueError(f"zoom({image}, {box}): {there}")  # the tool's own fault, as is what it makes of a picture
        try:
            crop = observation.zoom(image, box)
        except (Exception, SystemExit) as error:
            is_told = isinstance(error, EnvCrashError)
            crashes.append(error if is_told else EnvCrashError(f"{type(error).__name__}: {error}"))
            raise crashes[-1] from None
        if not is_picture(crop):
            raise wrong("env.id: zoom", crop, PICTURE)
        return crop

    try:
        return call_tool(decider.tools, replace(observation, zoom=zoom), text)
    finally:
        if crashes:
            raise crashes[0]


def _add_result(processor: PolicyProcessor, context: Context, result: np.ndarray | str) -> None:
    is_image = not isinstance(result, str)
    ids = processor.result_ids(image=is_image, text="" if is_image else result)
    new_images = [np.array(result)] if is_image else []  # a tool may draw its next picture into the same array
    context.compact_ids += ids
    context.images += new_images
    context.add_context(processor.expand(ids, new_images), SegmentKind.TOOL_RESULT, "" if is_image else result)


def _act(decider: Decider, context: Context, last: Segment, started: float) -> Decision:
    if last.kind is SegmentKind.MALFORMED:
        is_full = len(context.token_ids) >= decider.config.max_turn_tokens
        return _finish(context, started, end=EndReason.CONTEXT_FULL if is_full else EndReason.MALFORMED)
    vocabulary, codec = decider.processor.vocabulary, decider.processor.codec
    marks = (vocabulary.mark_ids["<act>"], vocabulary.mark_ids["</act>"])
    bins = vocabulary.bins([id_ for id_ in context.token_ids[last.start : last.end] if id_ not in marks])
    expected = int(np.prod(codec.chunk_shape))
    if bins is None or len(bins) != expected:
        what = "a token that is no action" if bins is None else f"{len(bins)} action tokens, not {expected}"
        context.segments[-1] = replace(last, kind=SegmentKind.MALFORMED, error=f"<act> holds {what}")
        return _finish(context, started, end=EndReason.MALFORMED)
    return _finish(context, started, actions=codec.decode(np.array(bins)))


def _finish(
    context: Context, started: float, *, actions: np.ndarray | None = None, end: EndReason | None = None
) -> Decision:
    turn = Turn(
        token_ids=np.array(context.token_ids, np.int32),
        sampler_logprobs=np.array(context.logprobs, np.float32),
        segments=tuple(context.segments),
        images=tuple(context.images),
        actions=np.zeros((0, 0), np.float32) if actions is None else actions,
        policy_version=context.policy_version,
        latency_s=time.perf_counter() - started,
    )
    return Decision(turn=turn, actions=actions, end=end)


async def run_episode(decider: Decider, env: EnvThread, task: TaskSpec, *, member: int) -> Trajectory:
    """Play one episode from the task's initial state.

    Args:
        decider: policy side.
        env: simulator side; a crash in it ends the trajectory as ENV_ERROR, with `num_crashes` 1 if it was its own.
        task: where to start.
        member: index in the group; gives each member its own sampling seeds.
    """
    turns: list[Turn] = []
    num_env_steps = 0
    recall = Recall()
    try:
        options = {"task_id": task.task_id, "init_state_id": task.init_state_id}
        raw, _ = await env.call(lambda e: e.reset(seed=task.seed, options=options))
        task = replace(task, instruction=str(raw["instruction"]))
        while True:
            observation = await env.call(lambda e, raw=raw: observe(e, raw))
            seed = derive_seed(task.seed, member, len(turns))
            decision = await decide(decider, observation, env, seed=seed, recall=recall)
            if decision.actions is None:
                turns.append(decision.turn)
                return _trajectory(task, turns, decision.end or EndReason.MALFORMED, num_env_steps)
            chunk = decision.actions
            raw, rewards, terminated, truncated, info = await env.call(lambda e, c=chunk: e.step_chunk(c.copy()))
            env_end = _env_end(terminated, truncated, info)
            num_steps, has_succeeded = _executed(rewards, len(chunk), is_over=env_end is not None)
            turns.append(executed(decision.turn, chunk[:num_steps], decider.processor))
            num_env_steps += num_steps
            end = EndReason.SUCCESS if has_succeeded else env_end
            if end is not None:
                return _trajectory(task, turns, end, num_env_steps)
            recall = recall.after(
                decision.turn,
                think_every=decider.config.think_every,
                carry_thought=decider.processor.carry_thought,
            )
    except EnvCrashError as crash:
        num_crashes = int(not isinstance(crash, NeighbourCrashError))
        trajectory = _trajectory(task, turns, EndReason.ENV_ERROR, num_env_steps)
        return replace(trajectory, error=str(crash), num_crashes=num_crashes)


def observe(env: Simulator, raw: Mapping[str, Any]) -> Observation:
    """The env's observation dict as an Observation, with the env's zoom bound to it.

    Arrays are copies: the env may draw the next picture into the one that it has given.
    """

    def zoom(image: int, box: Box) -> np.ndarray:
        return np.array(env.zoom(image, box))

    return Observation(
        images=tuple(np.array(raw["images"])),
        proprio=np.array(raw["proprio"], np.float32),
        instruction=str(raw["instruction"]),
        zoom=zoom,
    )


def _executed(rewards: np.ndarray, chunk_length: int, *, is_over: bool) -> tuple[int, bool]:
    """The steps of a chunk up to the episode's end, and whether a reward tells of success there.

    An env that ends neither chunk nor episode at a success may have lost it again by the last step, whose info is all
    that there is.

    Raises:
        ValueError: rewards that break the contract of `rlvla_envs.VLAEnv.step_chunk`.
    """
    rewards = np.asarray(rewards)
    is_sound = rewards.ndim == 1 and 0 < len(rewards) <= chunk_length and np.isin(rewards, (0, 1)).all()
    # A chunk that ends early ends the episode: else a reward for the whole chunk would pass for that of one step.
    if not is_sound or (len(rewards) < chunk_length and not is_over and not rewards.any()):
        raise ValueError(
            f"the env's step_chunk returns the rewards {rewards.tolist()} for {chunk_length} actions: it has to return "
            "one for each step executed, 1.0 on success, else 0.0; rlvla_envs.check_env says what else it breaks"
        )
    successes = np.flatnonzero(rewards)
    return (int(successes[0]) + 1, True) if len(successes) else (len(rewards), False)


def _env_end(terminated: bool, truncated: bool, info: Mapping[str, Any]) -> EndReason | None:
    if info.get("is_success", False):
        return EndReason.SUCCESS
    if terminated:
        return EndReason.FAILURE
    return EndReason.MAX_ENV_STEPS if truncated else None


def _trajectory(task: TaskSpec, turns: list[Turn], end: EndReason, num_env_steps: int) -> Trajectory:
    return Trajectory(task=task, turns=tuple(turns), end=end, num_env_steps=num_env_steps)
