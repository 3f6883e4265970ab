"""A decision's action chunk in vLLM, one parallel step against one step a token, and whole decisions around it.

    python scripts/benchmark/actions.py --output docs/results/actions_benchmark.json

The model has random weights (`tiny_vlm`). The chunk is K x A = 8 x 7 tokens, as on LIBERO. The context of a chunk
alone (`chunk`) is a prompt with two pictures and a thought, and is in the prefix cache, as it is when the thought has
just been sampled. Decisions look closer (`zoom`), `think`, or neither (`act`), each of a fixed length, out of vLLM and
out of transformers, which serves one request at a time.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
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
from rlvla.protocols import Sampler, SampleRequest
from rlvla.samplers.local import TransformersSampler
from rlvla.samplers.vllm.sampler import VLLMSampler

CHUNK_LENGTH, ACTION_SIZE = 8, 7
NUM_BINS = 256
INSTRUCTION = "put the red block into the bowl"
CORPUS = (INSTRUCTION, "<think>the badge at 200 350 is red, so go on and grasp it</think>")
THOUGHT = "<think>" + "the badge at 200 350 is red so go on and grasp it " * 4 + "</think>"
CALL_TOKENS = 24
"""Sampled up to a look: a short thought and the call itself."""
THOUGHT_TOKENS = 36
"""Sampled behind the last picture."""
KINDS = ("chunk", "act", "think", "zoom")
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
        concurrency: decisions at once.
        rounds: that count, behind one that warms up.
        output: also write the result here, as JSON.
    """
    tiny = TinyModelConfig(architecture=architecture, hidden_size=hidden_size, num_layers=num_layers)
    with tempfile.TemporaryDirectory() as folder:
        processor, num_parameters = _save(Path(folder), tiny)
        rows = asyncio.run(measure(Path(folder), processor, concurrency, rounds))
    print(f"{architecture}, {num_parameters / 1e6:.1f} M parameters; {processor.decoding.num_actions} actions")
    print(render(rows))
    facts = {"architecture": architecture, "num_parameters": num_parameters, "rounds": rounds}
    write_result({**facts, "num_actions": processor.decoding.num_actions, "rows": rows}, output)


def _save(folder: Path, tiny: TinyModelConfig) -> tuple[PolicyProcessor, int]:
    """Write the policy; its processor, and how many parameters it has."""
    model, hf_processor = build_tiny(tiny, list(CORPUS), NUM_BINS, seed=0)
    low, high = (-1.0,) * ACTION_SIZE, (1.0,) * ACTION_SIZE
    codec = QuantileCodec(low=low, high=high, num_bins=NUM_BINS, chunk_length=CHUNK_LENGTH)
    add_slots(model, hf_processor, CHUNK_LENGTH * ACTION_SIZE)
    processor = PolicyProcessor.create(hf_processor, Settings(codec=codec, action_decoding="parallel"))
    save_policy(model, processor, folder)
    return PolicyProcessor.load(folder), sum(parameter.numel() for parameter in model.parameters())


async def measure(
    folder: Path, processor: PolicyProcessor, concurrency: tuple[int, ...], rounds: int
) -> list[dict[str, Any]]:
    """A row for each sampler, number of decisions at once, and kind."""
    config = SamplerConfig(kv_cache_mb=128, max_num_seqs=max(concurrency))
    sampler = VLLMSampler(folder, config, max_images=2, max_model_len=512)
    rows = [row for number in concurrency async for row in _rows("vllm", sampler, processor, number, rounds)]
    sampler.close()
    reference = TransformersSampler(folder)
    return rows + [
        row async for row in _rows("transformers", reference, processor, 1, rounds) if row["kind"] != "chunk"
    ]


