"""The rollout that ours is compared with: `transformers.generate` over the whole batch, in lockstep.

It makes the same decisions as ours: same checkpoint, same prompts, markup, tools, limits and temperature (it calls
our `episode.decide`), same envs in the same kind of processes, same initial states, one env per trajectory. What
differs is what SimpleVLA-RL's rollout does (PRIME-RL/SimpleVLA-RL, verl/workers/rollout/rob_rollout.py,
`_generate_minibatch`):

- All envs decide together, and none steps before all have decided. The loop goes on until the time limit.
- Each phase of a decision (until `</tool>` or `</act>`) is one `model.generate` with KV cache over a left-padded batch
  that holds every row: the ones that wait for this phase, those that have acted already (with what they last read), and
  those whose episode has ended (with the prompt of their last decision). A decision takes as many phases as the row
  that looks most often.

Where there is a choice, it is made in favour of this baseline. A row that only rides along (SimpleVLA-RL samples it
anew from its last observation) never prolongs a `generate`, and its env is neither stepped nor asked; once all episodes
have ended the loop stops; log-probabilities are not computed (SimpleVLA-RL pays another forward for them); envs live on
through all repeats (SimpleVLA-RL starts a process for each trajectory of each rollout).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from benchmark_ours import num_decisions
from benchmark_result import Run
from rlvla.config import GRPOConfig
from rlvla.policies.thinker import policy
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.policies.thinker.tools import load_tools
from rlvla.policies.thinker.turn_context import Recall
from rlvla.protocols import SampleOutput, SampleRequest
from rlvla.rollout.collect import Job
from rlvla.rollout.env_process import EnvPool
from rlvla.rollout.env_thread import EnvThread
from rlvla.rollout.episode import Decider, decide, derive_seed, observe


class _RowsEnd(StoppingCriteria):
    """A row ends at its stop token or limit; rows with limit 0 have ended from the start."""

    def __init__(self, stop_ids: Sequence[int], limits: torch.Tensor, context_length: int) -> None:
        self._stop_ids = torch.tensor(stop_ids, device=limits.device)
        self._limits, self._context_length = limits, context_length

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        is_stop = torch.isin(input_ids[:, -1], self._stop_ids)
        return is_stop | (input_ids.shape[1] - self._context_length >= self._limits)


class LockstepBatch:
    """A Hugging Face model that continues a fixed number of rows together.

    Args:
        model: checkpoint folder.
        num_rows: B.
        dtype: of weights and activations.

    Raises:
        ValueError: the prompts of this policy see themselves, which `generate` cannot do.
    """

    def __init__(self, model: Any, num_rows: int, dtype: torch.dtype = torch.float32) -> None:
        self.processor = PolicyProcessor.load(model)
        if self.processor.prefix_attention != "causal":
            raise ValueError(f"{model}: generate knows no prefix_attention: {self.processor.prefix_attention}")
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = policy.load_model(model, dtype).to(self._device).eval()
        self._pad_id = self.processor.hf_processor.tokenizer.pad_token_id or 0
        self._prompts: list[SampleRequest | None] = [None] * num_rows
        self._requests: list[SampleRequest | None] = [None] * num_rows
        self._deciding: set[int] = set()
        self._waiting: dict[int, asyncio.Future[SampleOutput]] = {}

    def begin(self, rows: Sequence[int]) -> None:
        """A decision starts; `rows` take part in it until they `leave`, others ride along with their last prompt."""
        self._deciding = set(rows)
        self._asked = set[int]()
        self._requests = list(self._prompts)

    def leave(self, row: int) -> None:
        """This row has decided; the others need not wait for it any more."""
        self._deciding.remove(row)
        self._generate_if_all_wait()

    async def sample(self, row: int, request: SampleRequest) -> SampleOutput:
        """Continue one row, once all that take part have asked."""
        self._requests[row] = request
        if row not in self._asked:
            self._prompts[row] = request
            self._asked.add(row)
        self._waiting[row] = asyncio.get_running_loop().create_future()
        future = self._waiting[row]
        self._generate_if_all_wait()
        return await future

    def _generate_if_all_wait(self) -> None:
        if not self._waiting or self._waiting.keys() != self._deciding:
            return
        waiting, self._waiting = self._waiting, {}
        chunks = [row for row in sorted(waiting) if self._requests[row].num_actions]  # type: ignore[union-attr]
        texts = [row for row in sorted(waiting) if row not in chunks]
        outputs = (self._generate(texts) if texts else {}) | (self._act(chunks) if chunks else {})
        for row, output in outputs.items():
            waiting[row].set_result(output)

    @torch.no_grad()
    def _generate(self, live: Sequence[int]) -> dict[int, SampleOutput]:
        """One `generate` over the whole batch; the outputs of the rows in `live`."""
        requests = [request for request in self._requests if request is not None]
        contexts = [self.processor.expand(request.prompt_ids, request.images) for request in requests]
        inputs = self._inputs(contexts, requests)
        length = inputs["input_ids"].shape[1]
        limits = torch.tensor([r.max_tokens if i in live else 0 for i, r in enumerate(requests)], device=self._device)
        request = requests[live[0]]
        sequences = self._model.generate(
            **inputs,
            generation_config=self._generation_config(request, int(limits.max())),
            stopping_criteria=StoppingCriteriaList([_RowsEnd(request.stop_ids, limits, length)]),
        )
        sampled = sequences[:, length:].cpu().numpy()
        return {row: _output(contexts[row], sampled[row], requests[row]) for row in live}

    @torch.no_grad()
    def _act(self, rows: Sequence[int]) -> dict[int, SampleOutput]:
        """The chunks of these rows out of one forward."""
        requests = [request for row in rows if (request := self._requests[row]) is not None]
        contexts = [self.processor.expand(request.prompt_ids, request.images) for request in requests]
        action_ids, num_actions = list(requests[0].action_ids), requests[0].num_actions
        first = torch.tensor([[len(context)] for context in contexts])
        # As the learner scores them: padded on the right, with any action in the place of each.
        any_actions = np.full(num_actions, action_ids[0], np.int32)
        ids, mask = self._pad([np.concatenate([context, any_actions]) for context in contexts], left=False)
        columns = torch.arange(ids.shape[1])[None]
        is_act = (columns >= first) & (columns < first + num_actions)
        inputs = self._to_device(self.processor.forward_inputs(ids, mask, is_act), requests)
        logits = policy.next_logits(self._model, inputs)[:, :, action_ids]  # of the tokens from column 1 on
        logits = logits[is_act[:, 1:].to(self._device)].view(len(rows), num_actions, len(action_ids))
        if temperature := requests[0].temperature:
            probabilities = torch.softmax(logits / temperature, -1).flatten(0, 1)
            bins = torch.multinomial(probabilities, 1).view(len(rows), num_actions)
        else:
            bins = logits.argmax(-1)
        drawn = np.array(action_ids, np.int32)[bins.cpu().numpy()]
        return {row: _output(contexts[i], drawn[i], requests[i]) for i, row in enumerate(rows)}

    def _inputs(self, contexts: Sequence[np.ndarray], requests: Sequence[SampleRequest]) -> dict[str, torch.Tensor]:
        """Inputs of `generate`, padded on the left, on the device."""
        ids, mask = self._pad(contexts, left=True)
        inputs = self.processor.forward_inputs(ids, mask, torch.zeros_like(ids, dtype=torch.bool))
        known = ("input_ids", "attention_mask", "mm_token_type_ids")  # the rest is about actions; here are none
        return self._to_device({name: inputs[name] for name in known if name in inputs}, requests)

    def _pad(self, rows: Sequence[np.ndarray], *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and attention mask, [B, L] each."""
        length = max(len(row) for row in rows)
        ids = torch.full((len(rows), length), self._pad_id)
        mask = torch.zeros((len(rows), length), dtype=torch.int64)
        for i, row in enumerate(rows):
            place = slice(length - len(row), None) if left else slice(len(row))
            ids[i, place] = torch.from_numpy(row)
            mask[i, place] = 1
        return ids, mask

    def _to_device(self, inputs: dict[str, torch.Tensor], requests: Sequence[SampleRequest]) -> dict[str, torch.Tensor]:
        """Inputs and the pixels of the requests' images, where the model is."""
        inputs = inputs | self.processor.pixel_inputs([request.images for request in requests])
        dtype = self._model.dtype
        return {n: t.to(self._device, dtype if t.is_floating_point() else t.dtype) for n, t in inputs.items()}

    def _generation_config(self, request: SampleRequest, max_tokens: int) -> GenerationConfig:
        sampling = {"temperature": request.temperature, "top_k": 0, "top_p": 1.0} if request.temperature else {}
        return GenerationConfig(
            max_new_tokens=max_tokens,
            do_sample=request.temperature > 0,
            pad_token_id=self._pad_id,
            suppress_tokens=[
                *policy.placeholder_ids(self._model.config),
                *request.banned_ids,
                *self.processor.vocabulary.slot_ids,
            ],
            use_cache=True,
            **sampling,
        )


