"""What the parts of a GRPO step cost by themselves, for `scripts/simulate_step.py`.

python scripts/benchmark/step_costs.py --model outputs/demo/sft/checkpoint [--output docs/results/step_costs.json]

Each part alone, in CPU seconds (not wall time: what else the machine does hardly moves them), with one thread:

- env: a reset in the same and in another scene, a chunk of random actions with its pictures, a zoom;
- engine: a step of vLLM with so many sequences in its batch, a request with a new picture, a block of actions;
- around them: what a turn takes in the policy's decider, and a request on its way through Ray and back.

Learner and weight sync are measured by `scripts/benchmark/grpo.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import tyro

from measuring import ROOT, checkpoint_name, engine_limits, reset, set_environment, write_result
from rlvla.config import GRPOConfig, load
from rlvla.policies.thinker.policy import Thinker
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.protocols import SampleOutput, SampleRequest
from rlvla.rollout.env_server import make_env
from rlvla.rollout.episode import observe
from rlvla.rollout.tasks import TaskStream

SHORT, LONG = 4, 36
"""Tokens of the requests whose difference is a step's."""
BATCHES = (1, 4, 16, 48, 96)


def main(
    *,
    model: Path = ROOT / "outputs/demo/sft/checkpoint",
    config: Path = ROOT / "recipes/configs/grpo_tiny_tabletop.yaml",
    repeats: int = 5,
    output: Path | None = None,
) -> None:
    """Measure, print, write the JSON.

    Args:
        model: policy checkpoint of the family `thinker`; what it has learned does not matter.
        config: GRPO config: env, limits, sampler.
        repeats: of each measurement, whose median counts.
        output: also write the result here.
    """
    set_environment()
    name = checkpoint_name(model)
    cfg = replace(load(GRPOConfig, ["--config", str(config)]), model=model)
    costs = env_costs(cfg, repeats) | engine_costs(cfg, repeats) | path_costs(cfg, repeats)
    for part, seconds in costs.items():
        print(part, seconds)
    facts = {"model": name, "config": config.name, "repeats": repeats}
    write_result({"costs": costs, **facts}, output, cfg.sampler.threads)


def cpu_s(run: Callable[[], Any], repeats: int) -> float:
    """CPU seconds of a call in this process, all threads, behind one that warms up."""
    run()
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        run()
        seconds.append(time.process_time() - started)
    return median(seconds)


def env_costs(cfg: GRPOConfig, repeats: int) -> dict[str, float]:
    """`reset_s`, `scene_s`, `chunk_s` and `zoom_s` of an env in this process."""
    env: Any = make_env(cfg.env)
    rng = np.random.default_rng(0)
    chunk_length = PolicyProcessor.load(cfg.model).codec.chunk_shape[0]
    tasks = TaskStream(config=cfg.env, seed=0).take(64)
    first = tasks[0]
    others = [task for task in tasks if task.task_id != first.task_id]

    def chunks() -> float:
        """CPU seconds of whole chunks, until an episode ends."""
        raw, count, is_over = reset(env, first), 0, False
        started = time.process_time()
        while not is_over:
            actions = rng.uniform(env.action_space.low, env.action_space.high, (chunk_length, *env.action_space.shape))
            raw, rewards, terminated, truncated, _ = env.step_chunk(actions.astype(np.float32))
            observe(env, raw)
            count += len(rewards)
            is_over = terminated or truncated or count >= 8 * chunk_length
        return (time.process_time() - started) * chunk_length / count

    reset_s = cpu_s(lambda: reset(env, first), repeats)
    chunk_s = median(chunks() for _ in range(repeats))
    scene_s = cpu_s(lambda: (reset(env, others[0]), reset(env, first)), repeats) / 2 - reset_s if others else 0.0
    observation = observe(env, reset(env, first))
    zoom_s = cpu_s(lambda: observation.zoom(0, (300, 300, 700, 700)), repeats)
    env.close()
    return {"reset_s": reset_s, "scene_s": max(0.0, scene_s), "chunk_s": chunk_s, "zoom_s": zoom_s}


RNG = np.random.default_rng(0)


def new_requests(
    processor: PolicyProcessor, temperature: float, shape: Sequence[int], num: int, max_tokens: int
) -> list[SampleRequest]:
    """With a picture each, [H, W, 3], that the engine has not seen."""
    prompt = tuple(processor.prompt_ids("press the red pad", 1))
    return [
        SampleRequest(
            prompt_ids=prompt,
            images=(RNG.integers(0, 255, shape, np.uint8),),
            stop_ids=(),
            max_tokens=max_tokens,
            temperature=temperature,
            seed=i,
        )
        for i in range(num)
    ]


