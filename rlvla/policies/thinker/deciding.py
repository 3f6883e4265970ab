"""One decision of the thinker: (think, zoom)*, act. Knows neither Ray, nor vLLM, nor the env's process."""

from __future__ import annotations

import itertools
import operator
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from rlvla.config import EpisodeConfig
from rlvla.plugins import Plugin, wrong
from rlvla.policies.markup import MAX_CALL_TOKENS, MODES, Mode, Span
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.policies.thinker.tools import PICTURE, call_tool, is_picture
from rlvla.policies.thinker.turn_context import Context, Recall
from rlvla.protocols import Decided, EnvCrashError, InEnv, SampleOutput, Sampler, SampleRequest
from rlvla.types import Box, EndReason, Observation, Segment, SegmentKind, Turn, derive_seed


@dataclass(frozen=True, kw_only=True)
class Decider:
    """A `protocols.Decider`."""

    sampler: Sampler
    processor: PolicyProcessor
    tools: Mapping[str, Plugin]
    config: EpisodeConfig

    async def decide(
        self, observation: Observation, in_env: InEnv, *, seed: int, memory: Recall | None = None
    ) -> Decided:
        """Sample one turn: thoughts and tool calls as mode and policy like, then one action chunk.

        See `protocols.Decider`; `memory` holds the thoughts before this decision, none before the first.
        """
        started, recall = time.perf_counter(), memory or Recall()
        context = self._start(observation, recall)
        actions, end = await self._grow(context, observation, in_env, seed)
        turn = context.turn(actions, time.perf_counter() - started)
        return Decided(
            turn=turn, actions=actions, end=end, memory=recall.after(turn, think_every=self.config.think_every)
        )

    def executed(self, turn: Turn, actions: np.ndarray) -> Turn:
        """See `protocols.Decider`; the turn has one ACT segment."""
        processor = self.processor
        (index,) = (i for i, segment in enumerate(turn.segments) if segment.kind is SegmentKind.ACT)
        act = turn.segments[index]
        first = act.start + int(turn.token_ids[act.start] == processor.vocabulary.mark_ids["<act>"])
        span = (first + len(actions) * processor.codec.chunk_shape[1], first + processor.decoding.num_actions)
        marked = replace(act, unexecuted=span if span[0] < span[1] else None)
        return replace(turn, actions=actions, segments=(*turn.segments[:index], marked, *turn.segments[index + 1 :]))

    @property
    def _mode(self) -> Mode:
        return MODES[self.config.mode]

    async def _grow(
        self, context: Context, observation: Observation, in_env: InEnv, seed: int
    ) -> tuple[np.ndarray | None, EndReason | None]:
        """Ask the sampler and the tools until there are actions [K, A], or the turn ends without."""
        config, decoding = self.config, self.processor.decoding
        num_calls = 0
        for generation in itertools.count():
            room = config.max_turn_tokens - len(context.token_ids)
            if decoding.at_once and context.ends_in("<act>"):
                return await self._act_at_once(context, room, derive_seed(seed, generation))
            if room <= 0:
                break
            output = await self.sampler.sample(self._request(context, room, derive_seed(seed, generation)))
            segments = self._segments(context, output)
            last = segments[-1]
            if last.kind is SegmentKind.THINK:
                context.add_output(output, segments)
                context.add_mark("<act>")
                continue
            if last.kind is SegmentKind.ACT and decoding.at_once:
                context.add_output(output, segments)
                continue
            if last.kind is not SegmentKind.TOOL_CALL:
                context.add_output(output, segments)
                return self._act(context, last)
            num_calls += 1
            if num_calls > config.max_tool_calls + 1:
                segments[-1] = replace(last, kind=SegmentKind.MALFORMED, error="called again after the last refusal")
                context.add_output(output, segments)
                return None, EndReason.MALFORMED
            if num_calls > config.max_tool_calls:
                result, box = "error: too many calls, act now", None
            else:
                result, box = await in_env(partial(self._use_tool, observation, last.text))
            segments[-1] = replace(last, box=box, error=result if isinstance(result, str) else "")
            context.add_output(output, segments)
            context.add_result(result)
        return None, EndReason.CONTEXT_FULL

    def _start(self, observation: Observation, recall: Recall) -> Context:
        context = Context.begin(self.processor, observation.instruction, observation.images)
        if recall.reuses:
            context.add_reused(recall.thought)
        if recall.reuses or not self._mode.thinks:
            context.add_mark("<act>")
        return context

    def _request(self, context: Context, room: int, seed: int) -> SampleRequest:
        config, vocabulary, decoding = self.config, self.processor.vocabulary, self.processor.decoding
        return SampleRequest(
            prompt_ids=tuple(context.compact_ids),
            images=tuple(context.images),
            stop_ids=(vocabulary.mark_ids[self._mode.stop], vocabulary.mark_ids[decoding.last_mark]),
            max_tokens=min(room, config.max_think_tokens + 2 + max(MAX_CALL_TOKENS, decoding.num_last_tokens)),
            temperature=config.temperature,
            seed=seed,
            banned_ids=vocabulary.banned_ids(config.mode),
            num_prefix_tokens=context.segments[0].end,
        )

    async def _act_at_once(self, context: Context, room: int, seed: int) -> tuple[np.ndarray | None, EndReason | None]:
        """Draw the whole action chunk in one forward, behind an `<act>` that the policy chose or that we put there."""
        config, vocabulary, num_actions = self.config, self.processor.vocabulary, self.processor.decoding.num_actions
        last = context.segments[-1]
        if num_actions + 1 > room:
            if last.kind is SegmentKind.ACT:
                error = "the turn has no room for an action"
                context.segments[-1] = replace(last, kind=SegmentKind.MALFORMED, error=error)
            return None, EndReason.CONTEXT_FULL
        request = replace(
            self._request(context, num_actions, seed),
            stop_ids=(),
            max_tokens=num_actions,
            temperature=config.temperature if config.action_temperature is None else config.action_temperature,
            banned_ids=(),
            num_actions=num_actions,
        )
        output = await self.sampler.sample(request)
        bins = vocabulary.bins(output.token_ids.tolist())
        if bins is None or len(bins) != num_actions:
            raise RuntimeError(f"the sampler answered {output.token_ids.tolist()} when asked for {num_actions} actions")
        start = len(context.token_ids)
        if last.kind is SegmentKind.ACT:  # the policy's own `<act>`
            start = context.segments.pop().start
        text = vocabulary.decode(output.token_ids.tolist())
        end = len(context.token_ids) + num_actions
        context.add_output(output, [Segment(kind=SegmentKind.ACT, start=start, end=end, text=text)])
        context.add_mark("</act>")
        return self.processor.codec.decode(np.array(bins)), None

    def _segments(self, context: Context, output: SampleOutput) -> list[Segment]:
        """The spans of a generation as segments, at their place in the turn."""
        vocabulary, config = self.processor.vocabulary, self.config
        token_ids, before = output.token_ids.tolist(), len(context.token_ids)
        is_open = context.ends_in("<act>")
        segments = []
        for span in self.processor.decoding.spans(vocabulary.symbols(token_ids), is_open=is_open, mode=self._mode):
            error, kind = span.error, span.kind
            if kind is SegmentKind.THINK and span.end - span.start > config.max_think_tokens + 2:
                kind, error = SegmentKind.MALFORMED, f"the thought is longer than {config.max_think_tokens} tokens"
            text = self._text(token_ids, span)
            segments.append(
                Segment(kind=kind, start=before + span.start, end=before + span.end, text=text, error=error)
            )
            if kind is SegmentKind.MALFORMED:  # what follows a malformed span belongs to it
                segments[-1] = replace(segments[-1], end=before + len(token_ids))
                break
        return segments

    def _text(self, token_ids: list[int], span: Span) -> str:
        marks = set(self.processor.vocabulary.mark_ids.values())
        ids = token_ids[span.start : span.end]
        if span.kind is not SegmentKind.MALFORMED:
            ids = [id_ for id_ in ids if id_ not in marks]
        return self.processor.vocabulary.decode(ids)

    def _use_tool(self, observation: Observation, text: str) -> tuple[np.ndarray | str, Box | None]:
        """`call_tool`; a crash of the simulator in a zoom below it is raised as such, whatever the tool made of it."""
        crashes: list[EnvCrashError] = []

        def zoom(image: int, box: Box) -> np.ndarray:
            x1, y1, x2, y2 = map(operator.index, box)
            if not (0 <= image < len(observation.images) and 0 <= x1 < x2 <= 1000 and 0 <= y1 < y2 <= 1000):
                there = f"there are images 0..{len(observation.images) - 1}, a box lies in 0..1000"
                raise ValueError(f"zoom({image}, {box}): {there}")  # the tool's own, as is what it makes of a picture
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
            return call_tool(self.tools, replace(observation, zoom=zoom), text)
        finally:
            if crashes:
                raise crashes[0]

    def _act(self, context: Context, last: Segment) -> tuple[np.ndarray | None, EndReason | None]:
        """The actions of a turn whose text has ended."""
        if last.kind is SegmentKind.MALFORMED:
            is_full = len(context.token_ids) >= self.config.max_turn_tokens
            return None, EndReason.CONTEXT_FULL if is_full else EndReason.MALFORMED
        vocabulary, expected = self.processor.vocabulary, self.processor.decoding.num_actions
        marks = (vocabulary.mark_ids["<act>"], vocabulary.mark_ids["</act>"])
        bins = vocabulary.bins([id_ for id_ in context.token_ids[last.start : last.end] if id_ not in marks])
        if bins is None or len(bins) != expected:
            what = "a token that is no action" if bins is None else f"{len(bins)} action tokens, not {expected}"
            context.segments[-1] = replace(last, kind=SegmentKind.MALFORMED, error=f"<act> holds {what}")
            return None, EndReason.MALFORMED
        return self.processor.codec.decode(np.array(bins)), None
