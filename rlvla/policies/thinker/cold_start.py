"""Annotated demonstrations -> rows to train on, and the policy that a cold start begins with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rlvla.config import SFTConfig
from rlvla.data.dataset import DatasetError, DemonstrationSet, text_corpus
from rlvla.data.types import Demonstration
from rlvla.policies.models import auto
from rlvla.policies.models.lora import read_config
from rlvla.policies.thinker.action_slots import add_slots
from rlvla.policies.thinker.actions import NUM_BINS, BinCodec, QuantileCodec, codec_from_dict, statistics_of
from rlvla.policies.thinker.markup import parse
from rlvla.policies.thinker.prompt import PolicyProcessor, extend_vocabulary, own_action_ids, read_settings
from rlvla.types import Segment, SegmentKind, Turn

DEMONSTRATIONS = "demonstrations"
"""`statistics_key` for those of the data set itself."""


def start_policy(cfg: SFTConfig, demonstrations: DemonstrationSet) -> tuple[Any, PolicyProcessor]:
    """The model to train and its processor: `cfg.model`, adapted, with the tokens it lacks added, or a new tiny VLM.

    A policy that is trained further stays what it is, unless the config says otherwise. The codec of another model is
    fitted to the demonstrations, or, of OpenVLA, is the one of its action statistics; these then are the only ones in
    the model's config, so that its codec and its `norm_stats` never disagree.

    Raises:
        ValueError: keys that contradict the checkpoint; the message names key, value and what to do.
    """
    before = read_settings(cfg.model)
    suites = (*demonstrations.suites, *before.get("trained_suites", ()))
    if cfg.model:
        import torch

        if cfg.adapter is not None and read_config(cfg.model) is not None:
            raise ValueError(f"adapter is {cfg.adapter}, and {cfg.model} holds one already: leave adapter out")
        model = auto.load_model(cfg.model, getattr(torch, cfg.learner.dtype), cfg.adapter)
        processor = auto.load_processor(cfg.model)
    else:
        from rlvla.policies.models.tiny_vlm import build_tiny

        model, processor = build_tiny(cfg.tiny, list(text_corpus(demonstrations)), cfg.num_bins or NUM_BINS, cfg.seed)
    action_ids = own_action_ids(model.config)
    codec = _codec(cfg, demonstrations, model.config, before)
    if cfg.model:
        extend_vocabulary(model, processor, codec.num_bins if action_ids is None else 0)
    action_decoding = cfg.action_decoding or before.get("action_decoding", "autoregressive")
    if action_decoding != "autoregressive":
        chunk_length, num_dims = codec.chunk_shape
        add_slots(model, processor, chunk_length * num_dims)
    return model, PolicyProcessor.create(
        processor,
        codec,
        before.get("carry_thought", False) if cfg.carry_thought is None else cfg.carry_thought,
        suites,
        action_decoding,
        cfg.prefix_attention or before.get("prefix_attention", "causal"),
        action_ids,
        demonstrations.views,
    )


def _codec(cfg: SFTConfig, demonstrations: DemonstrationSet, config: Any, before: Mapping[str, Any]) -> QuantileCodec:
    """What the action tokens mean; `before` has the settings of a policy that is trained further."""
    known = codec_from_dict(before["codec"]) if before else None
    is_open = not cfg.statistics_key and cfg.statistics_kind is None
    if known is not None and is_open and cfg.num_bins in (None, known.num_bins):
        if isinstance(known, BinCodec):
            _refuse_other_grippers(cfg, demonstrations)
        return _kept(cfg, demonstrations, known)
    if own_action_ids(config) is not None:
        _refuse_other_grippers(cfg, demonstrations)
        return _published(cfg, demonstrations, config)
    return _fitted(cfg, demonstrations, cfg.num_bins or (NUM_BINS if known is None else known.num_bins))


def _kept(cfg: SFTConfig, demonstrations: DemonstrationSet, codec: QuantileCodec) -> QuantileCodec:
    shape, num_dims = list(demonstrations.actions().shape[1:]), codec.chunk_shape[1]
    grippers = [None if dim is None else dim % num_dims for dim in (cfg.gripper_dim, codec.gripper_dim)]
    problem = ""
    if shape != list(codec.chunk_shape):
        problem = f"dataset: {cfg.dataset} has chunks of actions {shape}, {cfg.model} takes {list(codec.chunk_shape)}"
    elif grippers[0] != grippers[1]:
        problem = f"gripper_dim is {cfg.gripper_dim}, that of {cfg.model} {codec.gripper_dim}: set it alike"
    if problem:
        raise ValueError(
            f"{problem}; or set statistics_key {DEMONSTRATIONS}, for action tokens that mean what {cfg.dataset} holds"
        )
    return codec


def _fitted(cfg: SFTConfig, demonstrations: DemonstrationSet, num_bins: int) -> QuantileCodec:
    if cfg.statistics_key not in ("", DEMONSTRATIONS) or cfg.statistics_kind not in (None, "bounds_q99"):
        raise ValueError(
            f"statistics_key is {cfg.statistics_key!r}, statistics_kind {cfg.statistics_kind!r}: only an OpenVLA "
            f"checkpoint has action statistics, model is {cfg.model!r}; leave both out"
        )
    actions = demonstrations.actions()
    return QuantileCodec.fit(
        actions.reshape(-1, actions.shape[-1]),
        num_bins=num_bins,
        chunk_length=actions.shape[1],
        gripper_dim=cfg.gripper_dim,
    )


def _refuse_other_grippers(cfg: SFTConfig, demonstrations: DemonstrationSet) -> None:
    """OpenVLA's action tokens hold a share of the way from -1, open, to 1, closed: no gripper that goes from 0 to 1."""
    if cfg.gripper_dim is None:
        return
    values = demonstrations.actions()[..., cfg.gripper_dim]
    low, high = float(values.min()), float(values.max())
    if low < -1 or high > 1 or 0 <= low < 1:
        raise ValueError(
            f"gripper_dim is {cfg.gripper_dim}, which goes from {low:g} to {high:g} in {cfg.dataset}, but from -1 "
            "(open) to 1 (closed) with OpenVLA's action tokens: annotate with read.gripper openvla or droid, or set "
            "gripper_dim null"
        )


