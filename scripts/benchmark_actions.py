"""A decision's action chunk in vLLM, one parallel step against one step a token, and whole decisions around it.

    python scripts/benchmark_actions.py --output docs/results/actions_benchmark.json

The model has random weights (`tiny_vlm`). The chunk is K x A = 8 x 7 tokens, as on LIBERO; of the chunk alone the
context is a prompt with two pictures and a thought, and is in the prefix cache, as it is when the thought has just been
sampled. Decisions look closer, think or neither (`benchmark_decisions`), out of vLLM and out of transformers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import benchmark_decisions
from benchmark_decisions import INSTRUCTION, NUM_LOOKS, Decision, actions
from rlvla.config import SamplerConfig, TinyModelConfig, provenance
from rlvla.policies.models.tiny_vlm import build_tiny
from rlvla.policies.thinker.action_slots import add_slots
from rlvla.policies.thinker.actions import QuantileCodec
from rlvla.policies.thinker.policy import save_policy
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.protocols import Sampler, SampleRequest
from rlvla.samplers.local import TransformersSampler
from rlvla.samplers.vllm.sampler import VLLMSampler

CHUNK_LENGTH, ACTION_SIZE = 8, 7
NUM_BINS = 256
CORPUS = (INSTRUCTION, "<think>the badge at 200 350 is red, so go on and grasp it</think>")
THOUGHT = "the badge at 200 350 is red so go on and grasp it " * 4


def main(args: argparse.Namespace) -> None:
    """Measure, print, write."""
    with tempfile.TemporaryDirectory() as folder:
        result = asyncio.run(measure(Path(folder), args))
    print(table(result))
    if args.output is not None:
        args.output.write_text(json.dumps(result, indent=2) + "\n")


async def measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Time both ways for each number of requests in flight, the chunk alone and in a decision."""
    processor, num_parameters = _save(folder, args)
    sampler = VLLMSampler(
        folder,
        SamplerConfig(kv_cache_mb=128, max_num_seqs=max(args.concurrency)),
        max_images=2,
        max_model_len=512,
        action_decoding="parallel",
    )
    rows = []
    for concurrency in args.concurrency:
        blocks = [_request(processor, seed) for seed in range(concurrency)]
        tokens = [replace(block, slot_ids=(), action_ids=()) for block in blocks]
        outputs = await asyncio.gather(*(sampler.sample(block) for block in blocks))  # fills the prefix cache
        row: dict[str, Any] = {"requests": concurrency}
        for name, requests in (("parallel", blocks), ("autoregressive", tokens)):
            row[name] = await _time(sampler, requests, args.rounds)
        row["speed_up"] = row["autoregressive"]["ms"] / row["parallel"]["ms"]
        rows.append(row)
    decisions = [await _decisions("vllm", sampler, processor, n, args.rounds) for n in args.concurrency]
    sampler.close()
    reference = TransformersSampler(folder)  # which serves one request at a time
    decisions.append(await _decisions("transformers", reference, processor, 1, args.rounds))
    return {
        "architecture": args.architecture,
        "num_parameters": num_parameters,
        "num_actions": processor.num_action_tokens,
        "context_tokens": len(outputs[0].context_ids),
        "rounds": args.rounds,
        "rows": rows,
        "decisions": [row for rows_of_modes in decisions for row in rows_of_modes],
        **provenance(),
    }


async def _decisions(
    name: str, sampler: Sampler, processor: PolicyProcessor, num_requests: int, rounds: int
) -> list[dict[str, Any]]:
    """A row for each mode; `to_act` is how many times as long as without a thought it takes."""
    rows: list[dict[str, Any]] = []
    for mode in sorted(NUM_LOOKS):  # act first
        row: dict[str, Any] = {"sampler": name, "mode": mode, "requests": num_requests}
        for way in ("parallel", "autoregressive"):
            kind = {"processor": processor, "mode": mode, "is_parallel": way == "parallel"}
            asked = [Decision(seed=seed, **kind) for seed in range(num_requests)]
            row[way] = await benchmark_decisions.measure(sampler, asked, rounds)
            row[way]["to_act"] = row[way]["ms"] / (rows or [row])[0][way]["ms"]
        row["speed_up"] = row["autoregressive"]["ms"] / row["parallel"]["ms"]
        rows.append(row)
    return rows


def _save(folder: Path, args: argparse.Namespace) -> tuple[PolicyProcessor, int]:
    tiny = TinyModelConfig(architecture=args.architecture, hidden_size=args.hidden_size, num_layers=args.num_layers)
    model, hf_processor = build_tiny(tiny, list(CORPUS), NUM_BINS, seed=0)
    low, high = (-1.0,) * ACTION_SIZE, (1.0,) * ACTION_SIZE
    codec = QuantileCodec(low=low, high=high, num_bins=NUM_BINS, chunk_length=CHUNK_LENGTH)
    add_slots(model, hf_processor, CHUNK_LENGTH * ACTION_SIZE)
    processor = PolicyProcessor.create(hf_processor, codec, carry_thought=False, action_decoding="parallel")
    save_policy(model, processor, folder)
    return PolicyProcessor.load(folder), sum(parameter.numel() for parameter in model.parameters())


def _request(processor: PolicyProcessor, seed: int) -> SampleRequest:
    """A context of its own, up to and with `<act>`."""
    vocabulary = processor.vocabulary
    prompt = processor.prompt_ids(CORPUS[0], 2)
    thought = vocabulary.encode(f"<think>{THOUGHT}</think>")
    pictures = np.random.default_rng(seed).integers(0, 256, (2, 64, 64, 3), np.uint8)
    context = SampleRequest(
        prompt_ids=(*prompt, *thought, vocabulary.mark_ids["<act>"]),
        images=tuple(pictures),
        stop_ids=(),
        max_tokens=processor.num_action_tokens,
        temperature=1.0,
        seed=seed,
    )
    return actions(context, processor, is_parallel=True)


async def _time(sampler: VLLMSampler, requests: Sequence[SampleRequest], rounds: int) -> dict[str, float]:
    """Engine steps and median milliseconds until all requests are answered."""
    times = []
    for number in range(rounds):
        steps, started = sampler.num_steps, time.perf_counter()
        await asyncio.gather(*(sampler.sample(replace(r, seed=r.seed + 1000 * number)) for r in requests))
        times.append(1000 * (time.perf_counter() - started))
        steps = sampler.num_steps - steps
    return {"steps": steps, "ms": statistics.median(times)}


def table(result: dict[str, Any]) -> str:
    """The rows, to read."""
    lines = [
        f"{result['architecture']}, {result['num_parameters'] / 1e6:.1f} M parameters; {result['num_actions']} actions "
        f"behind {result['context_tokens']} tokens; medians of {result['rounds']}",
        f"{'requests':>8} {'parallel':>20} {'autoregressive':>20} {'speed-up':>9}",
    ]
    for row in result["rows"]:
        ways = [f"{row[way]['steps']:>4} steps {row[way]['ms']:>7.1f} ms" for way in ("parallel", "autoregressive")]
        lines.append(f"{row['requests']:>8} {ways[0]:>20} {ways[1]:>20} {row['speed_up']:>8.1f}x")
    return "\n".join([*lines, "", "whole decisions", benchmark_decisions.table(result["decisions"])])


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="idefics3", choices=("idefics3", "qwen2_5_vl"))
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--num-layers", type=int, default=4)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(parse())
