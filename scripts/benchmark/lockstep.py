"""The rollout that ours is compared with: `transformers.generate` over the whole batch, in lockstep.

It makes the same decisions as ours: same checkpoint, same prompts, markup, tools, limits and temperature (it plays our
`run_episode`), same envs in the same kind of processes, same initial states, one env per trajectory. The difference is
what SimpleVLA-RL's rollout does (PRIME-RL/SimpleVLA-RL, verl/workers/rollout/rob_rollout.py, `_generate_minibatch`):

- All envs decide together: no decision begins before all have made the one before.
- Each phase of a decision (until `</tool>` or `</act>`) is one `model.generate` with KV cache over a left-padded batch
  that holds every row: the ones that wait for this phase, those that have acted already (with what they last read), and
  those whose episode has ended (with the prompt of their last decision). A decision takes as many phases as the row
  that looks most often.

Where there is a choice, it is made in favour of this baseline. A row that has acted steps its env while others still
decide. A row that only rides along (SimpleVLA-RL samples it anew from its last observation) never prolongs a
`generate`, and its env is neither stepped nor asked; once all episodes have ended the loop stops; log-probabilities are
not computed (SimpleVLA-RL pays another forward for them); env processes are there, with the simulator imported, before
the clock starts (SimpleVLA-RL forks one for each trajectory of each rollout), and live on through all repeats unless
`renews_envs`.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from cpu import cpu_seconds, since
from measuring import Run
from ours import rollout_run
from rlvla.config import GRPOConfig
from rlvla.policies.models.backbones import placeholder_ids
from rlvla.policies.thinker.drawing import to_device
from rlvla.policies.thinker.policy import Thinker
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.policies.thinker.scoring import next_logits, scored_places
from rlvla.policies.weights import load_model
from rlvla.protocols import SampleOutput, SampleRequest
from rlvla.rollout.collect import Job
from rlvla.rollout.env_process import EnvPool
from rlvla.rollout.episode import run_episode
from rlvla.types import Trajectory


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
        if self.processor.settings.prefix_attention != "causal":
            raise ValueError(f"{model}: generate knows no prefix_attention: {self.processor.settings.prefix_attention}")
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = load_model(model, dtype).to(self._device).eval()
        self._pad_id = self.processor.hf_processor.tokenizer.pad_token_id or 0
        self._prompts: list[SampleRequest] = [None] * num_rows  # type: ignore[list-item]
        """Of each row, what its last decision began with."""
        self._requests = list(self._prompts)
        """Of each row, what it has last asked for in this decision."""
        self._waiting: dict[int, tuple[SampleRequest, asyncio.Future[SampleOutput]]] = {}
        self._playing: set[int] = set()
        self._deciding: set[int] = set()

    def begin(self) -> None:
        """All rows begin an episode."""
        self._playing, self._deciding = set(range(len(self._prompts))), set()

    def end(self, row: int) -> None:
        """The episode of this row has ended."""
        self._playing.remove(row)
        self._deciding.discard(row)
        self._go_on()

    async def sample(self, row: int, request: SampleRequest) -> SampleOutput:
        """Continue one row, once all that still have to act in this decision have asked."""
        future = asyncio.get_running_loop().create_future()
        self._waiting[row] = request, future
        self._go_on()
        return await future

    def _go_on(self) -> None:
        if not self._deciding and self._playing and self._waiting.keys() == self._playing:  # all have acted
            self._deciding = set(self._playing)
            for row, (request, _) in self._waiting.items():
                self._prompts[row] = request
            self._requests = list(self._prompts)
        if not self._deciding or not self._deciding <= self._waiting.keys():
            return
        asked = {row: self._waiting.pop(row) for row in sorted(self._deciding)}
        for row, (request, _) in asked.items():
            self._requests[row] = request
        chunks = [row for row, (request, _) in asked.items() if request.num_actions]
        texts = [row for row in asked if row not in chunks]
        outputs = (self._generate(texts) if texts else {}) | (self._act(chunks) if chunks else {})
        end = self.processor.vocabulary.mark_ids["</act>"]
        self._deciding -= {row for row, output in outputs.items() if row in chunks or output.token_ids[-1] == end}
        for row, output in outputs.items():
            asked[row][1].set_result(output)

    @torch.no_grad()
    def _generate(self, live: Sequence[int]) -> dict[int, SampleOutput]:
        """One `generate` over the whole batch; the outputs of the rows in `live`."""
        requests = self._requests
        contexts = [self.processor.expand(request.prompt_ids, request.images) for request in requests]
        ids, mask = self._pad(contexts, left=True)
        inputs = self.processor.forward_inputs(ids, mask, torch.zeros_like(ids, dtype=torch.bool))
        known = ("input_ids", "attention_mask", "mm_token_type_ids")  # the rest is about actions; here are none
        limits = torch.tensor([r.max_tokens if i in live else 0 for i, r in enumerate(requests)], device=self._device)
        request, length = requests[live[0]], ids.shape[1]
        sequences = self._model.generate(
            **self._fed({name: inputs[name] for name in known if name in inputs}, requests),
            generation_config=self._generation_config(request, int(limits.max())),
            stopping_criteria=StoppingCriteriaList([_RowsEnd(request.stop_ids, limits, length)]),
        )
        sampled = sequences[:, length:].cpu().numpy()
        return {row: _output(contexts[row], sampled[row], requests[row]) for row in live}

    @torch.no_grad()
    def _act(self, rows: Sequence[int]) -> dict[int, SampleOutput]:
        """The chunks of these rows out of one forward."""
        requests = [self._requests[row] for row in rows]
        contexts = [self.processor.expand(request.prompt_ids, request.images) for request in requests]
        action_ids, num_actions = list(self.processor.vocabulary.action_ids), requests[0].num_actions
        first = torch.tensor([[len(context)] for context in contexts])
        # As the learner scores them: padded on the right, with any action in the place of each.
        any_actions = np.full(num_actions, action_ids[0], np.int32)
        ids, mask = self._pad([np.concatenate([context, any_actions]) for context in contexts], left=False)
        columns = torch.arange(ids.shape[1])[None]
        is_act = (columns >= first) & (columns < first + num_actions)
        inputs = self._fed(self.processor.forward_inputs(ids, mask, is_act), requests)
        logits = next_logits(self._model, inputs, scored_places(inputs["is_slot"]))[:, action_ids]
        if temperature := requests[0].temperature:
            bins = torch.multinomial(torch.softmax(logits / temperature, -1), 1)
        else:
            bins = logits.argmax(-1)
        drawn = np.array(action_ids, np.int32)[bins.view(len(rows), num_actions).cpu().numpy()]
        return {row: _output(contexts[i], drawn[i], requests[i]) for i, row in enumerate(rows)}

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

    def _fed(self, inputs: dict[str, torch.Tensor], requests: Sequence[SampleRequest]) -> dict[str, torch.Tensor]:
        """Inputs with the pixels of the requests' images."""
        pixels = self.processor.pixel_inputs([request.images for request in requests])
        return to_device(inputs | pixels, self._device, self._model.dtype)

    def _generation_config(self, request: SampleRequest, max_tokens: int) -> GenerationConfig:
        never = (*placeholder_ids(self._model.config), *request.banned_ids, *self.processor.vocabulary.slot_ids)
        sampling = {"temperature": request.temperature, "top_k": 0, "top_p": 1.0} if request.temperature else {}
        return GenerationConfig(
            max_new_tokens=max_tokens,
            do_sample=request.temperature > 0,
            pad_token_id=self._pad_id,
            suppress_tokens=list(never),
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


class LockstepRollout:
    """Envs and model of the baseline. Use as a context manager.

    Args:
        cfg: what our rollout is configured by.
        num_rows: trajectories, hence envs and rows of the batch.
        renews_envs: each batch of trajectories has env processes of its own, as in SimpleVLA-RL.
    """

    def __init__(self, cfg: GRPOConfig, num_rows: int, *, renews_envs: bool = False) -> None:
        self._batch = LockstepBatch(cfg.model, num_rows, getattr(torch, cfg.sampler.dtype))
        self._cfg, self._num_rows, self._renews_envs = cfg, num_rows, renews_envs
        self._pool: EnvPool | None = None
        policy = Thinker(self._batch.processor)
        self._deciders = [policy.decider(_RowSampler(self._batch, row), cfg.episode) for row in range(num_rows)]
        torch.manual_seed(cfg.seed)

    def __enter__(self) -> LockstepRollout:
        return self

    def __exit__(self, *_: object) -> None:
        self._close_pool()

    def _close_pool(self) -> None:
        if self._pool is not None:
            self._pool.close()
        self._pool = None

    def _new_pool(self) -> EnvPool:
        pool = EnvPool(self._cfg.env, self._num_rows, self._cfg.cluster.envs_per_process)
        for process in range(-(-self._num_rows // self._cfg.cluster.envs_per_process)):
            pool.link(process)
        return pool

    def run(self, jobs: Sequence[Job]) -> Run:
        """Play trajectories, as many at a time as there are rows, batch after batch.

        Raises:
            ValueError: they make no whole batches.
        """
        if len(jobs) % self._num_rows:
            raise ValueError(f"{len(jobs)} trajectories make no whole batches of {self._num_rows}")
        trajectories: list[Trajectory] = []
        seconds, spent = 0.0, Counter[str]()
        for start in range(0, len(jobs), self._num_rows):
            pool = self._pool = self._pool or self._new_pool()
            before, started = cpu_seconds(), time.perf_counter()
            trajectories += asyncio.run(self._play(pool, jobs[start : start + self._num_rows]))
            seconds += time.perf_counter() - started
            spent.update(since(before))
            if self._renews_envs:
                self._close_pool()
        return rollout_run(trajectories, seconds, spent)

    async def _play(self, pool: EnvPool, jobs: Sequence[Job]) -> list[Trajectory]:
        self._batch.begin()
        return await asyncio.gather(*(self._row(pool, row, job) for row, job in enumerate(jobs)))

    async def _row(self, pool: EnvPool, row: int, job: Job) -> Trajectory:
        trajectory = await run_episode(self._deciders[row], pool.envs[row], job.task, member=job.member)
        self._batch.end(row)
        return trajectory