def _published(cfg: SFTConfig, demonstrations: DemonstrationSet, config: Any) -> BinCodec:
    """The codec of OpenVLA's action tokens; leaves its statistics alone in `config.norm_stats`."""
    if cfg.num_bins not in (None, config.n_action_bins):
        raise ValueError(
            f"num_bins is {cfg.num_bins}, {cfg.model} has {config.n_action_bins} action tokens: set num_bins "
            f"{config.n_action_bins}"
        )
    actions = demonstrations.actions()
    norm_stats, key = config.norm_stats or {}, cfg.statistics_key
    if key == DEMONSTRATIONS:
        key = cfg.dataset.resolve().name
        norm_stats = {key: {"action": statistics_of(actions.reshape(-1, actions.shape[-1]), cfg.gripper_dim)}}
    try:
        codec = BinCodec.from_norm_stats(
            norm_stats,
            key or None,
            num_bins=config.n_action_bins,
            chunk_length=actions.shape[1],
            gripper_dim=cfg.gripper_dim,
            kind=cfg.statistics_kind or "bounds_q99",
        )
    except ValueError as error:
        raise ValueError(
            f"statistics_key is {cfg.statistics_key!r} for {cfg.model}: {error}; or set statistics_key "
            f"{DEMONSTRATIONS}, for those of {cfg.dataset}"
        ) from None
    if len(codec.low) != actions.shape[-1]:
        raise ValueError(
            f"statistics_key is {cfg.statistics_key!r} for {cfg.model}: these are of {len(codec.low)} action "
            f"dimensions, those of {cfg.dataset} have {actions.shape[-1]}; set statistics_key {DEMONSTRATIONS}"
        )
    config.norm_stats = {name: stats for name, stats in norm_stats.items() if name == (key or name)}
    return codec


def to_turn(processor: PolicyProcessor, demonstration: Demonstration) -> Turn:
    """A demonstration as the turn that a policy would have sampled, token for token.

    Raises:
        DatasetError: a text is not well-formed markup; the message quotes it.
    """
    carried = demonstration.carried_thought if processor.carry_thought else ""
    prompt = processor.prompt_ids(demonstration.instruction, len(demonstration.images), carried)
    pieces: list[tuple[np.ndarray, tuple[Segment, ...]]] = []
    expanded = processor.expand(prompt, demonstration.images)
    pieces.append((expanded, (Segment(kind=SegmentKind.PROMPT, start=0, end=len(expanded)),)))
    for i, text in enumerate(demonstration.texts):
        is_last = i == len(demonstration.crops)
        ids = processor.vocabulary.encode(text)
        pieces.append(_sampled(processor, ids + _action_ids(processor, demonstration) if is_last else ids, text))
        if is_last and processor.is_parallel:
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
