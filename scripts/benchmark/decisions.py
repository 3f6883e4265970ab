"""How fast vLLM samples as we drive it, against its own best: `LLM.generate` over the same requests at once.

python scripts/benchmark/decisions.py [--model outputs/demo/sft/checkpoint] [--output decisions.json]

The requests are those that decisions of a policy make in its env: real prompts, pictures, thoughts and zooms, each with
its sampling parameters. Blocks of actions that are drawn at once are left out, which `LLM.generate` does not know.

- ours: `VLLMSampler`, all requests submitted together, hence `sampler.max_num_seqs` in the engine at a time;
- offline: `vllm.LLM.generate` with a list of the same prompts, pictures and parameters, and the same engine arguments.

A repeat has requests of its own on both sides, so that neither finds in its prefix cache what an earlier repeat left
there. `decisions_vs_offline` is ours by offline in sampled tokens/s; requests a second say the same.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tyro
from PIL import Image

from cpu import cpu_seconds, since
from measuring import (
    ROOT,
    Run,
    checkpoint_name,
    engine_limits,
    measure,
    medians,
    reset,
    set_environment,
    table,
    verdict,
    verdicts,
    write_result,
)
from rlvla.config import GRPOConfig, load
from rlvla.protocols import SampleOutput, Sampler, SampleRequest


def main(
    *,
    model: Path = ROOT / "outputs/demo/sft/checkpoint",
    config: Path = ROOT / "recipes/configs/grpo_tiny_tabletop.yaml",
    num_requests: int = 256,
    repeats: int = 3,
    seed: int = 0,
    output: Path | None = None,
) -> None:
    """Measure, print the table, write the JSON.

    Args:
        model: policy checkpoint.
        config: GRPO config: env, limits of a turn, sampler.
        num_requests: of one run.
        repeats: measured runs of each side.
        seed: of states and sampling.
        output: also write the result here, as JSON.
    """
    set_environment()
    name = checkpoint_name(model)
    if repeats < 1 or num_requests < 1:
        raise SystemExit(f"--repeats {repeats}, --num-requests {num_requests}: at least 1 of each")
    cfg = replace(load(GRPOConfig, ["--config", str(config)]), model=model, seed=seed)
    runs = measure_all(cfg, num_requests, repeats)
    result = summarise(runs) | {"num_requests": num_requests, "repeats": repeats, "seed": seed, "model": name}
    result["config"] = os.path.relpath(config.resolve(), ROOT)
    print(render(result))
    write_result(result, output, cfg.sampler.threads)


def measure_all(cfg: GRPOConfig, num_requests: int, repeats: int) -> dict[str, list[Run]]:
    """Run both sides, one after the other; the runs by name."""
    from rlvla.policies.family import load_policy
    from rlvla.samplers.vllm.engine import engine_arguments
    from rlvla.samplers.vllm.requests import text_parameters
    from rlvla.samplers.vllm.sampler import VLLMSampler

    limits: dict[str, Any] = {**engine_limits(cfg), "seed": cfg.seed}
    sampler = VLLMSampler(cfg.model, cfg.sampler, **limits)
    parts = asyncio.run(make_requests(cfg, sampler, num_requests, repeats + 1))
    sampler.close()
    never_ids = load_policy(cfg.model).engine_needs(cfg.model).never_ids
    parameters = [[text_parameters(request, never_ids) for request in part] for part in parts]
    sampler = VLLMSampler(cfg.model, cfg.sampler, **limits)  # whose prefix cache knows none of them
    runs = {"ours": measure("ours", repeats, lambda i: asyncio.run(ask(sampler, parts[i])))}
    sampler.close()
    from vllm import LLM

    llm = LLM(**engine_arguments(cfg.model, cfg.sampler, parallel_actions=False, **limits))
    runs["offline"] = measure("offline", repeats, lambda i: generate(llm, parts[i], parameters[i]))
    return runs


@dataclass(frozen=True)
class _Recording:
    """A sampler that keeps what it is asked, but for blocks of actions."""

    sampler: Sampler
    requests: list[SampleRequest] = field(default_factory=list)

    async def sample(self, request: SampleRequest) -> SampleOutput:
        """See `protocols.Sampler`."""
        if not request.num_actions:
            self.requests.append(request)
        return await self.sampler.sample(request)


async def make_requests(cfg: GRPOConfig, sampler: Sampler, number: int, num_parts: int) -> list[list[SampleRequest]]:
    """What decisions at the starts of episodes ask, each of another state as far as there are some.

    A decision's requests, of which each continues the one before, are all in one part.

    Args:
        cfg: env, limits of a turn.
        sampler: that answers.
        number: of the requests in a part.
        num_parts: as many lists.

    Raises:
        SystemExit: this policy asks for blocks of actions only.
    """
    from rlvla.policies.family import load_policy
    from rlvla.rollout.env_server import make_env
    from rlvla.rollout.episode import observe
    from rlvla.rollout.tasks import TaskStream

    policy = load_policy(cfg.model)
    env: Any = make_env(cfg.env)

    async def in_env(function: Any) -> Any:
        return function()

    tasks = TaskStream(config=cfg.env, seed=cfg.seed)
    parts = []
    for _ in range(num_parts):
        recording = _Recording(sampler)
        decider = policy.decider(recording, cfg.episode)
        while len(recording.requests) < number:
            (task,) = tasks.take(1)
            await decider.decide(observe(env, reset(env, task)), in_env, seed=task.seed)
            if not recording.requests:
                raise SystemExit(
                    f"{cfg.model} draws its chunks at once and says nothing: choose episode.mode zoom or think"
                )
        parts.append(recording.requests[:number])
    env.close()
    return parts


async def ask(sampler: Sampler, requests: Sequence[SampleRequest]) -> Run:
    """All at once."""
    before, started = cpu_seconds(), time.perf_counter()
    outputs = await asyncio.gather(*(sampler.sample(request) for request in requests))
    return _run(started, before, [output.token_ids for output in outputs])


def generate(llm: Any, requests: Sequence[SampleRequest], parameters: Sequence[Any]) -> Run:
    """All in one call."""
    before, started = cpu_seconds(), time.perf_counter()
    prompts = [
        {
            "prompt_token_ids": list(request.prompt_ids),
            "multi_modal_data": {"image": [Image.fromarray(image) for image in request.images]},
        }
        for request in requests
    ]
    outputs = llm.generate(prompts, list(parameters), use_tqdm=False)
    return _run(started, before, [output.outputs[0].token_ids for output in outputs])


def _run(started: float, before: Mapping[str, float], sampled: Sequence[Sized]) -> Run:
    """That ends now and answered each request with these tokens."""
    seconds, spent = time.perf_counter() - started, since(before)
    return Run(seconds=seconds, counts={"requests": len(sampled), "tokens": sum(map(len, sampled))}, facts=spent)


def summarise(runs: dict[str, list[Run]]) -> dict[str, Any]:
    """Medians, the ratio, and the verdict."""
    result: dict[str, Any] = {name: medians(of_name) for name, of_name in runs.items()}
    ratio = result["ours"]["tokens_per_s"] / result["offline"]["tokens_per_s"]
    cpu_s = {name: sum(sum(run.facts.values()) / run.counts["tokens"] for run in runs[name]) for name in runs}
    return result | {
        "decisions_vs_offline": ratio,
        "cpu_vs_offline": cpu_s["offline"] / cpu_s["ours"] if cpu_s["ours"] else None,
        "targets": verdicts({"decisions_vs_offline": ratio}),
    }


def render(result: dict[str, Any]) -> str:
    """The result in columns."""
    rows = [(name, result[name]["tokens_per_s"], result[name]["requests_per_s"]) for name in ("ours", "offline")]
    ratio = result["decisions_vs_offline"]
    told = f"decisions_vs_offline {ratio:.2f}{verdict('decisions_vs_offline', ratio)}"
    return "\n".join([table([("", "tokens/s", "requests/s"), *rows]), told])


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
