"""`--dry-run`: every shipped config is planned, and its arithmetic is held against what torch allocates."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlvla import plan
from rlvla.config import (
    AnnotateConfig,
    EpisodeConfig,
    EvaluateConfig,
    GRPOConfig,
    LearnerConfig,
    LoraConfig,
    PlanConfig,
    SamplerConfig,
    SFTConfig,
    TinyModelConfig,
    load,
)
from rlvla.data.dataset import write
from rlvla.plan.architecture import ArchitectureError, figures_of
from rlvla.plan.memory import (
    GIB,
    LIVE_PARAMETERS,
    REDUCE_BUCKET,
    MicroBatch,
    activations,
    block_activations,
    kv_bytes_per_token,
    learner_memory,
    sampler_memory,
    zero_stage,
)
from rlvla.plan.model import ModelFigures, Stack, count
from rlvla.plan.speed import DEVICES, Rollout, learner_s, sampler_s, simulator_s, turn_tokens
from rlvla.policies.models.openvla.checkpoint import load_checkpoint
from rlvla.policies.models.tiny_vlm import build_tiny
from rlvla.policies.thinker.actions import QuantileCodec
from rlvla.policies.thinker.policy import prepare, token_logprobs
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.types import Demonstration
from tests import openvla_checkpoints as published
from tests import parallel_policies

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "recipes/configs"
QWEN, OPENVLA = CONFIGS / "models/qwen2.5-vl-3b.json", CONFIGS / "models/openvla-7b.json"
CORPUS = [
    '<think>look 100 200</think><tool>{"name": "zoom_in", "arguments": {"image": 0, "bbox": [0, 5, 10, 20]}}</tool>'
]
PLANNERS: dict[str, tuple[Any, Callable[[Any], plan.Plan]]] = {
    "sft": (SFTConfig, plan.of_sft),
    "grpo": (GRPOConfig, lambda cfg: plan.of_grpo(cfg, {term.fn: term.weight for term in cfg.reward})),
    "evaluate": (EvaluateConfig, plan.of_evaluate),
}
YAML_FILES = [path for path in sorted(CONFIGS.glob("*.yaml")) if path.stem.split("_")[0] in PLANNERS]
FIGURES = ModelFigures(
    source="by hand",
    num_parameters=1000,
    num_vision_parameters=100,
    num_adapter_parameters=0,
    text=Stack(num_layers=2, hidden_size=8, intermediate_size=16, is_gated=True, norm_in_float32=True),
    vision=(Stack(num_layers=3, hidden_size=4, intermediate_size=12, is_gated=False, norm_in_float32=False),),
    num_kv_heads=1,
    head_size=4,
    vocabulary_size=50,
    tokens_of_image=lambda height, width: 6,
    patches_of_image=lambda height, width: 16,
)
BATCH = MicroBatch(num_rows=2, num_tokens=10, num_scored_tokens=4, num_patches=16)


def plan_file(path: Path, *flags: str) -> plan.Plan:
    cls, planner = PLANNERS[path.stem.split("_")[0]]
    return planner(load(cls, ["--config", str(path), *flags]))


@pytest.fixture(autouse=True)
def in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # paths in configs count from there


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: path.stem)
def test_every_shipped_config_is_planned_without_a_problem(path: Path) -> None:
    planned = plan_file(path)
    assert planned.problems == ()
    subjects = {subject for subject, _ in planned.lines}
    assert {"parameters", "tokens of a turn", "time (estimate)", "limited by"} <= subjects
    assert planned.turn.least <= planned.turn.expected <= planned.turn.limit <= planned.turn.most
    # What the header says that the dry run computes, it computes.
    header = " ".join(line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#"))
    if said := re.search(r"computes ([\d.]+) GiB (?:(?:a|for the) (?:learner|learner rank) and ([\d.]+) GiB)?", header):
        memories = [memory for memory in (planned.learner, planned.sampler) if memory is not None]
        computed = [f"{memory.peak / GIB:.1f}" for memory in memories]
        assert [number for number in said.groups() if number] == computed
    else:
        assert planned.learner is None or "tiny" in path.stem


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("evaluate_[!t]*.yaml")), ids=lambda path: path.stem)
def test_the_official_protocol_is_500_trials(path: Path) -> None:
    """By the flags in the file's head, which do not clash with the file's own run and take a policy of this suite."""
    flags = " ".join(re.findall(r"^#   (--.*?) ?\\?$", path.read_text(), re.MULTILINE)).split()
    held_out, official = (load(EvaluateConfig, ["--config", str(path), *given]) for given in ([], flags))
    assert dict(plan.of_evaluate(official).lines)["trials"] == "10 task(s) x 50 official states"
    assert official.allow_trained_states
    assert str(official.output) == f"{held_out.output}_official"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("sft_*.yaml")), ids=lambda path: path.stem)
def test_what_is_assumed_of_a_checkpoint_is_what_its_cold_start_makes(path: Path) -> None:
    cold_start = load(SFTConfig, ["--config", str(path)])
    for recipe in ("grpo", "evaluate"):
        other = path.with_name(path.name.replace("sft", recipe))
        if other.is_file():
            assumed = load(PLANNERS[recipe][0], ["--config", str(other)]).plan
            assert assumed.action_decoding == (cold_start.action_decoding or "autoregressive"), other.name


def test_recorded_pictures_are_as_large_as_those_that_a_policy_of_them_is_shown() -> None:
    """`read.view_size` of a shipped config is the view of the suite's env, as docs/demonstrations.md asks for."""
    for path in CONFIGS.glob("annotate_*.yaml"):
        side = load(AnnotateConfig, ["--config", str(path)]).read.view_size
        if side:
            suite = path.stem.rsplit("_", 1)[1]
            shown = [
                load(EvaluateConfig, ["--config", str(p)]).plan for p in CONFIGS.glob(f"evaluate_[!t]*_{suite}.yaml")
            ]
            assert {plan.view_size for plan in shown} == {side}, path.name


