"""Parallel decoding of action blocks in vLLM, for every model that vLLM serves; vLLM's own classes stay as they are.

An action request's prompt is `... <act> slot_1 .. slot_n`. `<act>` and the slots, the block, see each other and all
that stands before them, which stays causal; the n actions are drawn at once from what the network says at `<act>` and
the first n-1 slots, in one step of the engine that reuses the prefix cache. Autoregressive requests run beside it.
"""

from __future__ import annotations


def register() -> None:
    """The entry point of `vllm.general_plugins`: vLLM calls it in each of its processes; again changes nothing."""
    from vllm import ModelRegistry
    from vllm.transformers_utils.config import _CONFIG_REGISTRY

    from rlvla.policies.models import openvla
    from rlvla.policies.models.openvla.config import OpenVLAConfig
    from rlvla.samplers.vllm.plugin.request import keep_blocks_out_of_prefix_cache

    keep_blocks_out_of_prefix_cache()
    openvla.register()
    _CONFIG_REGISTRY["openvla"] = OpenVLAConfig  # vLLM has its own config of this name, which takes precedence
    for architecture in ("OpenVLAForActionPrediction", "OpenVLAForConditionalGeneration"):
        # By name: vLLM imports it in a process of its own when it looks at what the class can do.
        ModelRegistry.register_model(architecture, "rlvla.samplers.vllm.plugin.openvla:OpenVLA")
