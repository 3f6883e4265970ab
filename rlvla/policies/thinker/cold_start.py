"""The policy that a cold start begins with: a model, its new tokens, and what its action tokens mean."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rlvla.config import SFTConfig
from rlvla.data.dataset import DemonstrationSet, text_corpus
from rlvla.policies.models import auto
from rlvla.policies.models.backbones import own_action_ids
from rlvla.policies.models.lora import read_config
from rlvla.policies.thinker.actions import NUM_BINS, BinCodec, QuantileCodec, statistics_of
from rlvla.policies.thinker.decoding import Decoding
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.policies.thinker.settings import Settings, read_settings
from rlvla.policies.thinker.vocabulary import add_slots, extend_vocabulary

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
    if cfg.model:
        import torch

        if cfg.adapter is not None and read_config(cfg.model) is not None:
            raise ValueError(f"adapter is {cfg.adapter}, and {cfg.model} holds one already: leave adapter out")
        model = auto.load_model(cfg.model, getattr(torch, cfg.learner.dtype), cfg.adapter)
        processor = auto.load_processor(cfg.model)
    else:
        from rlvla.policies.models.tiny_vlm import build_tiny

        model, processor = build_tiny(cfg.tiny, text_corpus(demonstrations), cfg.num_bins or NUM_BINS, cfg.seed)
    action_ids = own_action_ids(model.config)
    codec = _codec(cfg, demonstrations, model.config, before)
    if cfg.model:
        extend_vocabulary(model, processor, codec.num_bins if action_ids is None else 0)
    settings = replace(
        before or Settings(codec=codec),
        codec=codec,
        trained_suites=tuple(sorted({*demonstrations.suites, *(before.trained_suites if before else ())})),
        views=tuple(demonstrations.views),
        **{key: value for key in ("action_decoding", "prefix_attention") if (value := getattr(cfg, key)) is not None},
    )
    add_slots(model, processor, Decoding.read(settings).num_slots)
    return model, PolicyProcessor.create(processor, settings, action_ids)


def _codec(cfg: SFTConfig, demonstrations: DemonstrationSet, config: Any, before: Settings | None) -> QuantileCodec:
    """What the action tokens mean; `before` has the settings of a policy that is trained further."""
    known = before.codec if before else None
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