def engine_costs(cfg: GRPOConfig, repeats: int) -> dict[str, Any]:
    """`decode`, `admit_s` of a block of actions, and `picture_s` that a request with a new picture takes more."""
    from rlvla.samplers.vllm.sampler import VLLMSampler

    sampler = VLLMSampler(cfg.model, cfg.sampler, **engine_limits(cfg))
    processor = PolicyProcessor.load(cfg.model)
    env: Any = make_env(cfg.env)
    shape = env.observation_space["images"].shape[1:]
    env.close()
    requests = partial(new_requests, processor, cfg.episode.temperature, shape)

    def played(asked: Sequence[SampleRequest]) -> float:
        async def all_of_them() -> list[SampleOutput]:
            return await asyncio.gather(*(sampler.sample(request) for request in asked))

        started = time.process_time()
        asyncio.run(all_of_them())
        return time.process_time() - started

    decode, admissions = [], []
    for num in (num for num in BATCHES if num <= cfg.sampler.max_num_seqs):
        played(requests(num, SHORT))
        short = median(played(requests(num, SHORT)) for _ in range(repeats))
        long = median(played(requests(num, LONG)) for _ in range(repeats))
        step_s = (long - short) / (LONG - SHORT)
        decode.append((num, step_s))
        admissions.append((short - SHORT * step_s) / num)
    text_s, block_s = admissions[-1], admissions[-1]
    if num_actions := processor.decoding.num_actions * processor.decoding.at_once:
        num, step_s = decode[-1]
        act = (processor.vocabulary.mark_ids["<act>"],)

        def blocks() -> float:
            """Behind requests with the same contexts, which the prefix cache holds, as it does in a turn."""
            asked = requests(num, 1)
            played(asked)
            block = {"num_actions": num_actions, "max_tokens": num_actions}
            return played([replace(r, prompt_ids=r.prompt_ids + act, **block) for r in asked])

        block_s = (median(blocks() for _ in range(repeats)) - step_s) / num
    sampler.close()
    return {"decode": decode, "admit_s": block_s, "picture_s": max(0.0, text_s - block_s)}


@dataclass(frozen=True)
class Scripted:
    """A sampler that takes no time: a thought, then actions."""

    processor: PolicyProcessor

    async def sample(self, request: SampleRequest) -> SampleOutput:
        """See `protocols.Sampler`."""
        vocabulary = self.processor.vocabulary
        if request.num_actions:
            token_ids = np.full(request.num_actions, vocabulary.action_ids[0], np.int32)
        else:
            marks = vocabulary.mark_ids
            word = next(i for i in range(100, 10_000) if i not in (*vocabulary.own_ids, vocabulary.placeholder_id))
            count = self.processor.decoding.num_actions * (not self.processor.decoding.at_once)
            ids = [marks["<think>"], *[word] * 20, marks["</think>"], marks["<act>"]]
            ids += [vocabulary.action_ids[0]] * count + [marks["</act>"]] * (count > 0)
            token_ids = np.array(ids, np.int32)
        context = self.processor.expand(request.prompt_ids, list(request.images))
        zeros = np.zeros(len(token_ids), np.float32)
        return SampleOutput(context_ids=context, token_ids=token_ids, logprobs=zeros, policy_version=0)


def path_costs(cfg: GRPOConfig, repeats: int) -> dict[str, float]:
    """`turn_s` in the decider, and `request_s` there and back through Ray, both processes."""
    import ray

    processor = PolicyProcessor.load(cfg.model)
    env: Any = make_env(cfg.env)
    first = TaskStream(config=cfg.env, seed=0).take(1)[0]
    observation = observe(env, reset(env, first))
    decider: Any = Thinker(processor).decider(Scripted(processor), cfg.episode)

    async def at_once(function: Callable[[], Any]) -> Any:
        return function()

    async def decisions(of: Callable[[int], Awaitable[Any]]) -> None:
        for i in range(32):
            await of(i)

    turn_s = cpu_s(lambda: asyncio.run(decisions(lambda i: decider.decide(observation, at_once, seed=i))), repeats) / 32

    @ray.remote(num_cpus=0.1)
    class Echo:
        async def sample(self, request: SampleRequest) -> SampleOutput:
            return await Scripted(processor).sample(request)

        async def cpu_s(self) -> float:
            return time.process_time()

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    echo: Any = Echo.remote()
    request = SampleRequest(
        prompt_ids=tuple(processor.prompt_ids("press the red pad", len(observation.images))),
        images=observation.images,
        stop_ids=(),
        max_tokens=64,
        temperature=1.0,
        seed=0,
    )
    started: Any = ray.get(echo.cpu_s.remote())
    ours_s = cpu_s(lambda: ray.get([echo.sample.remote(request) for _ in range(64)]), repeats) / 64
    ended: Any = ray.get(echo.cpu_s.remote())
    theirs_s = (ended - started) / (repeats + 1) / 64
    ray.shutdown()
    env.close()
    return {"turn_s": turn_s, "request_s": ours_s + theirs_s}


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
