"""Our loss against TRL's own function on the same numbers."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from rlvla.config import LossConfig
from rlvla.learner import loss

NAMES = {"token": "bnpo", "trajectory": "grpo", "constant": "dr_grpo"}
"""Our averages and TRL's loss types; TRL knows no turns, so each row is a trajectory."""


def trl_loss(numbers: dict[str, torch.Tensor], mask: torch.Tensor, cfg: LossConfig) -> torch.Tensor:
    trl = pytest.importorskip("trl.trainer.grpo_trainer")
    # What `_compute_loss` reads of its trainer: one process, no accumulation, the forward pass replaced by its result.
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (numbers["logprobs"], numbers["entropy"], None),
        accelerator=SimpleNamespace(num_processes=1, reduce=lambda t, **_: t, gather=lambda t: t),
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None),
        model=SimpleNamespace(training=False),
        loss_type=NAMES[cfg.average],
        beta=cfg.kl_coef,
        epsilon_low=cfg.clip_low,
        epsilon_high=cfg.clip_high,
        max_completion_length=cfg.constant_length,
        importance_sampling_level="token",
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=True,
        vllm_importance_sampling_correction=True,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    trainer.accelerator.gather_for_metrics = trainer.accelerator.gather
    empty = torch.zeros(len(mask), 0, dtype=torch.long)
    weight = (numbers["old"] - numbers["sampler"]).exp().clamp(max=cfg.importance_cap)
    inputs = {
        "prompt_ids": empty,
        "prompt_mask": empty,
        "completion_ids": mask.long(),
        "completion_mask": mask.long(),
        "advantages": numbers["advantages"],
        "old_per_token_logps": numbers["old"],
        "ref_per_token_logps": numbers["ref"],
        "importance_sampling_ratio": weight,
        "sampling_per_token_logps": numbers["sampler"],
    }
    return trl.GRPOTrainer._compute_loss(trainer, None, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("average", NAMES)
def test_loss_and_gradient_equal_trls(average):
    generator = torch.Generator().manual_seed(0)
    numbers = {
        name: torch.randn(5, 8, generator=generator, dtype=torch.float64) * 0.4 - 2
        for name in ("logprobs", "old", "sampler", "ref", "entropy")
    }
    numbers["logprobs"].requires_grad_()
    numbers["advantages"] = torch.randn(5, generator=generator, dtype=torch.float64)
    num_tokens = torch.tensor([8, 3, 5, 1, 6])
    mask = torch.arange(8) < num_tokens[:, None]
    cfg = LossConfig(clip_low=0.1, clip_high=0.3, kl_coef=0.05, average=average, constant_length=9, importance_cap=1.5)
    token_loss, _ = loss.grpo_token_loss(
        numbers["logprobs"],
        old_logprobs=numbers["old"],
        sampler_logprobs=numbers["sampler"],
        ref_logprobs=numbers["ref"],
        entropy=None,
        advantages=numbers["advantages"],
        mask=mask,
        cfg=cfg,
    )
    weights = loss.token_weights(num_tokens, torch.arange(5), average, cfg.constant_length)
    ours, theirs = (token_loss * weights[:, None]).sum(), trl_loss(numbers, mask, cfg)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-10)
    our_gradient, their_gradient = (torch.autograd.grad(value, numbers["logprobs"])[0] for value in (ours, theirs))
    torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-10, atol=1e-12)
