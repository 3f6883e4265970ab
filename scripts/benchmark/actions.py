"""An action chunk in vLLM: one parallel step against one step a token, by how many are asked for at once.

    python scripts/benchmark/actions.py --output docs/results/actions_benchmark.json

The model has random weights (`tiny_vlm`). The chunk is K x A = 8 x 7 tokens, as on LIBERO, behind a prompt with two
pictures and a thought, which lie in the prefix cache, as they do when the thought has just been sampled.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from measuring import latencies, table, write_result
from rlvla.config import SamplerConfig, TinyModelConfig
from rlvla.policies.models.tiny_vlm import build_tiny
from rlvla.policies.thinker.actions import QuantileCodec
from rlvla.policies.thinker.policy import save_policy
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.policies.thinker.settings import Settings
from rlvla.policies.thinker.vocabulary import add_slots
from rlvla.protocols import SampleRequest
from rlvla.samplers.vllm.sampler import VLLMSampler

CHUNK_LENGTH, ACTION_SIZE = 8, 7
NUM_BINS = 256
INSTRUCTION = "put the red block into the bowl"
CORPUS = [INSTRUCTION, "<think>the badge at 200 350 is red, so go on and grasp it</think>"]
THOUGHT = "<think>" + "the badge at 200 350 is red so go on and grasp it " * 4 + "</think>"
WAYS = ("parallel", "autoregressive")


def main(
    *,
    architecture: Literal["idefics3", "qwen2_5_vl"] = "idefics3",
    hidden_size: int = 128,
    num_layers: int = 4,
    concurrency: tuple[int, ...] = (1, 8, 32),
    rounds: int = 7,
    output: Path | None = None,
) -> None:
    """Measure, print, write.

    Args:
        architecture: of the model.
        hidden_size: of its language model.
        num_layers: of its language model.
        concurrency: chunks at once.
        rounds: that count, behind one that warms up.
        output: also write the result here, as JSON.
    """
    tiny = TinyModelConfig(architecture=architecture, hidden_size=hidden_size, num_layers=num_layers)
    model, hf_processor = build_tiny(tiny, CORPUS, NUM_BINS, seed=0)
    low, high = (-1.0,) * ACTION_SIZE, (1.0,) * ACTION_SIZE
    codec = QuantileCodec(low=low, high=high, num_bins=NUM_BINS, chunk_length=CHUNK_LENGTH)
    add_slots(model, hf_processor, CHUNK_LENGTH * ACTION_SIZE)
    processor = PolicyProcessor.create(hf_processor, Settings(codec=codec, action_decoding="parallel"))
    with tempfile.TemporaryDirectory() as folder:
        save_policy(model, processor, Path(folder))
        sampler_config = SamplerConfig(kv_cache_mb=128, max_num_seqs=max(concurrency))
        sampler = VLLMSampler(Path(folder), sampler_config, max_images=2, max_model_len=512)
        rows = asyncio.run(measure(sampler, processor, concurrency, rounds))
        sampler.close()
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{architecture}, {num_parameters / 1e6:.1f} M parameters; {processor.decoding.num_actions} actions")
    print(render(rows))
    facts = {"architecture": architecture, "num_parameters": num_parameters, "rounds": rounds}
    write_result({**facts, "num_actions": processor.decoding.num_actions, "rows": rows}, output)


async def measure(
    sampler: VLLMSampler, processor: PolicyProcessor, concurrency: tuple[int, ...], rounds: int
) -> list[dict[str, Any]]:
    """A row for each number of chunks at once: of each way the engine's steps and the time until all are there."""
    rows = []
    for number in concurrency:
        row: dict[str, Any] = {"requests": number}
        for way in WAYS:
            seconds, steps = [], 0
            for round_ in range(rounds + 1):
                requests = [request(processor, way, seed, seed + 1000 * round_) for seed in range(number)]
                before, started = sampler.num_steps, time.perf_counter()
                await asyncio.gather(*map(sampler.sample, requests))
                seconds.append(time.perf_counter() - started)
                steps = sampler.num_steps - before
            row[way] = {"steps": steps, **latencies(seconds[1:])}
        rows.append(row | {"speed_up": row["autoregressive"]["p50_ms"] / row["parallel"]["p50_ms"]})
    return rows


def request(processor: PolicyProcessor, way: str, context: int, seed: int) -> SampleRequest:
    """A chunk behind the context of this number, whatever actions it is: the weights are random."""
    vocabulary, num_actions = processor.vocabulary, processor.decoding.num_actions
    asked = SampleRequest(
        prompt_ids=(*processor.prompt_ids(INSTRUCTION, 2), *vocabulary.encode(f"{THOUGHT}<act>")),
        images=tuple(np.random.default_rng(context).integers(0, 256, (2, 64, 64, 3), np.uint8)),
        stop_ids=(),
        max_tokens=num_actions,
        temperature=1.0,
        seed=seed,
    )
    return replace(asked, num_actions=num_actions) if way == "parallel" else asked


def render(rows: list[dict[str, Any]]) -> str:
    """The rows, to read."""
    head = ("at once", "parallel: steps", "p50 ms", "autoregressive: steps", "p50 ms", "speed-up")
    cells = [
        (row["requests"], *(row[way][key] for way in WAYS for key in ("steps", "p50_ms")), f"{row['speed_up']:.1f}x")
        for row in rows
    ]
    return table([head, *cells])


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
