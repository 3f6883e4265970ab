"""Tiny random-weight checkpoints in the layout that openvla/openvla-7b and OpenVLA-OFT's folders are published in.

Names and shapes are written out here once more, from timm, Llama and prismatic/extern/hf/modeling_prismatic.py, and not
taken from our model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from rlvla.policies.markup import MARKS, print_think, print_zoom

Shapes = dict[str, list[int]]

NUM_WORDS = 640
"""Of the tokenizer's own vocabulary; the last 256 are action tokens."""
NUM_ROWS = NUM_WORDS + 64
"""Of the embeddings, as published checkpoints pad them."""
IMAGE_SIZE = 28
"""Two patches a side."""
NUM_PATCHES = 4
TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
"""Heads of 32, which vLLM's attention on the CPU takes."""
DINOV2 = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_layers": 3,
    "num_attention_heads": 2,
    "patch_size": 14,
    "image_size": IMAGE_SIZE,
    "num_registers": 4,
    "has_class_token": True,
    "has_layer_scale": True,
    "has_pooling_head": False,
}
SIGLIP = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_layers": 4,
    "num_attention_heads": 2,
    "patch_size": 14,
    "image_size": IMAGE_SIZE,
    "num_registers": 0,
    "has_class_token": False,
    "has_layer_scale": False,
    "has_pooling_head": True,
}
NORM_STATS = {
    "libero_spatial_no_noops": {
        "action": {
            "mean": [0.1, 0.0, 0.5],
            "std": [0.3, 0.2, 0.5],
            "min": [-0.9, -0.5, 0.0],
            "max": [0.9, 0.4, 1.0],
            "q01": [-0.75, -0.375, 0.0],
            "q99": [0.875, 0.25, 1.0],
            "mask": [True, True, False],
        },
        "num_transitions": 52970,
        "num_trajectories": 432,
    }
}
PROMPT = "In: What action should the robot take to press the red pad?\nOut: "
TEXTS = (print_think("look 100 200") + print_zoom(0, (0, 5, 100, 200)), print_think("it is red"))
"""What a policy writes."""
NORMALIZE = [
    {"inplace": False, "mean": [0.484375, 0.455078125, 0.40625], "std": [0.228515625, 0.2236328125, 0.224609375]},
    {"inplace": False, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
]
"""What preprocessor_config.json of openvla/openvla-7b holds as `tvf_normalize_params`."""


def linear(name: str, size_in: int, size_out: int) -> Shapes:
    return {f"{name}.weight": [size_out, size_in], f"{name}.bias": [size_out]}


def norm(name: str, size: int) -> Shapes:
    return {f"{name}.weight": [size], f"{name}.bias": [size]}


def tower_shapes(prefix: str, tower: dict[str, Any]) -> Shapes:
    size, inner, patch = tower["hidden_size"], tower["intermediate_size"], tower["patch_size"]
    shapes: Shapes = {
        "pos_embed": [1, (tower["image_size"] // patch) ** 2, size],
        "patch_embed.proj.weight": [size, 3, patch, patch],
        "patch_embed.proj.bias": [size],
        **norm("norm", size),
    }
    if tower["has_class_token"]:
        shapes["cls_token"] = [1, 1, size]
    if tower["num_registers"]:
        shapes["reg_token"] = [1, tower["num_registers"], size]
    for i in range(tower["num_layers"]):
        block = f"blocks.{i}"
        shapes |= norm(f"{block}.norm1", size) | norm(f"{block}.norm2", size)
        shapes |= linear(f"{block}.attn.qkv", size, 3 * size) | linear(f"{block}.attn.proj", size, size)
        shapes |= linear(f"{block}.mlp.fc1", size, inner) | linear(f"{block}.mlp.fc2", inner, size)
        if tower["has_layer_scale"]:
            shapes |= {f"{block}.ls1.scale_factor": [size], f"{block}.ls2.scale_factor": [size]}
    if tower["has_pooling_head"]:
        shapes |= {"attn_pool.latent": [1, 1, size], **norm("attn_pool.norm", size)}
        shapes |= linear("attn_pool.q", size, size) | linear("attn_pool.kv", size, 2 * size)
        shapes |= linear("attn_pool.proj", size, size)
        shapes |= linear("attn_pool.mlp.fc1", size, inner) | linear("attn_pool.mlp.fc2", inner, size)
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


def llama_shapes(text: dict[str, int], num_rows: int) -> Shapes:
    size, inner = text["hidden_size"], text["intermediate_size"]
    shapes: Shapes = {"lm_head.weight": [num_rows, size], "model.embed_tokens.weight": [num_rows, size]}
    shapes["model.norm.weight"] = [size]
    for i in range(text["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        shapes |= {f"{layer}.self_attn.{name}_proj.weight": [size, size] for name in "qkvo"}
        shapes |= {f"{layer}.mlp.{name}_proj.weight": [inner, size] for name in ("gate", "up")}
        shapes[f"{layer}.mlp.down_proj.weight"] = [size, inner]
        shapes |= {f"{layer}.{name}_layernorm.weight": [size] for name in ("input", "post_attention")}
    return {f"language_model.{name}": shape for name, shape in shapes.items()}


def published_shapes(text: dict[str, int], towers: list[dict[str, Any]], num_rows: int) -> Shapes:
    """Name -> shape of every weight."""
    size, text_size = sum(tower["hidden_size"] for tower in towers), text["hidden_size"]
    prefixes = ("vision_backbone.featurizer", "vision_backbone.fused_featurizer")
    shapes = llama_shapes(text, num_rows)
    for prefix, tower in zip(prefixes, towers, strict=False):
        shapes |= tower_shapes(prefix, tower)
    if len(towers) == 1:
        return shapes | linear("projector.fc1", size, text_size) | linear("projector.fc2", text_size, text_size)
    shapes |= linear("projector.fc1", size, 4 * size) | linear("projector.fc2", 4 * size, text_size)
    return shapes | linear("projector.fc3", text_size, text_size)


def published_config(*, is_fused: bool = True) -> dict[str, Any]:
    """Content of a config.json: the published keys, and the sizes of tiny towers."""
    names = ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"]
    return {
        "architectures": ["OpenVLAForActionPrediction"],
        "auto_map": {
            "AutoConfig": "configuration_prismatic.OpenVLAConfig",
            "AutoModelForVision2Seq": "modeling_prismatic.OpenVLAForActionPrediction",
        },
        "model_type": "openvla",
        "arch_specifier": "no-align+fused-gelu-mlp" if is_fused else "no-align+gelu-mlp",
        "hf_llm_id": "meta-llama/Llama-2-7b-hf",
        "llm_backbone_id": "llama2-7b-pure",
        "llm_max_length": 2048,
        "vision_backbone_id": "dinosiglip-vit-so-224px" if is_fused else "siglip-vit-so400m",
        "timm_model_ids": names if is_fused else names[1:],
        "timm_override_act_layers": [None, None] if is_fused else [None],
        "use_fused_vision_backbone": is_fused,
        "image_resize_strategy": "resize-naive",
        "image_sizes": [IMAGE_SIZE] * (2 if is_fused else 1),
        "n_action_bins": 256,
        "norm_stats": NORM_STATS,
        "output_projector_states": False,
        "pad_to_multiple_of": 64,
        "pad_token_id": NUM_WORDS,
        "text_config": {"model_type": "llama", "pad_token_id": NUM_WORDS, "vocab_size": NUM_ROWS, **TEXT},
        "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1",
        "vision_towers": [DINOV2, SIGLIP] if is_fused else [SIGLIP],
    }


def random_weights(shapes: Shapes, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights of about one standard deviation in and out, so that nothing drowns in something else."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "layernorm.weight", "scale_factor")):
            values = 1 + 0.2 * values
        elif len(shape) > 1 and "token" not in name and "pos_embed" not in name and "latent" not in name:
            values = values / torch.tensor(shape[1:]).prod().sqrt()
        weights[name] = values
    return weights


def llama_tokenizer(corpus: Sequence[str]) -> PreTrainedTokenizerFast:
    """In the manner of Llama's sentencepiece model: spaces are `▁`, one stands before every text, new lines are bytes.

    Words of the corpus are tokens of their own, and numbers, whose digits Llama keeps apart; words that no text has
    fill the vocabulary up to where Llama's ends. `<PAD>` stands behind them, as published.
    """
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_WORDS - 256,
        special_tokens=["<unk>", "<s>", "</s>", "<0x0A>"],
        initial_alphabet=["▁", *(chr(code) for code in range(33, 127))],
        show_progress=False,
    )
    marks = re.compile("|".join(map(re.escape, MARKS)))  # no merge may reach across a mark, which Llama does not know
    backend.train_from_iterator([piece for text in corpus for piece in marks.split(text)], trainer)
    state = json.loads(backend.to_str())
    vocabulary = state["model"]["vocab"]
    vocabulary |= {f"<word_{i}>": i for i in range(len(vocabulary), NUM_WORDS)}
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] != "<0x0A>"]
    backend = Tokenizer.from_str(json.dumps(state))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<PAD>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def write_published(
    path: Path, *, is_fused: bool = True, num_shards: int = 1, corpus: Sequence[str] = ()
) -> dict[str, torch.Tensor]:
    """Write a folder as published, with a tokenizer that knows the words of a corpus; returns its weights."""
    config = published_config(is_fused=is_fused)
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    (path / "dataset_statistics.json").write_text(json.dumps(NORM_STATS))
    normalize = NORMALIZE if is_fused else NORMALIZE[1:]
    preprocessor = {
        "auto_map": {
            "AutoImageProcessor": "processing_prismatic.PrismaticImageProcessor",
            "AutoProcessor": "processing_prismatic.PrismaticProcessor",
        },
        "image_processor_type": "PrismaticImageProcessor",
        "image_resize_strategy": "resize-naive",
        "input_sizes": [[3, IMAGE_SIZE, IMAGE_SIZE] for _ in normalize],
        "interpolations": ["bicubic" for _ in normalize],
        "means": [[0.485, 0.456, 0.406], [0.5, 0.5, 0.5]][-len(normalize) :],
        "stds": [[0.229, 0.224, 0.225], [0.5, 0.5, 0.5]][-len(normalize) :],
        "processor_class": "PrismaticProcessor",
        "tvf_do_letterbox": False,
        "tvf_normalize_params": normalize,
        "use_fused_vision_backbone": is_fused,
    }
    (path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    auto_map = {"AutoProcessor": "processing_prismatic.PrismaticProcessor"}
    processor = {"auto_map": auto_map, "processor_class": "PrismaticProcessor"}
    (path / "processor_config.json").write_text(json.dumps(processor))
    llama_tokenizer(corpus).save_pretrained(path)
    tokenizer = json.loads((path / "tokenizer_config.json").read_text())
    tokenizer |= {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True, "add_eos_token": False}
    (path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    weights = random_weights(published_shapes(TEXT, config["vision_towers"], NUM_ROWS))
    write_weights(path, weights, num_shards)
    return weights


def write_weights(path: Path, weights: dict[str, torch.Tensor], num_shards: int = 1) -> None:
    """One file, or shards with their index."""
    if num_shards == 1:
        save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(weights)
    weight_map = {}
    for i in range(num_shards):
        file = f"model-{i + 1:05d}-of-{num_shards:05d}.safetensors"
        save_file({name: weights[name] for name in names[i::num_shards]}, path / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names[i::num_shards], file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in weights.values())}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
