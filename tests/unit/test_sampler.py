"""What callers of the vLLM sampler are told when its engine fails; what it samples is in tests/parity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlvla.config import SamplerConfig
from rlvla.policies.models import auto
from rlvla.policies.thinker.prompt import PolicyProcessor
from rlvla.samplers.vllm.sampler import SamplerError, VLLMSampler, _Load


def test_a_weight_sync_is_answered_when_the_engine_fails_while_requests_run() -> None:
    """They are served to their end before weights are loaded; whoever waits for the load must not wait forever."""

    class Failing(VLLMSampler):
        def __init__(self) -> None:
            self._running: dict[str, Any] = {"0": None}

        def _step(self, engine: Any) -> None:
            raise RuntimeError("no memory")

    load = _Load(weights={}, policy_version=1)
    with pytest.raises(RuntimeError, match="no memory"):
        Failing()._load(None, load)
    with pytest.raises(SamplerError, match="no memory"):
        load.future.result(timeout=0)


def test_a_folder_without_weights_is_refused(tiny_policy: Path, tmp_path: Path) -> None:
    limits: dict[str, Any] = {"max_images": 1, "max_model_len": 64}
    with pytest.raises(FileNotFoundError, match=r"rlvla_policy\.json is missing"):
        VLLMSampler(tmp_path, SamplerConfig(), **limits)
    auto.load_config(tiny_policy).save_pretrained(tmp_path)
    PolicyProcessor.load(tiny_policy).save(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"\.safetensors"):
        VLLMSampler(tmp_path, SamplerConfig(), **limits)