@pytest.mark.parametrize("recipe", PLANNERS)
def test_the_recipes_print_the_plan_and_end(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location(f"recipe_{recipe}", ROOT / f"recipes/{recipe}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    capsys.readouterr()  # DeepSpeed talks while it is imported
    output = tmp_path / "run"
    flags = ["--config", str(CONFIGS / f"{recipe}_tiny_tabletop.yaml"), "--dry-run", "--output", str(output)]
    module.main(load(PLANNERS[recipe][0], flags))
    assert capsys.readouterr().out.startswith(f"plan of recipes/{recipe}.py\n  model               ")
    assert not output.exists()


def test_published_parameter_counts() -> None:
    qwen = figures_of("Qwen/Qwen2.5-VL-3B-Instruct", PlanConfig(architecture=QWEN), tiny=TinyModelConfig())
    assert qwen.num_parameters == 3_754_622_976  # 3.75 B, as its model card says
    assert (qwen.num_vision_parameters, qwen.text.num_layers, qwen.vocabulary_size) == (668_684_288, 36, 151_936)
    # A 256-pixel picture becomes 252 x 252: 18 x 18 patches, 9 x 9 tokens between two marks.
    assert (qwen.patches_of_image(256, 256), qwen.tokens_of_image(256, 256)) == (324, 83)
    openvla = figures_of("nowhere", PlanConfig(architecture=OPENVLA), lora=LoraConfig(rank=32))
    assert (
        openvla.num_parameters == 7_541_237_184
    )  # openvla's finetune.py prints 7,652,065,472 with 110,828,288 of LoRA
    assert openvla.num_adapter_parameters == 32 * 32 * (4 * (4096 + 4096) + 3 * (4096 + 11008))


@pytest.mark.parametrize("is_fused", [True, False], ids=["fused", "siglip"])
def test_an_openvla_folder_is_counted(tmp_path: Path, is_fused: bool) -> None:
    published.write_published(tmp_path, is_fused=is_fused)
    figures = figures_of(str(tmp_path), PlanConfig(), tiny=TinyModelConfig())  # what a cold start begins with
    model = load_checkpoint(tmp_path)
    assert figures.num_parameters == sum(p.numel() for p in model.parameters())
    assert figures.num_vision_parameters == sum(
        p.numel() for name, p in model.named_parameters() if not name.startswith("language_model.")
    )
    assert (figures.tokens_of_image(64, 64), figures.head_size) == (published.NUM_PATCHES, 32)


def test_lora_is_counted_by_peft() -> None:
    plain = figures_of("nowhere", PlanConfig(architecture=QWEN))
    lora = figures_of("nowhere", PlanConfig(architecture=QWEN), lora=LoraConfig(rank=32))
    h, f, kv = 2048, 11008, 256
    shapes = [(h, h), (h, kv), (h, kv), (h, h), (h, f), (h, f), (f, h)]
    assert lora.num_adapter_parameters == 36 * 32 * sum(a + b for a, b in shapes)
    assert (plain.num_trained_parameters, lora.num_trained_parameters) == (3_754_622_976, lora.num_adapter_parameters)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)], ids=["all", "lora"])
