"""Tiny policies with hybrid attention, of every architecture, and turns for them to score and to sample."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlvla.config import ActionDecoding, EpisodeConfig
from rlvla.data.types import Demonstration
from rlvla.policies.buckets import Weights, pack
from rlvla.policies.markup import print_think, print_zoom
from rlvla.policies.models import auto
from rlvla.policies.models.backbones import own_action_ids, placeholder_ids
from rlvla.policies.thinker.actions import QuantileCodec
from rlvla.policies.thinker.decoding import Decoding
from rlvla.policies.thinker.policy import Thinker, save_policy
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.policies.thinker.settings import PrefixAttention, Settings
from rlvla.policies.thinker.vocabulary import add_slots, extend_vocabulary
from rlvla.protocols import BAN_BIAS, SampleOutput, Sampler, SampleRequest
from rlvla.types import Segment, SegmentKind, Turn
from tests import openvla_checkpoints as published
from tests import tiny_checkpoints
from tests.trajectories import make_turn

ARCHITECTURES = (*tiny_checkpoints.ARCHITECTURES, "openvla")
NUM_BINS = 8
CHUNK_LENGTH = 3
NUM_ACTIONS = 6
INSTRUCTION = "press the red pad"
ZOOM = print_zoom(0, (100, 250, 300, 450))
THOUGHT = print_think("the pad at 200, 350 is red")
CORPUS = [INSTRUCTION, THOUGHT + ZOOM, print_think("it is red. press it")]
TEMPERATURES = {"temperature": 1.3, "action_temperature": 0.6}
"""At which `oracle` scores."""
SIZES = {"hidden_size": 64, "num_layers": 2, "vision_layers": 1}


def build(
    architecture: str,
    folder: Path,
    *,
    action_decoding: ActionDecoding = "parallel",
    prefix_attention: PrefixAttention = "causal",
    chunk_length: int = CHUNK_LENGTH,
) -> tuple[Any, PolicyProcessor]:
    """A model with random weights, the slots' included, in float32; `folder` is for OpenVLA's files."""
    codec = QuantileCodec(low=(-1.0, 0.0), high=(1.0, 2.0), num_bins=NUM_BINS, chunk_length=chunk_length)
    if architecture.startswith("openvla"):
        published.write_published(folder, is_fused=architecture == "openvla")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "n_action_bins": NUM_BINS}))
        model, hf_processor = auto.load_model(folder, torch.float32), auto.load_processor(folder)
        extend_vocabulary(model, hf_processor, num_bins=0)
    else:
        model, hf_processor = tiny_checkpoints.build(architecture, CORPUS, NUM_BINS, **SIZES)
    settings = Settings(codec=codec, action_decoding=action_decoding, prefix_attention=prefix_attention)
    num_slots = Decoding.read(settings).num_slots
    add_slots(model, hf_processor, num_slots)
    processor = PolicyProcessor.create(hf_processor, settings, own_action_ids(model.config))
    embeddings = model.get_input_embeddings().weight
    with torch.no_grad():  # slots of zeros would hide one that is fed in the wrong place
        noise = torch.randn(num_slots, embeddings.shape[1], generator=torch.Generator().manual_seed(0))
        embeddings[list(processor.vocabulary.slot_ids)] = noise * embeddings.std()
    return model.eval(), processor


def save(architecture: str, path: Path, **options: Any) -> Path:
    """Write such a policy as a checkpoint; options as of `build`."""
    model, processor = build(architecture, path / "published", **options)
    save_policy(model, processor, path / "policy")
    return path / "policy"


def in_one_bucket(tensors: Mapping[str, torch.Tensor]) -> Weights:
    """As a sampler is sent them."""
    return Weights(names=frozenset(tensors), buckets=[{name: pack(tensor) for name, tensor in tensors.items()}])


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)


def turn(
    processor: PolicyProcessor, *, num_zooms: int = 1, seed: int = 0, thought: str = THOUGHT, is_open: bool = False
) -> Turn:
    """(Thought, zoom, crop)*, thought, `<act>`, random actions, `</act>`; `is_open`: the `<act>` was injected."""
    bins = np.random.default_rng(seed).integers(0, NUM_BINS, NUM_ACTIONS)
    demonstration = Demonstration(
        instruction=INSTRUCTION,
        images=(image(seed),),
        proprio=np.zeros(1, np.float32),
        texts=(*[thought + ZOOM] * num_zooms, thought),
        crops=tuple(image(seed + 1 + i) for i in range(num_zooms)),
        actions=processor.codec.decode(bins),
    )
    turn = Thinker(processor).to_turn(demonstration)
    segments = list(turn.segments)
    if is_open:
        place = [segment.kind for segment in segments].index(SegmentKind.ACT)
        act = segments[place]
        opening = Segment(kind=SegmentKind.PROMPT, start=act.start, end=act.start + 1)
        segments[place : place + 1] = [opening, replace(act, start=opening.end)]
    turn = replace(turn, segments=tuple(segments))
    return replace(turn, sampler_logprobs=np.where(turn.loss_mask, -3.0, 0.0).astype(np.float32))


def inputs(processor: PolicyProcessor, *turns: Turn) -> dict[str, torch.Tensor]:
    """What a model in float32 takes of turns."""
    return Thinker(processor).inputs(turns, "cpu", torch.float32)


def places(turn: Turn) -> tuple[int, int]:
    """Where the `<act>` stands, and the `</act>`."""
    end = turn.segments[-1].start
    return end - NUM_ACTIONS - 1, end


def oracle(model: Any, processor: PolicyProcessor, turn: Turn, *, is_hot: bool = True) -> torch.Tensor:
    """One row, a mask of loops, a softmax per token: its logprob, and the entropy of what it was drawn from [2, L].

    At `TEMPERATURES`, or, if it is not hot, at 1.
    """
    heat = TEMPERATURES if is_hot else dict.fromkeys(TEMPERATURES, 1.0)
    vocabulary, length = processor.vocabulary, len(turn.token_ids)
    has_block = processor.decoding.at_once and not turn.is_malformed
    act, close = places(turn) if has_block else (length, length)
    fed = turn.token_ids.copy()
    if has_block:
        fed[act + 1 : close] = vocabulary.slot_ids
    mutual = range(act, close) if processor.settings.action_decoding == "parallel" else ()
    end = turn.segments[0].end if processor.settings.prefix_attention == "bidirectional" else 0
    sees = [
        [k <= q or (q in mutual and k in mutual) or (q < end and k < end) for k in range(length)] for q in range(length)
    ]
    ids = torch.from_numpy(fed).long()[None]
    extra: dict[str, Any] = processor.pixel_inputs([turn.images])
    if processor.backbone.is_flat:  # Qwen-VL derives positions from a mask of two axes
        extra["mm_token_type_ids"] = (ids == vocabulary.placeholder_id).int()
        grid = {"image_grid_thw": extra["image_grid_thw"], "attention_mask": torch.ones_like(ids)}
        extra["position_ids"], _ = model.model.get_rope_index(ids, extra["mm_token_type_ids"], **grid)
    logits = model(input_ids=ids, attention_mask=torch.tensor(sees)[None, None], **extra).logits[0]
    values = [torch.zeros(2)]
    for t in range(1, length):
        token, row = int(turn.token_ids[t]), logits[t - 1].clone()
        if act < t < close:
            scores = (row[list(vocabulary.action_ids)] / heat["action_temperature"]).log_softmax(-1)
            logprob = scores[vocabulary.action_ids.index(token)]
        else:
            row[[*placeholder_ids(model.config), *vocabulary.slot_ids]] += BAN_BIAS
            scores = (row / heat["temperature"]).log_softmax(-1)
            logprob = scores[token]
        values.append(torch.stack([logprob, -(scores.exp() * scores).sum()]))
    return torch.stack(values, dim=1)


def mismatch(
    model: Any, processor: PolicyProcessor, turns: Sequence[Turn], temperature: float = 1.0, **more: Any
) -> float:
    """Largest |sampler - learner| logprob of what was sampled, nats; `more` of `EpisodeConfig`.

    At temperature 0 both mean 1; actions at half of it, unless it is said.
    """
    episode = EpisodeConfig(temperature=temperature or 1.0, **{"action_temperature": temperature / 2 or 1.0, **more})
    with torch.no_grad():
        logprobs = Thinker(processor).logprobs(model, inputs(processor, *turns), episode).logprobs
    rows = [row[: len(turn.token_ids)].numpy() for row, turn in zip(logprobs, turns, strict=True)]
    apart = [np.abs(row - turn.sampler_logprobs)[turn.loss_mask] for row, turn in zip(rows, turns, strict=True)]
    return float(np.concatenate(apart).max())


async def sampled_turn(
    sampler: Sampler,
    processor: PolicyProcessor,
    temperature: float,
    *,
    num_cameras: int = 1,
    num_zooms: int = 1,
    mode: str = "zoom",
) -> Turn:
    """(Text, the result of a zoom)*, text; of a parallel policy also actions, at half the temperature.

    What the mode bans is banned.
    """
    marks, images, kind = processor.vocabulary.mark_ids, [image(7 + i) for i in range(num_cameras)], SegmentKind
    compact = list(processor.prompt_ids(INSTRUCTION, num_cameras))
    prompt = processor.expand(compact, images)
    parts: list[tuple[SegmentKind, Any, Any]] = [(kind.PROMPT, prompt, None)]
    asked: dict[str, Any] = {"stop_ids": (), "num_prefix_tokens": len(prompt)}

    async def ask(kind: SegmentKind, **changes: Any) -> SampleOutput:
        request = SampleRequest(prompt_ids=tuple(compact), images=tuple(images), seed=len(parts), **asked, **changes)
        output = await sampler.sample(request)
        assert output.context_ids.tolist() == np.concatenate([ids for _, ids, _ in parts]).tolist()
        compact.extend(output.token_ids.tolist())
        parts.append((kind, output.token_ids, output.logprobs))
        return output

    banned = processor.vocabulary.banned_ids(mode)
    for i in range(num_zooms + 1):
        if i:
            images.append(image(7 + len(images)))
            result = processor.result_ids(image=True)
            compact += result
            parts.append((kind.TOOL_RESULT, processor.expand(result, images[-1:]), None))
        await ask(kind.THINK, max_tokens=12, temperature=temperature, banned_ids=banned)
    if processor.decoding.at_once:
        compact.append(marks["<act>"])
        parts.append((kind.PROMPT, [marks["<act>"]], None))
        num_actions = processor.decoding.num_actions
        drawn = await ask(kind.ACT, max_tokens=12, temperature=temperature / 2, num_actions=num_actions)
        assert set(drawn.token_ids.tolist()) <= set(processor.vocabulary.action_ids)
    parts.append((kind.PROMPT, [marks["</act>"]], None))
    ids = np.concatenate([part for _, part, _ in parts])
    turn = make_turn([(k, len(part)) for k, part, _ in parts], token_ids=ids.tolist(), images=images)
    logprobs = [np.zeros(len(part)) if scores is None else scores for _, part, scores in parts]
    return replace(turn, sampler_logprobs=np.concatenate(logprobs).astype(np.float32))
