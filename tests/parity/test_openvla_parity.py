"""OpenVLA against independent parts: transformers' own DINOv2 and SigLIP, and its Llama on joined embeddings."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from rlvla.policies.models.openvla.checkpoint import load_checkpoint
from rlvla.policies.models.openvla.config import TowerConfig
from rlvla.policies.models.openvla.vision import VisionTransformer
from tests import openvla_checkpoints as published

TOLERANCE = 1e-5  # of features and logits of about 1, float32
FEATURIZER, FUSED = "vision_backbone.featurizer.", "vision_backbone.fused_featurizer."
Weights = dict[str, torch.Tensor]


def part(weights: Weights, prefix: str) -> Weights:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def renamed(weights: Weights, names: dict[str, str]) -> Weights:
    """Weights under transformers' names, by patterns of timm's; queries, keys and values are apart."""
    result = {}
    for name, tensor in weights.items():
        parts = zip("qkv", tensor.chunk(3), strict=True) if "attn.qkv" in name else [("", tensor)]
        for letter, part_of_it in parts:
            other = name.replace("attn.qkv", f"attn.{letter}_proj")
            for pattern, replacement in names.items():
                other = re.sub(pattern, replacement, other)
            result[other] = part_of_it
    return result


SIZES = {"hidden_size": "hidden_size", "num_layers": "num_hidden_layers", "num_attention_heads": "num_attention_heads"}
SIZES |= {"image_size": "image_size", "patch_size": "patch_size"}
"""Ours -> transformers'."""


def dinov2(weights: Weights, tower: dict[str, Any]) -> Dinov2WithRegistersModel:
    config = Dinov2WithRegistersConfig(
        mlp_ratio=tower["intermediate_size"] // tower["hidden_size"],
        num_register_tokens=tower["num_registers"],
        layer_norm_eps=1e-6,
        **{theirs: tower[ours] for ours, theirs in SIZES.items()},
    )
    model = Dinov2WithRegistersModel(config).eval()
    names = {r"^blocks": "encoder.layer", r"^norm": "layernorm", r"attn\.proj": "attn.o_proj", r"attn\.": "attention."}
    names |= {r"ls(\d)\.scale_factor": r"layer_scale\1.lambda1", r"^cls_token": "embeddings.cls_token"}
    names |= {r"^reg_token": "embeddings.register_tokens", r"^pos_embed": "embeddings.position_embeddings"}
    names |= {r"^patch_embed\.proj": "embeddings.patch_embeddings.projection"}
    own = {
        "pos_embed": F.pad(weights["pos_embed"], (0, 0, 1, 0)),  # timm adds no position to the class token
        "embeddings.mask_token": torch.zeros(1, tower["hidden_size"]),
    }
    model.load_state_dict(renamed(weights | own, names))
    return model


def siglip(weights: Weights, tower: dict[str, Any]) -> SiglipVisionModel:
    config = SiglipVisionConfig(
        intermediate_size=tower["intermediate_size"],
        hidden_act="gelu",  # timm's; transformers' SigLIP has the tanh approximation by default
        vision_use_head=False,
        **{theirs: tower[ours] for ours, theirs in SIZES.items()},
    )
    model = SiglipVisionModel(config).eval()
    names = {r"^blocks": "encoder.layers", r"^norm": "post_layernorm", r"norm(\d)": r"layer_norm\1"}
    names |= {r"attn\.proj": "attn.out_proj", r"attn\.": "self_attn."}
    names |= {r"^pos_embed": "embeddings.position_embedding.weight"}
    names |= {r"^patch_embed\.proj": "embeddings.patch_embedding"}
    used = {name: tensor for name, tensor in weights.items() if not name.startswith("attn_pool.")}
    model.load_state_dict(renamed(used | {"pos_embed": weights["pos_embed"][0]}, names))
    return model


def last_but_one(model: Any, pixels: torch.Tensor, num_prefix: int) -> torch.Tensor:
    """[B, P, D] behind the last block but one; `hidden_states` begins with the embeddings."""
    return model(pixels, output_hidden_states=True).hidden_states[-2][:, num_prefix:]


WIDER = {"hidden_size": 96, "intermediate_size": 192, "num_layers": 5, "num_attention_heads": 6, "image_size": 56}