def test_zero_0_is_what_torch_allocates(lora: LoraConfig | None) -> None:
    figures = count(tiny_model()[0], lora, source="")
    model, processor = tiny_model()
    model = prepare(model, lora=lora)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    # Every trained parameter gets a gradient; that of the vision tower needs a picture.
    token_logprobs(model, inputs(processor, num_rows=1, length=64), first=40)[0].sum().backward()
    optimizer.step()
    resident = learner_memory(figures, LearnerConfig(), 1, BATCH, has_reference=False, syncs=True).resident
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert resident == {
        "weights": sum(p.nbytes for p in model.parameters()),
        "float32 gradients": sum(p.grad.nbytes for p in trained if p.grad is not None),
        "AdamW moments": sum(moment.nbytes for moment in moments),
    }


@pytest.mark.parametrize("architecture", ["idefics3", "qwen2_5_vl"])
def test_kv_bytes_are_those_of_the_cache(architecture: str) -> None:
    model, processor = tiny_model(architecture)
    figures = count(model, None, source="")
    with torch.no_grad():
        cache = model(**inputs(processor, num_rows=2, length=40), use_cache=True).past_key_values
    allocated = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert kv_bytes_per_token(figures, 4) * 2 * 40 == allocated


@pytest.mark.parametrize("is_checkpointed", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("architecture", "tolerance"), [("idefics3", 0.005), ("qwen2_5_vl", 0.05)])
def test_activations_of_a_block_are_what_autograd_keeps(
    architecture: str, tolerance: float, dtype: Any, is_checkpointed: bool
) -> None:
    learner = LearnerConfig(dtype=dtype, gradient_checkpointing=is_checkpointed)
    kept, computed = [], []
    for num_layers in (1, 3):
        model, processor = tiny_model(architecture, num_layers)
        figures = count(model, None, source="", processor=processor)
        model = prepare(model.to(getattr(torch, dtype)), gradient_checkpointing=is_checkpointed).train()
        kept.append(saved_bytes(model, inputs(processor, num_rows=4, length=160, dtype=getattr(torch, dtype))))
        batch = MicroBatch(
            num_rows=4, num_tokens=160, num_scored_tokens=120, num_patches=figures.patches_of_image(64, 64)
        )
        computed.append(activations(figures, learner, batch))
    # What two more blocks, of text and of vision, add: the rest does not grow with the model's depth.
    assert computed[1] - computed[0] == pytest.approx(kept[1] - kept[0], rel=tolerance)


def test_published_memory_of_openvla_oft() -> None:
    """openvla-oft LIBERO.md: "batch size 8 per GPU will require ~62 GB VRAM, and batch size 1 per GPU ... ~25 GB".

    That is with two pictures, LoRA on the towers too, and float32 adapters under autocast.
    """
    figures = figures_of("nowhere", PlanConfig(architecture=OPENVLA))
    row = MicroBatch(num_rows=1, num_tokens=2 * 256 + 1 + 30 + 57, num_scored_tokens=0, num_patches=2 * 256)
    a_row = activations(figures, LearnerConfig(dtype="bfloat16"), row)
    fixed = 2 * figures.num_parameters + 110_828_288 * 4 * 4
    assert 7 * a_row == pytest.approx((62 - 25) * 1e9, rel=0.15)
    assert fixed + a_row == pytest.approx(25e9, rel=0.15)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_the_stage_is_the_one_that_deepspeed_is_told(dtype: Any, stage: Any) -> None:
    from rlvla.learner.engine import deepspeed_config

    cfg = LearnerConfig(dtype=dtype, zero_stage=stage)
    assert zero_stage(cfg) == deepspeed_config(cfg)["zero_optimization"]["stage"]


