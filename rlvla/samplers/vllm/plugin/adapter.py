"""LoRA policies in vLLM: the adapter beside the weights, replaced in place between two requests."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, get_args

import torch

from rlvla.policies.models.lora import Adapter, AdapterConfig

_ID = 1
"""vLLM's number of the one adapter there is; it knows it by that alone, so that another may take its place."""


def adapter_arguments(config: AdapterConfig) -> dict[str, Any]:
    """Arguments of an engine that is to serve such adapters.

    Raises:
        ValueError: the rank is larger than vLLM serves.
    """
    from vllm.config.lora import MaxLoRARanks

    served = [rank for rank in sorted(get_args(MaxLoRARanks)) if rank >= config.r]
    if not served:
        raise ValueError(f"learner.lora.rank is {config.r}, more than vLLM serves: set sampler.backend to transformers")
    return {
        "enable_lora": True,
        "max_loras": 1,
        "max_lora_rank": served[0],
        # Nothing else, above all no head, whose logits vLLM would then only give for its own requests.
        "lora_target_modules": config.layers,
    }


def adapter_request() -> Any:
    """What asks for the adapter, beside a request; of the weights alone: nothing."""
    from vllm.lora.request import LoRARequest

    return LoRARequest(lora_name="policy", lora_int_id=_ID, lora_path="sent, hence at no path")


def serve_adapter(runner: Any, adapter: Adapter) -> None:
    """Put an adapter in the place of the one before, in a worker that runs nothing; see `WorkerExtension`.

    Written against vLLM 0.32: lora/worker_manager.py (`WorkerLoRAManager._load_adapter`), lora/model_manager.py.

    Raises:
        ValueError: vLLM has no layer for a weight of the adapter.
    """
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.peft_helper import PEFTHelper

    model, manager = runner.get_model(), runner.lora_manager._adapter_manager
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    lora = LoRAModel.from_lora_tensors(
        _ID,
        {name: torch.tensor(weight) for name, weight in adapter.updates().items()},
        PEFTHelper.from_dict(asdict(adapter.config)),
        device="cpu",
        dtype=runner.lora_config.lora_dtype,
        weights_mapper=mapper and mapper.get_rename_mapper(),
    )
    known = {*manager.modules, *(part for parts in manager.packed_modules.values() for part in parts)}
    if unknown := sorted(lora.loras.keys() - known):  # left out without a word
        raise ValueError(f"vLLM adapts no {unknown[0]} ({len(unknown)} such): set sampler.backend to transformers")
    _write_rows(model, adapter)
    manager.remove_all_adapters()
    manager.add_adapter(lora)
    manager.activate_adapter(lora.id)


def _write_rows(model: Any, adapter: Adapter) -> None:
    """Replace rows of embeddings and head; of each worker those that it holds."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    layers = [module for module in model.modules() if isinstance(module, VocabParallelEmbedding)]
    for name, (ids, rows) in adapter.rows().items():
        layer: Any
        (layer,) = [module for module in layers if isinstance(module, ParallelLMHead) == name.endswith("lm_head")]
        shard = layer.shard_indices
        held = torch.tensor([shard.org_vocab_start_index <= id_ < shard.org_vocab_end_index for id_ in ids])
        places = torch.tensor(ids)[held] - shard.org_vocab_start_index
        layer.weight.data[places.to(layer.weight.device)] = torch.tensor(rows)[held].to(layer.weight)
    pack_head(model)


def pack_head(model: Any) -> None:
    """Renew the packed copy that vLLM multiplies by on the CPU."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead) and hasattr(module, "cpu_linear"):
            module.quant_method.process_weights_after_loading(module)
