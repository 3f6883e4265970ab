"""What a run writes, in bytes, so that a disk that is too small is told before anything costly starts.

Policy, and states to go on from; trajectories, logs and reports are small beside them.
"""

from __future__ import annotations

import math
from typing import Any

from rlvla.config import GRPOConfig, SFTConfig
from rlvla.durable.files import visible

_MOMENTS, _FLOAT32 = 8, 4
"""Bytes of a weight: AdamW's two moments, and its float32 master."""


def of_grpo(cfg: GRPOConfig) -> int:
    """Bytes that a GRPO run has yet to write."""
    from safetensors import safe_open

    num_bytes, num_weights = 0, 0
    for file in visible(cfg.model, "*.safetensors"):
        num_bytes += file.stat().st_size
        with safe_open(file, "np") as weights:
            num_weights += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    return _left(cfg, num_bytes, num_weights)


def of_sft(cfg: SFTConfig, model: Any) -> int:
    """Bytes that a cold start of a Hugging Face model has yet to write."""
    return _left(cfg, model.get_memory_footprint(), sum(weight.numel() for weight in model.parameters()))


def _left(cfg: GRPOConfig | SFTConfig, policy: int, num_weights: int) -> int:
    """Without what an earlier start of the run has written; a policy that is there stays until it is replaced."""
    output = cfg.output
    policies = [output / "checkpoint"] if (output / "checkpoint").is_dir() else []
    written = [file for folder in (*policies, output / "state") for file in folder.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in written)
    return max(0, policy * (1 + len(policies)) + _states(cfg, num_weights) - size)


def _states(cfg: GRPOConfig | SFTConfig, num_weights: int) -> int:
    """The trained weights, their moments, and DeepSpeed's float32 masters, where it has any, of all states.

    Of those that lie on the disk at once: those that stay, and the one that is being written. How many weights LoRA has
    nobody knows yet.
    """
    if cfg.learner.lora or not cfg.save_every:
        return 0
    is_half = cfg.learner.dtype == "bfloat16"
    masters = _FLOAT32 if cfg.learner.zero_stage or is_half else 0
    weight = _FLOAT32 // 2 if is_half else _FLOAT32
    return min(cfg.keep_states + 1, cfg.num_steps // cfg.save_every) * num_weights * (weight + _MOMENTS + masters)
