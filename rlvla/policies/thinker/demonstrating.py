"""Annotated demonstrations -> turns to train on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rlvla.data.dataset import DatasetError
from rlvla.data.types import Demonstration
from rlvla.policies.markup import parse
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.types import Segment, SegmentKind, Turn


def to_turn(processor: PolicyProcessor, demonstration: Demonstration) -> Turn:
    """A demonstration as the turn that a policy would have sampled, token for token.

    Raises:
        DatasetError: a text is not well-formed markup; the message quotes it.
    """
    prompt = processor.prompt_ids(demonstration.instruction, len(demonstration.images))
    pieces: list[tuple[np.ndarray, tuple[Segment, ...]]] = []
    expanded = processor.expand(prompt, demonstration.images)
    pieces.append((expanded, (Segment(kind=SegmentKind.PROMPT, start=0, end=len(expanded)),)))
    for i, text in enumerate(demonstration.texts):
        is_last = i == len(demonstration.crops)
        ids = processor.vocabulary.encode(text)
        pieces.append(_sampled(processor, ids + _action_ids(processor, demonstration) if is_last else ids, text))
        if is_last and processor.decoding.at_once:
            pieces[-1:] = _inject_close(*pieces[-1])
        if not is_last:
            result = processor.expand(processor.result_ids(image=True), [demonstration.crops[i]])
            pieces.append((result, (Segment(kind=SegmentKind.TOOL_RESULT, start=0, end=len(result)),)))
    return _join(pieces, demonstration)


def _action_ids(processor: PolicyProcessor, demonstration: Demonstration) -> list[int]:
    vocabulary = processor.vocabulary
    bins = processor.codec.encode(demonstration.actions)
    return [vocabulary.mark_ids["<act>"], *(vocabulary.action_ids[b] for b in bins), vocabulary.mark_ids["</act>"]]


def _sampled(processor: PolicyProcessor, ids: Sequence[int], text: str) -> tuple[np.ndarray, tuple[Segment, ...]]:
    spans = parse(processor.vocabulary.symbols(ids))
    if spans[-1].kind is SegmentKind.MALFORMED:
        raise DatasetError(f"annotation is not well-formed markup ({spans[-1].error}): {text!r}")
    return np.array(ids, np.int32), tuple(Segment(kind=s.kind, start=s.start, end=s.end) for s in spans)


def _inject_close(ids: np.ndarray, segments: tuple[Segment, ...]) -> list[tuple[np.ndarray, tuple[Segment, ...]]]:
    """Split the `</act>` off, which ends an action chunk but is not the policy's where all of it is one forward."""
    *others, act = segments
    closing = Segment(kind=SegmentKind.PROMPT, start=0, end=1)
    return [(ids[:-1], (*others, replace(act, end=act.end - 1))), (ids[-1:], (closing,))]


def _join(pieces: Sequence[tuple[np.ndarray, tuple[Segment, ...]]], demonstration: Demonstration) -> Turn:
    """One turn out of consecutive pieces, whose segments count from their own start."""
    segments: list[Segment] = []
    start = 0
    for ids, parts in pieces:
        segments += [Segment(kind=p.kind, start=start + p.start, end=start + p.end) for p in parts]
        start += len(ids)
    return Turn(
        token_ids=np.concatenate([ids for ids, _ in pieces]),
        sampler_logprobs=np.zeros(start, np.float32),
        segments=tuple(segments),
        images=(*demonstration.images, *demonstration.crops),
        actions=demonstration.actions,
        policy_version=0,
    )
