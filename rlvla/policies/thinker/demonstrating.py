"""Annotated demonstrations -> turns to train on."""

from __future__ import annotations

from itertools import zip_longest

from rlvla.data.dataset import DatasetError
from rlvla.data.types import Demonstration
from rlvla.policies.markup import parse
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.policies.thinker.turn_context import Context
from rlvla.types import Segment, SegmentKind, Turn


def to_turn(processor: PolicyProcessor, demonstration: Demonstration) -> Turn:
    """A demonstration as the turn that a policy would have sampled, token for token.

    Raises:
        DatasetError: a text is not well-formed markup; the message quotes it.
    """
    vocabulary, at_once = processor.vocabulary, processor.decoding.at_once
    context = Context.begin(processor, demonstration.instruction, demonstration.images)
    for text, crop in zip_longest(demonstration.texts, demonstration.crops):
        ids, before = vocabulary.encode(text), len(context.token_ids)
        if crop is None:
            bins = processor.codec.encode(demonstration.actions)
            actions = [vocabulary.action_ids[bin_] for bin_ in bins]
            ids += [vocabulary.mark_ids["<act>"], *actions, vocabulary.mark_ids["</act>"]]
        spans = parse(vocabulary.symbols(ids))
        if spans[-1].kind is SegmentKind.MALFORMED:
            raise DatasetError(f"annotation is not well-formed markup ({spans[-1].error}): {text!r}")
        if crop is None and at_once:
            ids.pop()  # not the policy's where all of a chunk is one forward
        ends = [min(span.end, len(ids)) for span in spans]
        segments = [
            Segment(kind=span.kind, start=before + span.start, end=before + end)
            for span, end in zip(spans, ends, strict=True)
        ]
        context.add_said(ids, [0.0] * len(ids), segments)
        if crop is not None:
            context.add_result(crop)
        elif at_once:
            context.add_mark("</act>")
    return context.turn(demonstration.actions)