def _output(context: np.ndarray, sampled: np.ndarray, request: SampleRequest) -> SampleOutput:
    """Cut what follows the stop token or the limit: padding, or the tokens of rows that went on."""
    stops = np.flatnonzero(np.isin(sampled, request.stop_ids))
    length = min([*(stops[:1] + 1).tolist(), request.max_tokens, len(sampled)])
    return SampleOutput(
        context_ids=context,
        token_ids=sampled[:length].astype(np.int32),
        logprobs=np.zeros(length, np.float32),
        policy_version=0,
    )


@dataclass(frozen=True)
class _RowSampler:
    """One row of a LockstepBatch behind the Sampler protocol."""

    batch: LockstepBatch
    row: int

    async def sample(self, request: SampleRequest) -> SampleOutput:
        """See `protocols.Sampler`."""
        return await self.batch.sample(self.row, request)


@dataclass(kw_only=True)
class _Episode:
    """One row's episode while it is played."""

    row: int
    job: Job
    env: EnvThread
    raw: Any
    recall: Recall = field(default_factory=Recall)
    actions: np.ndarray | None = None
    num_decisions: int = 0
    num_env_steps: int = 0
    has_ended: bool = False
    success: bool = False


class LockstepRollout:
    """Envs and model of the baseline. Use as a context manager.

    Args:
        cfg: what our rollout is configured by.
        num_rows: trajectories, hence envs and rows of the batch.
    """

    def __init__(self, cfg: GRPOConfig, num_rows: int) -> None:
        self._batch = LockstepBatch(cfg.model, num_rows, getattr(torch, cfg.sampler.dtype))
        self._pool = EnvPool(cfg.env, num_rows, cfg.cluster.envs_per_process)
        tools, processor = load_tools(cfg.episode.tools), self._batch.processor
        self._deciders = [
            Decider(sampler=_RowSampler(self._batch, row), processor=processor, tools=tools, config=cfg.episode)
            for row in range(num_rows)
        ]
        self._num_decisions = num_decisions(cfg)
        torch.manual_seed(cfg.seed)

    def __enter__(self) -> LockstepRollout:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    def run(self, jobs: Sequence[Job]) -> Run:
        """Play one trajectory per row."""
        started = time.perf_counter()
        episodes = asyncio.run(self._play(jobs))
        seconds = time.perf_counter() - started
        decisions = sum(e.num_decisions for e in episodes)
        return Run(
            seconds=seconds,
            counts={
                "trajectories": len(episodes),
                "env_steps": sum(e.num_env_steps for e in episodes),
                "decisions": decisions,
            },
            facts={
                "success": sum(e.success for e in episodes) / len(episodes),
                "decisions_per_trajectory": decisions / len(episodes),
            },
        )

    async def _play(self, jobs: Sequence[Job]) -> list[_Episode]:
        numbered = enumerate(zip(jobs, self._pool.envs, strict=True))
        episodes = await asyncio.gather(*(_reset(row, job, env) for row, (job, env) in numbered))
        for _ in range(self._num_decisions):
            live = [episode for episode in episodes if not episode.has_ended]
            if not live:
                break
            self._batch.begin([episode.row for episode in live])
            await asyncio.gather(*(self._decide(episode) for episode in live))
            await asyncio.gather(*(_step(episode) for episode in live))
        return episodes

    async def _decide(self, episode: _Episode) -> None:
        decider = self._deciders[episode.row]
        observation = await episode.env.call(lambda e: observe(e, episode.raw))
        seed = derive_seed(episode.job.task.seed, episode.job.member, episode.num_decisions)
        decision = await decide(decider, observation, episode.env, seed=seed, recall=episode.recall)
        self._batch.leave(episode.row)
        episode.num_decisions += 1
        episode.actions = decision.actions
        episode.recall = episode.recall.after(
            decision.turn, think_every=decider.config.think_every, carry_thought=decider.processor.carry_thought
        )


async def _reset(row: int, job: Job, env: EnvThread) -> _Episode:
    options = {"task_id": job.task.task_id, "init_state_id": job.task.init_state_id}
    raw, _ = await env.call(lambda e: e.reset(seed=job.task.seed, options=options))
    return _Episode(row=row, job=job, env=env, raw=raw)


async def _step(episode: _Episode) -> None:
    """Execute what was decided; nothing executable ends the episode, as in ours."""
    chunk = episode.actions
    if chunk is None:
        episode.has_ended = True
        return
    episode.raw, rewards, terminated, truncated, info = await episode.env.call(lambda e: e.step_chunk(chunk))
    episode.num_env_steps += len(rewards)
    episode.success = bool(info.get("is_success", False))
    episode.has_ended = terminated or truncated or episode.success