def test_zero_shares_by_hand() -> None:
    two = learner_memory(FIGURES, LearnerConfig(dtype="bfloat16"), 4, BATCH, has_reference=True, syncs=True)
    assert two.resident == {
        "weights": 2000,
        "float32 gradients": 1000,
        "AdamW moments": 2000,
        "float32 masters": 1000,
        "reference copy": 2000,
    }
    three = learner_memory(
        FIGURES, LearnerConfig(dtype="bfloat16", zero_stage=3), 4, BATCH, has_reference=False, syncs=True
    )
    assert three.resident == {"weights": 500, "float32 gradients": 1000, "AdamW moments": 2000, "float32 masters": 1000}
    assert three.transient["weight sync"] == 2000
    computed = activations(FIGURES, LearnerConfig(dtype="bfloat16"), BATCH)
    assert two.transient["forward and backward"] == computed + 2 * REDUCE_BUCKET
    assert three.transient["forward and backward"] == computed + 2 * REDUCE_BUCKET + min(2000, 2 * LIVE_PARAMETERS)
    assert three.peak == 4500 + three.transient["forward and backward"]


def test_activations_by_hand() -> None:
    # 26 h + 8 f bytes for a gated block with float32 norms, 18 h + 4 f for a plain one, as counted in the docstring.
    text, vision = 26 * 8 + 8 * 16, 18 * 4 + 4 * 12
    assert [block_activations(stack, 2) for stack in (FIGURES.text, *FIGURES.vision)] == [text, vision]
    logits = 2 * 4 * 50 * (2 + 4 * 4)
    usual = activations(FIGURES, LearnerConfig(dtype="bfloat16"), BATCH)
    assert usual == 20 * 2 * text + 32 * 3 * vision + logits
    saving = activations(FIGURES, LearnerConfig(dtype="bfloat16", gradient_checkpointing=True), BATCH)
    assert saving == 20 * (2 * 2 * 8 + text) + 32 * (3 * 2 * 4 + vision) + logits


