"""A sampler that could not keep its word about action blocks does not start, and says why."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import entry_points
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from rlvla.config import SamplerConfig
from rlvla.policies.models.openvla.config import OpenVLAConfig
from rlvla.policies.thinker.policy import save_policy
from rlvla.samplers.vllm.plugin.request import EXTRA_ARG
from rlvla.samplers.vllm.sampler import SamplerError, VLLMSampler
from tests import parallel_policies as tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.save("idefics3", tmp_path_factory.mktemp("start"))


def start(path) -> VLLMSampler:
    return VLLMSampler(path, SamplerConfig(kv_cache_mb=64), max_images=1, max_model_len=256)


def test_a_backend_that_attends_causally_all_the_same_is_noticed(checkpoint, monkeypatch):
    from rlvla.samplers.vllm.plugin import worker

    blocks_alone = worker.blocks_alone
    monkeypatch.setattr(worker, "blocks_alone", lambda *args: replace(blocks_alone(*args), causal=True))
    with pytest.raises(SamplerError, match=r"the last slot changes the logits at <act> by .* does not see it"):
        start(checkpoint)


@pytest.mark.parametrize("where", ["uncached", "cached"])
def test_a_prefix_that_hears_of_the_slots_is_noticed(checkpoint, monkeypatch, where):
    """As if a block began four tokens too early; in one of the two cases only where the prefix cache was of use."""
    from rlvla.samplers.vllm.plugin import worker

    plan, blocks_alone = worker.plan, worker.blocks_alone

    def too_wide(step):
        rows = [replace(row, block=replace(row.block, num_actions=row.block.num_actions + 4)) for row in step.rows]
        return replace(step, rows=rows)

    def plan_wide(runner, num_scheduled):
        step = plan(runner, num_scheduled)
        is_cached = step is not None and sum(num_scheduled.values()) < step.rows[0].seq_len
        if step is not None and is_cached == (where == "cached"):
            ends = [(row.end - row.block.num_actions - 1, row.end) for row in step.rows]
            step.tokens = torch.cat([torch.arange(start - 4, end) for start, end in ends])
        return step

    def blocks_wide(step, common):
        is_wide = len(step.tokens) > sum(row.block.num_actions + 1 for row in step.rows)
        return blocks_alone(too_wide(step) if is_wide else step, common)

    monkeypatch.setattr(worker, "plan", plan_wide)
    monkeypatch.setattr(worker, "blocks_alone", blocks_wide)
    with pytest.raises(SamplerError, match=r"the last slot changes the logits before <act> by .* the prefix sees"):
        start(checkpoint)


def test_a_backend_without_full_attention_is_named_where_it_is_needed(checkpoint, monkeypatch, tmp_path):
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    monkeypatch.setattr(CPUAttentionBackend, "supports_non_causal", classmethod(lambda cls: False))
    with pytest.raises(SamplerError, match=r"CPU_ATTN knows only causal attention; choose .* parallel_causal"):
        start(checkpoint)
    start(tiny.save("idefics3", tmp_path, action_decoding="parallel_causal")).close()  # takes none


def test_blocks_that_come_out_of_the_prefix_cache_are_noticed(checkpoint, monkeypatch):
    from vllm.v1.core import kv_cache_utils

    from rlvla.samplers.vllm import plugin as vllm_plugin
    from rlvla.samplers.vllm import sampler
    from rlvla.samplers.vllm.plugin import worker

    plain = kv_cache_utils.generate_block_hash_extra_keys
    plain = getattr(plain, "__wrapped__", plain)
    monkeypatch.setattr(kv_cache_utils, "generate_block_hash_extra_keys", plain)
    for module in (sampler, worker, vllm_plugin):
        monkeypatch.setattr(module, "register", lambda: None)
    with pytest.raises(SamplerError, match=r"are an action block.*register rlvla\.samplers\.vllm\.plugin"):
        start(checkpoint)


def test_slots_that_have_learned_nothing_are_no_words_to_test_with(tmp_path):
    """A policy as it is before its cold start; in a small vocabulary they are the last words. Also beside numba."""
    import llvmlite.binding  # as robosuite's environments do, in the process of whoever plays and samples in one

    assert llvmlite.binding.ffi.lib is not None
    model, processor = tiny.build("idefics3", tmp_path, chunk_length=32)
    model.get_input_embeddings().weight.data[list(processor.vocabulary.slot_ids)] = 0.0
    save_policy(model, processor, tmp_path)
    start(tmp_path).close()


def test_vllm_finds_the_plugin_by_itself_in_each_of_its_processes():
    from vllm import ModelRegistry
    from vllm.plugins import DEFAULT_PLUGINS_GROUP, load_plugins_by_group
    from vllm.transformers_utils.config import _CONFIG_REGISTRY
    from vllm.v1.core import kv_cache_utils

    (entry,) = (e for e in entry_points(group=DEFAULT_PLUGINS_GROUP) if e.name == "rlvla")
    assert entry.value == "rlvla.samplers.vllm.plugin:register"
    register = load_plugins_by_group(DEFAULT_PLUGINS_GROUP)["rlvla"]
    register()
    hashing = kv_cache_utils.generate_block_hash_extra_keys
    register()
    assert kv_cache_utils.generate_block_hash_extra_keys is hashing
    assert hasattr(hashing, EXTRA_ARG)  # action blocks stay out of the prefix cache
    assert _CONFIG_REGISTRY["openvla"] is OpenVLAConfig
    for architecture in ("OpenVLAForActionPrediction", "OpenVLAForConditionalGeneration"):
        known: Any = ModelRegistry.models[architecture]
        assert (known.module_name, known.class_name) == ("rlvla.samplers.vllm.plugin.openvla", "OpenVLA")
    assert isinstance(AutoConfig.for_model("openvla"), OpenVLAConfig)
