"""Rewards: task success, format, and the weighted sum of these and of your own terms."""

from rlvla_reward.combine import BUILTIN, Reward, RewardError, begin, build
from rlvla_reward.format import format_score
from rlvla_reward.success import success

__all__ = ["BUILTIN", "Reward", "RewardError", "begin", "build", "format_score", "success"]