@pytest.mark.parametrize("kind", ["dinov2", "siglip"])
@torch.no_grad()
def test_a_tower_of_more_heads_and_patches_gives_the_features_of_transformers_own(kind):
    tower = {**(published.DINOV2 if kind == "dinov2" else published.SIGLIP), **WIDER}
    weights = part(published.random_weights(published.tower_shapes("", tower)), ".")
    ours = VisionTransformer(TowerConfig.from_dict(tower)).eval()
    ours.load_state_dict(weights)
    pixels = torch.randn(3, 3, tower["image_size"], tower["image_size"], generator=torch.Generator().manual_seed(1))
    reference = dinov2(weights, tower) if kind == "dinov2" else siglip(weights, tower)
    expected = last_but_one(reference, pixels, 5 if kind == "dinov2" else 0)
    assert expected.std() > 0.3
    assert (ours(pixels) - expected).abs().max() < TOLERANCE


def compose(weights: Weights, *, is_fused: bool) -> tuple[LlamaForCausalLM, Callable[[torch.Tensor], torch.Tensor]]:
    """(the language model, [M, C, S, S] pixels -> [M, P, D] embeddings of their patches)."""
    llama_config = LlamaConfig(vocab_size=published.NUM_ROWS, pad_token_id=published.NUM_WORDS, **published.TEXT)
    llama = LlamaForCausalLM(llama_config).eval()
    llama.load_state_dict(part(weights, "language_model."))
    first = part(weights, FEATURIZER)
    towers: list[tuple[Any, int]] = [(siglip(part(weights, FUSED) if is_fused else first, published.SIGLIP), 0)]
    if is_fused:
        towers.insert(0, (dinov2(first, published.DINOV2), 5))

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        features = [last_but_one(tower, p, n) for (tower, n), p in zip(towers, pixels.split(3, 1), strict=True)]
        x = torch.cat(features, -1)
        for i in (1, 2, 3) if is_fused else (1, 2):
            x = F.gelu(x) if i > 1 else x
            x = F.linear(x, weights[f"projector.fc{i}.weight"], weights[f"projector.fc{i}.bias"])
        return x

    return llama, encode


@pytest.fixture(scope="module", params=[True, False], ids=["fused", "siglip"])
def both(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("openvla")
    weights = published.write_published(path, is_fused=request.param)
    return load_checkpoint(path), *compose(weights, is_fused=request.param)


def pixels(model: Any, num: int) -> torch.Tensor:
    shape = (num, 3 * len(model.config.towers), published.IMAGE_SIZE, published.IMAGE_SIZE)
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("places", [(1,), (0, 5)], ids=["published", "anywhere"])
@torch.no_grad()
def test_images_are_their_patches_among_the_words(both, places):
    """One behind the first token is the published forward."""
    model, llama, encode = both
    words = torch.randint(3, 300, (1, 9), generator=torch.Generator().manual_seed(3))
    images = pixels(model, len(places))
    embedded, patches = llama.get_input_embeddings()(words)[0], encode(images)
    ids, joined = words[0], embedded
    for n, place in reversed([*enumerate(places)]):
        placeholders = torch.full((published.NUM_PATCHES,), model.config.image_token_id)
        ids = torch.cat([ids[:place], placeholders, ids[place:]])
        joined = torch.cat([joined[:place], patches[n], joined[place:]])
    inputs = {"pixel_values": images} if len(places) == 1 else {"pixel_values": images[None]}
    logits = model(input_ids=ids[None], **inputs).logits
    expected = llama(inputs_embeds=joined[None]).logits
    assert expected.std() > 0.3
    assert (logits - expected).abs().max() < TOLERANCE


@torch.no_grad()
def test_half_precision_follows_the_language_model_and_the_towers(openvla):
    whole, half = load_checkpoint(openvla), load_checkpoint(openvla, dtype=torch.bfloat16)
    ids = torch.tensor([[whole.config.image_token_id] * published.NUM_PATCHES + [50, 60, 70, 80]])
    inputs = {"input_ids": ids, "pixel_values": pixels(whole, 1)}
    logits = half(**inputs).logits
    assert logits.dtype == torch.bfloat16
    assert (whole(**inputs).logits - logits.float()).abs().max() < 0.1
