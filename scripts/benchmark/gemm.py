"""How near a learner comes to the plain matrix products that it consists of.

A step cannot be faster than its floating-point operations at the rate of a bare `torch.matmul` of the model's shapes,
at as many rows as a micro-batch has tokens, with the same threads. FLOP of a step are counted by torch, row by row,
so that no padding is among them, with logits where the loss is alone: forward and backward of the policy, and a forward
of the reference where there is one. What a layout adds (padding, logits of other tokens) counts as time lost.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from measuring import Run
from rlvla.config import GRPOConfig
from rlvla.learner import collate
from rlvla.policies.thinker.policy import Thinker
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.types import Group

LEAST_SECONDS = 0.5
"""That the products are repeated for."""


class PlainGemm:
    """The model whose products are measured, and its FLOP for the rows of a step."""

    def __init__(self, cfg: GRPOConfig) -> None:
        self._cfg, self._dtype = cfg, getattr(torch, cfg.learner.dtype)
        self._policy = Thinker(PolicyProcessor.load(cfg.model))
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model: Any = self._policy.load_model(cfg.model, self._dtype).to(self._device)

    def flop(self, groups: Sequence[Group]) -> float:
        """Of one update on the rows of these groups, without padding."""
        rows = collate.rows(groups, mask_context_full=self._cfg.mask_context_full)
        return float(sum(self._flop_of_row(row) for row in rows))

    def _flop_of_row(self, row: collate.Row) -> int:
        batch = collate.to_batch([row])
        inputs = self._policy.inputs(batch.turns, self._device, self._dtype)
        mask = batch.loss_mask.to(self._device)
        with FlopCounterMode(display=False) as forward:
            logprobs = self._policy.logprobs(self._model, inputs, self._cfg.episode, mask=mask).logprobs
        with FlopCounterMode(display=False) as backward:
            logprobs.sum().backward()
        num_forwards = 2 if self._cfg.loss.kl_coef else 1
        return num_forwards * forward.get_total_flops() + backward.get_total_flops()

    def run(self, num_tokens: int) -> Run:
        """Products [tokens, in] x [in, out] of every linear layer, as often as the model has it; counts `flop`."""
        layers = [m for m in self._model.modules() if isinstance(m, torch.nn.Linear)]
        shapes = Counter((layer.in_features, layer.out_features) for layer in layers)
        options: dict[str, Any] = {"dtype": self._dtype, "device": self._device}
        pairs = [
            (torch.randn(num_tokens, size, **options), torch.randn(size, out, **options))
            for size, out in shapes.elements()
        ]
        flop, done = 2 * num_tokens * sum(size * out for size, out in shapes.elements()), 0
        started = time.perf_counter()
        while time.perf_counter() - started < LEAST_SECONDS:
            for left, right in pairs:
                torch.matmul(left, right)
            if self._device.type == "cuda":
                torch.cuda.synchronize()
            done += flop
        return Run(seconds=time.perf_counter() - started, counts={"flop": float(done)})