def test_a_sampler_by_hand() -> None:
    fixed = sampler_memory(FIGURES, SamplerConfig(dtype="bfloat16", kv_cache_mb=1), 0, 640)
    assert (fixed.weights, fixed.kv_cache, fixed.overhead, fixed.num_kv_tokens) == (2000, 1 << 20, 0, (1 << 20) // 32)
    filled = sampler_memory(
        FIGURES, SamplerConfig(dtype="bfloat16", kv_cache_mb=0, gpu_memory_utilization=0.5), 24 * GIB, 640
    )
    assert filled.peak == 12 * GIB
    assert (
        sampler_memory(FIGURES, SamplerConfig(kv_cache_mb=0, gpu_memory_utilization=0.1), GIB, 640).num_kv_tokens == 0
    )


def test_a_gpu_that_is_too_small_is_told() -> None:
    path = CONFIGS / "grpo_qwen2.5-vl-3b-lora_libero-object.yaml"
    small = plan_file(path, "--plan.gpu", "rtx-4090")
    (problem,) = small.problems
    assert re.match(r"a learner rank with a sampler needs 2\d\.\d GiB, rtx-4090 has 24\.0 GiB: raise learner", problem)
    assert str(small).endswith(problem)
    assert plan_file(path, "--plan.gpu", "rtx-4090", "--plan.gpu-memory-gb", "48").problems == ()
    apart = ["--cluster.sampler-gpus", "1", "--cluster.learner-gpus", "1"]
    assert plan_file(path, "--plan.gpu", "rtx-4090", *apart).problems == ()
    (problem,) = plan_file(path, "--sampler.kv-cache-mb", "20").problems
    assert problem.startswith("the KV cache holds 568 tokens, one turn needs 640")


def test_the_tokens_of_a_turn_by_hand() -> None:
    episode = EpisodeConfig(max_think_tokens=38, max_tool_calls=2, max_turn_tokens=1000)
    turn = turn_tokens(episode, tokens_per_image=10, num_images=2, num_action_tokens=56, is_parallel=False)
    assert turn.prompt == 48 + 20
    assert turn.least == 68 + 2 + 58
    assert turn.most == turn.limit == 68 + 2 * (40 + 64 + 12) + 40 + 58
    assert turn.expected_sampled == pytest.approx(0.3 * (20 + 32) + 20 + 58)
    assert turn.expected == pytest.approx(68 + 0.3 * (20 + 32 + 12) + 20 + 58)
    assert turn.expected_decoded == turn.expected_forwards == turn.expected_sampled
    assert (turn.num_images, turn.expected_images) == (4, pytest.approx(2.3))
    options: dict[str, Any] = {"tokens_per_image": 10, "num_images": 2, "num_action_tokens": 56, "is_parallel": False}
    third = turn_tokens(replace(episode, think_every=3), **options)
    assert (third.least, third.most, third.num_images) == (turn.least, turn.most, 4)
    assert third.expected_sampled == pytest.approx(0.1 * (20 + 32) + 20 / 3 + 58)
    assert third.expected == pytest.approx(68 + 0.1 * (20 + 32 + 12) + 20 + 58)
    plain = turn_tokens(replace(episode, mode="think"), **options)
    assert (plain.most, plain.expected_images) == (68 + 40 + 58, 2)
    blind = turn_tokens(EpisodeConfig(mode="act"), **options | {"num_images": 1})
    assert blind.least == blind.most == 58 + 58


def test_a_block_of_actions_takes_one_forward() -> None:
    episode = EpisodeConfig(max_think_tokens=38, max_tool_calls=2, max_turn_tokens=1000)
    options: dict[str, Any] = {"tokens_per_image": 10, "num_images": 2, "num_action_tokens": 56}
    text, block = (turn_tokens(episode, **options, is_parallel=is_parallel) for is_parallel in (False, True))
    for name in ("prompt", "least", "most", "limit", "expected", "expected_images"):  # rows are as long either way
        assert getattr(block, name) == getattr(text, name), name
    assert block.expected_sampled == text.expected_sampled - 1  # `</act>` is put there
    assert block.expected_decoded == pytest.approx(0.3 * (20 + 32) + 20 + 1)  # calls, the thought, `<act>`
    assert (block.block, text.block) == (57, 0)
    assert block.expected_forwards == block.expected_decoded + 1
    rollout, device = Rollout(num_trajectories=10, max_turns=5, chunk_length=8), DEVICES["cpu"]
    speed: dict[str, Any] = {"num_samplers": 1, "patches_per_image": 16, "bytes_per_value": 4, "concurrency": 1}
    seconds = [sampler_s(FIGURES, turn, rollout, device, **speed) for turn in (text, block)]
    prefill, reading = 2 * (57 + 1) * 900 / 5e10, 57 * 900 * 4 / 1e10  # 57 decoded tokens fewer, 58 read more
    assert seconds[0] - seconds[1] == pytest.approx(30 * (reading - prefill))
    once, thrice = (sampler_s(FIGURES, block, rollout, device, **speed, num_reads=n) for n in (1, 3))
    context = block.expected - block.expected_sampled
    assert thrice - once == pytest.approx(30 * 2 * 2 * (context * 900 + 2.3 * 16 * 100) / 5e10)


def test_how_actions_are_decoded_is_read_or_assumed(tmp_path: Path) -> None:
    path = CONFIGS / "grpo_tiny_tabletop.yaml"
    missing = ["--model", str(tmp_path / "none"), "--plan.architecture", str(QWEN), "--plan.chunk-length", "5"]
    missing += ["--episode.temperature", "1.0", "--learner.micro-batch-rows", "4"]
    text = plan_file(path, *missing, "--plan.action-decoding", "autoregressive")
    block = plan_file(path, *missing, "--plan.action-decoding", "parallel")
    assert "action 5 x 4 = 20" in dict(text.lines)["tokens of a turn"]
    assert "action 5 x 4 = 20, in one forward of 21" in dict(block.lines)["tokens of a turn"]
    assert f"sampled in {block.turn.expected_decoded + 1:.0f} forwards" in str(block)
    assert block.seconds["sampler"] < text.seconds["sampler"]
    assert block.seconds["learner"] == text.seconds["learner"]
    warm = plan_file(path, *missing, "--plan.action-decoding", "parallel", "--episode.temperature", "1.6")
    assert block.learner is not None
    assert warm.learner is not None
    scored = block.turn.limit - block.turn.prompt + 1
    more = warm.learner.transient["forward and backward"] - block.learner.transient["forward and backward"]
    assert more == 4 * scored * 151_936 * 4  # a copy of the logits
    sft = plan_file(CONFIGS / "sft_tiny_tabletop.yaml", "--action-decoding", "parallel")
    assert "in one forward of" in dict(sft.lines)["tokens of a turn"]
    policy = parallel_policies.save("idefics3", tmp_path)
    further = plan_file(CONFIGS / "sft_tiny_libero-object.yaml", "--model", str(policy))  # which does not say how
    assert "in one forward of" in dict(further.lines)["tokens of a turn"]


def test_a_checkpoint_that_vllm_does_not_serve_is_told(tmp_path: Path) -> None:
    checkpoint = parallel_policies.save("idefics3", tmp_path, prefix_attention="bidirectional")
    flags = ["--model", str(checkpoint), "--env.imports", "not_here", "--plan.action-size", "2"]
    for name in ("grpo", "evaluate"):
        planned = plan_file(CONFIGS / f"{name}_tiny_tabletop.yaml", *flags)
        assert "action 3 x 2 = 6, in one forward of 7" in dict(planned.lines)["tokens of a turn"]
        (problem,) = planned.problems
        assert problem.endswith("vLLM attends prompts causally: set sampler.backend to transformers")
        slow = plan_file(CONFIGS / f"{name}_tiny_tabletop.yaml", *flags, "--sampler.backend", "transformers")
        assert slow.problems == ()


def test_the_transformers_sampler_is_planned_as_one_turn_after_another(tmp_path: Path) -> None:
    path = CONFIGS / "grpo_qwen2.5-vl-3b-lora_libero-object.yaml"
    vllm, slow = plan_file(path), plan_file(path, "--sampler.backend", "transformers")
    assert slow.sampler is not None
    weights = 2 * 3_754_622_976
    assert (slow.sampler.weights, slow.sampler.num_kv_tokens) == (2 * weights, 640)
    assert slow.sampler.kv_cache == 640 * 2 * 36 * 2 * 128 * 2
    assert slow.seconds["sampler"] > 10 * vllm.seconds["sampler"]
    assert "1 of transformers, bfloat16" in dict(slow.lines)["sampler"]


def test_limits_that_no_turn_keeps_are_told() -> None:
    path = CONFIGS / "grpo_tiny_libero-object.yaml"
    (problem,) = plan_file(path, "--episode.max-turn-tokens", "100").problems
    assert problem == "episode.max_turn_tokens is 100: prompt and action chunk alone take 127"
    (problem,) = plan_file(CONFIGS / "sft_tiny_tabletop.yaml", "--plan.num-processes", "3").problems
    assert problem == "batch_size 64 does not divide over plan.num_processes 3"


def test_seconds_by_hand() -> None:
    options: dict[str, Any] = {"tokens_per_image": 10, "num_images": 1, "num_action_tokens": 56, "is_parallel": False}
    turn = turn_tokens(EpisodeConfig(max_think_tokens=38), **options)
    rollout = Rollout(num_trajectories=10, max_turns=5, chunk_length=8)
    assert (rollout.num_turns, rollout.num_env_steps) == (30, 240)
    assert simulator_s(rollout, 12.0, 4) == 5.0
    device = DEVICES["cpu"]
    assert learner_s(FIGURES, 1e6, 2e6, device, world=2) == pytest.approx((6 * 1e6 * 900 + 6 * 2e6 * 100) / 1e11)
    again = learner_s(FIGURES, 1e6, 0, device, world=1, num_epochs=2, num_scorings=2, checkpointing=True)
    assert again == pytest.approx((2 * 8 + 2 * 2) * 1e6 * 900 / 5e10)
    options = {"num_samplers": 1, "patches_per_image": 16, "bytes_per_value": 4}
    alone = sampler_s(FIGURES, turn, rollout, device, concurrency=1, **options)
    assert alone > sampler_s(FIGURES, turn, rollout, device, concurrency=8, **options)


def test_a_checkpoint_and_a_data_set_that_are_here_are_read(tiny_policy: Path, tmp_path: Path) -> None:
    planned = plan_file(CONFIGS / "grpo_tiny_tabletop.yaml", "--model", str(tiny_policy))
    lines = dict(planned.lines)
    assert lines["model"] == str(tiny_policy)
    assert "action 2 x 4 = 8" in lines["tokens of a turn"]
    demo = Demonstration(
        instruction="press",
        images=(np.zeros((32, 48, 3), np.uint8),) * 2,
        proprio=np.zeros(4, np.float32),
        texts=("<think>a</think>",),
        crops=(),
        actions=np.zeros((3, 6), np.float32),
        carried_thought="",
    )
    write(tmp_path / "demos", [[demo, demo]], robot="test", fps=1.0)
    lines = dict(plan_file(CONFIGS / "sft_tiny_tabletop.yaml", "--dataset", str(tmp_path / "demos")).lines)
    assert lines["data"].endswith("2 decisions of 1 episodes")
    assert "2 image(s) of 19 at 32 x 48" in lines["tokens of a turn"]
    assert "action 3 x 6 = 18" in lines["tokens of a turn"]


def test_what_cannot_be_planned_is_an_error(tmp_path: Path) -> None:
    path = CONFIGS / "sft_tiny_tabletop.yaml"
    with pytest.raises(ArchitectureError, match=r"model: nobody/nothing is no folder here.*plan\.architecture"):
        plan_file(path, "--model", "nobody/nothing")
    broken = tmp_path / "model.json"
    broken.write_text('{"name": "a", "architecture": "b"}')
    with pytest.raises(ArchitectureError, match=r"model\.json has no 'source'"):
        figures_of("nowhere", PlanConfig(architecture=broken))
    with pytest.raises(ArchitectureError, match=r"missing\.json"):
        figures_of("nowhere", PlanConfig(architecture=tmp_path / "missing.json"))
    with pytest.raises(ValueError, match="num_trials is 1001, task 'press' has 1000 evaluate states"):
        plan_file(CONFIGS / "evaluate_tiny_tabletop.yaml", "--num-trials", "1001")


@pytest.mark.libero
def test_a_policy_of_another_env_is_an_error(tiny_policy: Path, libero_assets: Path) -> None:
    with pytest.raises(ValueError, match="have 4 dimensions, those of the env 7"):
        plan_file(CONFIGS / "evaluate_tiny_libero-object.yaml", "--model", str(tiny_policy))


@pytest.mark.parametrize("size", [(64, 64), (32, 64), (48, 32)])
def test_the_formula_for_pictures_is_that_of_the_processor(size: tuple[int, int]) -> None:
    model, processor = tiny_model("qwen2_5_vl")
    by_formula = count(model, None, source="").tokens_of_image(*size)
    assert by_formula == count(model, None, source="", processor=processor).tokens_of_image(*size)
    pixels = processor.pixel_inputs([[np.zeros((*size, 3), np.uint8)]])["pixel_values"]
    assert count(model, None, source="").patches_of_image(*size) == len(pixels)


def tiny_model(architecture: Any = "idefics3", num_layers: int = 2) -> tuple[Any, PolicyProcessor]:
    cfg = TinyModelConfig(architecture=architecture, num_layers=num_layers, vision_layers=num_layers)
    model, hf_processor = build_tiny(cfg, CORPUS, 16, seed=0)
    codec = QuantileCodec(low=(0.0,), high=(1.0,), num_bins=16, chunk_length=1)
    return model, PolicyProcessor.create(hf_processor, codec, carry_thought=False)


def inputs(
    processor: PolicyProcessor, *, num_rows: int, length: int, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """A batch of rows with one picture each, the later ones padded."""
    image = np.zeros((64, 64, 3), np.uint8)
    prompt = processor.expand(processor.prompt_ids("look 100", 1), [image]).tolist()
    ids = torch.tensor([prompt + [processor.vocabulary.action_ids[0]] * (length - len(prompt))] * num_rows)
    mask = torch.ones_like(ids)
    mask[1:, -5:] = 0
    batch = processor.forward_inputs(ids, mask) | processor.pixel_inputs([[image]] * num_rows)
    return {name: t.to(dtype) if t.is_floating_point() else t for name, t in batch.items()}


def saved_bytes(model: Any, batch: dict[str, torch.Tensor]) -> int:
    """Bytes of distinct storages, parameters left out, that a forward keeps for its backward."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}  # holding them keeps the addresses from being used again

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        token_logprobs(model, batch, first=41)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
