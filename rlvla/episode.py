"""One episode: look, (think, zoom)*, act, until the env ends it. Knows neither Ray nor vLLM."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from rlvla.config import EpisodeConfig
from rlvla.markup import Span, parse
from rlvla.prompt import PolicyProcessor
from rlvla.protocols import Env, SampleOutput, Sampler, SampleRequest, Tool
from rlvla.tools import call_tool
from rlvla.types import Box, EndReason, Observation, Segment, SegmentKind, TaskSpec, Trajectory, Turn

T = TypeVar("T")

MAX_CALL_TOKENS = 64
"""Tokens that a tool call may take beyond the thought before it."""


class EnvCrashError(Exception):
    """The simulator raised; the trajectory ends as ENV_ERROR."""


class EnvThread:
    """An env and the one thread that drives it, since a GL context belongs to a thread; others run meanwhile."""

    def __init__(self, make_env: Callable[[], Env]) -> None:
        self._make_env = make_env
        self._env: Env | None = None
        self._executor = ThreadPoolExecutor(max_workers=1)

    async def call(self, function: Callable[[Env], T]) -> T:
        """Run `function(env)` in the env's thread; raises EnvCrashError, after which the next call makes a new env."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._run, function)

    def _run(self, function: Callable[[Env], T]) -> T:
        try:
            if self._env is None:
                self._env = self._make_env()
            return function(self._env)
        except Exception as error:  # the one intended catch: whatever a simulator raises
            self._env = None
            raise EnvCrashError(f"{type(error).__name__}: {error}") from error

    def close(self) -> None:
        """Close the env in its thread and end the thread."""
        if self._env is not None:
            self._executor.submit(self._env.close).result()
        self._executor.shutdown()


@dataclass(frozen=True, kw_only=True)
class Decider:
    """Everything a decision needs beside the observation."""

    sampler: Sampler
    processor: PolicyProcessor
    tools: Mapping[str, Tool]
    config: EpisodeConfig


@dataclass(kw_only=True)
class _Context:
    """A turn while it grows: compact ids for the sampler, expanded ids and segments for the learner."""

    compact_ids: list[int]
    images: list[np.ndarray]
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    policy_version: int = 0

    def add_context(self, ids: np.ndarray, kind: SegmentKind, text: str = "") -> None:
        """Append tokens that we, not the policy, put there."""
        start = len(self.token_ids)
        self.token_ids += ids.tolist()
        self.logprobs += [0.0] * len(ids)
        self.segments.append(Segment(kind=kind, start=start, end=len(self.token_ids), text=text))

    def add_output(self, output: SampleOutput, segments: list[Segment]) -> None:
        """Append what the policy sampled; raises RuntimeError if the sampler saw another context than we keep."""
        if output.context_ids.tolist() != self.token_ids:
            raise RuntimeError(
                f"the sampler expanded the context to {len(output.context_ids)} tokens, the processor to "
                f"{len(self.token_ids)}: the checkpoint's processor and the sampler disagree"
            )
        self.compact_ids += output.token_ids.tolist()
        self.token_ids += output.token_ids.tolist()
        self.logprobs += output.logprobs.tolist()
        self.segments += segments
        self.policy_version = output.policy_version


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A finished turn and what it leads to."""

    turn: Turn
    actions: np.ndarray | None
    """[K, A], or None when the turn holds no executable action."""
    end: EndReason | None
    """Why the trajectory ends here, if it does."""


def derive_seed(*parts: int) -> int:
    """A 31-bit seed that depends on all parts, alike on every machine."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0]) & 0x7FFFFFFF


async def decide(
    decider: Decider, observation: Observation, env: EnvThread, *, seed: int, carried_thought: str = ""
) -> Decision:
    """Sample one turn: thoughts and tool calls as the policy likes, then one action chunk."""
    started = time.perf_counter()
    config, processor = decider.config, decider.processor
    context = _start(decider, observation, carried_thought)
    num_calls = 0
    for generation in itertools.count():
        room = config.max_turn_tokens - len(context.token_ids)
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
            call = partial(call_tool, decider.tools, observation, last.text)
            result, box = await env.call(lambda _, call=call: call())
        segments[-1] = replace(last, box=box, error=result if isinstance(result, str) else "")
        context.add_output(output, segments)
        _add_result(processor, context, result)
    return _finish(context, started, end=EndReason.CONTEXT_FULL)


def _start(decider: Decider, observation: Observation, carried_thought: str) -> _Context:
    processor = decider.processor
    ids = list(processor.prompt_ids(observation.instruction, len(observation.images), carried_thought))
    context = _Context(compact_ids=ids, images=list(observation.images))
    context.add_context(processor.expand(ids, context.images), SegmentKind.PROMPT, observation.instruction)
    if not decider.config.use_thought:
        _open_act(decider, context)
    return context


def _open_act(decider: Decider, context: _Context) -> None:
    """Put `<act>` there in the policy's place, so that nothing but the action is left to it."""
    mark = decider.processor.vocabulary.mark_ids["<act>"]
    context.compact_ids.append(mark)
    context.add_context(np.array([mark]), SegmentKind.PROMPT)


