"""A config in, what `--dry-run` prints out: memory, tokens, time."""

from rlvla.plan.plan import of_evaluate, of_grpo, of_sft

__all__ = ["of_evaluate", "of_grpo", "of_sft"]