async def _rows(name: str, sampler: Sampler, processor: PolicyProcessor, number: int, rounds: int) -> Any:
    """`to_act` is how many times as long as without a thought it takes."""
    act: dict[str, Any] = {}
    for kind in KINDS:
        row: dict[str, Any] = {"sampler": name, "kind": kind, "requests": number}
        for way in WAYS:
            decisions = [Decision(processor=processor, kind=kind, way=way, seed=seed) for seed in range(number)]
            row[way] = await _time(sampler, decisions, rounds)
        act = row if kind == "act" else act
        if act:
            row["to_act"] = {way: row[way]["p50_ms"] / act[way]["p50_ms"] for way in WAYS}
        row["speed_up"] = row["autoregressive"]["p50_ms"] / row["parallel"]["p50_ms"]
        yield row


async def _time(sampler: Any, decisions: list[Decision], rounds: int) -> dict[str, float]:
    """Until all decisions of a round are taken, and the engine's steps, if the sampler counts any."""
    seconds, steps = [], 0
    for number in range(rounds + 1):
        begun = [decision.begin(number) for decision in decisions]
        before, started = getattr(sampler, "num_steps", 0), time.perf_counter()
        await asyncio.gather(*(one.take(sampler, request) for one, request in zip(decisions, begun, strict=True)))
        seconds.append(time.perf_counter() - started)
        steps = getattr(sampler, "num_steps", 0) - before
    return {"steps": steps, **latencies(seconds[1:])}


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One decision of a policy that says so many tokens, whatever they are: its weights are random."""

    processor: PolicyProcessor
    kind: str
    way: str
    seed: int

    def begin(self, number: int) -> SampleRequest:
        """The context; a decision sees another picture in each round."""
        processor, is_chunk = self.processor, self.kind == "chunk"
        rng = np.random.default_rng([self.seed, 0 if is_chunk else number])
        request = SampleRequest(
            prompt_ids=processor.prompt_ids(INSTRUCTION, 1 + is_chunk),
            images=tuple(rng.integers(0, 256, (1 + is_chunk, 64, 64, 3), np.uint8)),
            stop_ids=(),
            max_tokens=processor.decoding.num_actions,
            temperature=1.0,
            seed=self.seed + 1000 * number,
        )
        return _longer(request, processor.vocabulary.encode(THOUGHT)) if is_chunk else request

    async def take(self, sampler: Sampler, request: SampleRequest) -> None:
        """Ask for all of it, one request after the other."""
        vocabulary = self.processor.vocabulary
        if self.kind == "zoom":
            request = await self._say(sampler, request, CALL_TOKENS)
            crop = np.ascontiguousarray(request.images[0][::-1])
            request = replace(request, images=(*request.images, crop))
            request = _longer(request, self.processor.result_ids(image=True))
        if self.kind in ("think", "zoom"):
            request = await self._say(sampler, request, THOUGHT_TOKENS)
        request = _longer(request, [vocabulary.mark_ids["<act>"]])
        if self.way == "parallel":
            request = replace(request, num_actions=self.processor.decoding.num_actions)
        await sampler.sample(request)

    async def _say(self, sampler: Sampler, request: SampleRequest, num_tokens: int) -> SampleRequest:
        """The request with what was sampled behind it."""
        banned = tuple(self.processor.vocabulary.mark_ids.values())  # a thought holds no other mark
        said = await sampler.sample(replace(request, max_tokens=num_tokens, banned_ids=banned))
        return _longer(request, said.token_ids.tolist())


def _longer(request: SampleRequest, ids: Any) -> SampleRequest:
    return replace(request, prompt_ids=(*request.prompt_ids, *ids))


def render(rows: list[dict[str, Any]]) -> str:
    """The rows, to read."""

    def cells(row: dict[str, Any]) -> Iterator[object]:
        yield from (row["sampler"], row["kind"], row["requests"])
        for way in WAYS:
            yield from (row[way]["steps"], f"{row[way]['p50_ms']:.1f}")
        yield f"{row['speed_up']:.1f}x"

    head = ("sampler", "kind", "at once", "parallel: steps", "p50 ms", "autoregressive: steps", "p50 ms", "speed-up")
    return table([head, *(list(cells(row)) for row in rows)])


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