def _request(decider: Decider, context: _Context, room: int, seed: int) -> SampleRequest:
    config, vocabulary = decider.config, decider.processor.vocabulary
    num_action_tokens = int(np.prod(decider.processor.codec.chunk_shape)) + 2
    marks = vocabulary.mark_ids
    return SampleRequest(
        prompt_ids=tuple(context.compact_ids),
        images=tuple(context.images),
        stop_ids=(marks["</tool>" if config.use_zoom else "</think>"], marks["</act>"]),
        max_tokens=min(room, config.max_think_tokens + 2 + max(MAX_CALL_TOKENS, num_action_tokens)),
        temperature=config.temperature,
        seed=seed,
        banned_ids=() if config.use_zoom else (marks["<tool>"],),
    )


def _segments(decider: Decider, context: _Context, output: SampleOutput) -> list[Segment]:
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


def _spans(decider: Decider, context: _Context, symbols: tuple[str | None, ...]) -> tuple[Span, ...]:
    """The spans of a generation; an `<act>` that we open before it, or will behind it, is none of its tokens."""
    if context.compact_ids[-1] == decider.processor.vocabulary.mark_ids["<act>"]:
        return tuple(replace(s, start=max(s.start - 1, 0), end=s.end - 1) for s in parse(("<act>", *symbols)))
    if decider.config.use_zoom or symbols[-1] != "</think>":
        return parse(symbols)
    spans = parse((*symbols, "<act>", "</act>"))
    return tuple(replace(s, end=min(s.end, len(symbols))) for s in spans if s.kind is not SegmentKind.ACT)


def _text(decider: Decider, token_ids: list[int], span: Span) -> str:
    marks = set(decider.processor.vocabulary.mark_ids.values())
    ids = token_ids[span.start : span.end]
    if span.kind is not SegmentKind.MALFORMED:
        ids = [id_ for id_ in ids if id_ not in marks]
    return decider.processor.vocabulary.decode(ids)


def _add_result(processor: PolicyProcessor, context: _Context, result: np.ndarray | str) -> None:
    is_image = not isinstance(result, str)
    ids = processor.result_ids(image=is_image, text="" if is_image else result)
    new_images = [result] if is_image else []
    context.compact_ids += ids
    context.images += new_images
    context.add_context(processor.expand(ids, new_images), SegmentKind.TOOL_RESULT, "" if is_image else result)


def _act(decider: Decider, context: _Context, last: Segment, started: float) -> Decision:
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
    context: _Context, started: float, *, actions: np.ndarray | None = None, end: EndReason | None = None
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
        env: simulator side; a crash in it ends the trajectory as ENV_ERROR.
        task: where to start.
        member: index in the group; gives each member its own sampling seeds.
    """
    turns: list[Turn] = []
    num_env_steps = 0
    carried = ""
    try:
        options = {"task_id": task.task_id, "init_state_id": task.init_state_id}
        raw, _ = await env.call(lambda e: e.reset(seed=task.seed, options=options))
        task = replace(task, instruction=str(raw["instruction"]))
        while True:
            observation = await env.call(lambda e, raw=raw: observe(e, raw))
            seed = derive_seed(task.seed, member, len(turns))
            decision = await decide(decider, observation, env, seed=seed, carried_thought=carried)
            if decision.actions is None:
                turns.append(decision.turn)
                return _trajectory(task, turns, decision.end or EndReason.MALFORMED, num_env_steps)
            chunk = decision.actions
            raw, rewards, terminated, truncated, info = await env.call(lambda e, chunk=chunk: e.step_chunk(chunk))
            turns.append(replace(decision.turn, actions=chunk[: len(rewards)]))
            num_env_steps += len(rewards)
            end = _env_end(terminated, truncated, info)
            if end is not None:
                return _trajectory(task, turns, end, num_env_steps)
            if decider.processor.carry_thought:
                thoughts = decision.turn.of_kind(SegmentKind.THINK)
                carried = thoughts[-1].text if thoughts else ""
    except EnvCrashError as crash:
        return replace(_trajectory(task, turns, EndReason.ENV_ERROR, num_env_steps), error=str(crash))


def observe(env: Env, raw: Mapping[str, Any]) -> Observation:
    """The env's observation dict as an Observation, with the env's zoom bound to it."""

    def zoom(image: int, box: Box) -> np.ndarray:
        return env.zoom(image, box)

    return Observation(
        images=tuple(np.asarray(raw["images"])),
        proprio=np.asarray(raw["proprio"], np.float32),
        instruction=str(raw["instruction"]),
        zoom=zoom,
    )


def _env_end(terminated: bool, truncated: bool, info: Mapping[str, Any]) -> EndReason | None:
    if info.get("is_success", False):
        return EndReason.SUCCESS
    if terminated:
        return EndReason.FAILURE
    return EndReason.MAX_ENV_STEPS if truncated else None


def _trajectory(task: TaskSpec, turns: list[Turn], end: EndReason, num_env_steps: int) -> Trajectory:
    return Trajectory(task=task, turns=tuple(turns), end=end, num_env_steps=num_env_steps)
