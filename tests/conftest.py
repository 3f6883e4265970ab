"""Environment, hypothesis profile and skip rules of every test."""

from __future__ import annotations

import functools
import importlib.util
import os
from pathlib import Path

import pytest
from hypothesis import settings

# Before any heavy import, and inherited by subprocesses: no network, no telemetry, no window, no thread storms.
for name, value in {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "MPLBACKEND": "Agg",
    "LP_NUM_THREADS": "1",  # Mesa's software renderer starts a thread per core in every env otherwise
}.items():
    os.environ.setdefault(name, value)

# The same examples in every run, so that a red build is reproducible; no deadline on shared machines.
settings.register_profile("rlvla", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("rlvla")


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What a test makes in the cache, or a process that it starts, goes with the test."""
    os.environ["RLVLA_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a tiny random policy: Idefics3, 16 action bins, chunks [2, 4]."""
    import numpy as np

    from rlvla.config import TinyModelConfig
    from rlvla.policies.models.tiny_vlm import build_tiny
    from rlvla.policies.thinker.actions import QuantileCodec
    from rlvla.policies.thinker.policy import save_policy
    from rlvla.policies.thinker.prompt import PolicyProcessor
    from rlvla.policies.thinker.settings import Settings

    corpus = ['<think>look 100 200</think><tool>{"name": "zoom_in", "arguments": {"image": 0, "bbox": [0, 5, 10, 20]}}']
    model, hf_processor = build_tiny(TinyModelConfig(hidden_size=64, num_layers=2, vision_layers=1), corpus, 16, seed=0)
    actions = np.random.default_rng(0).uniform(-1, 1, (100, 4))
    codec = QuantileCodec.fit(actions, num_bins=16, chunk_length=2)
    path = tmp_path_factory.mktemp("policy") / "checkpoint"
    save_policy(model, PolicyProcessor.create(hf_processor, Settings(codec=codec)), path)
    return path


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That of `tests.learning`, to be read alone."""
    from tests.learning import make_checkpoint

    return make_checkpoint(tmp_path_factory.mktemp("policy") / "checkpoint")


@pytest.fixture(scope="session")
def policies(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each family for `tests.learning`, to be read alone."""
    from tests.wordless import WORDLESS, make_checkpoint

    folder = tmp_path_factory.mktemp("policies")
    return {"thinker": checkpoint, **{family: make_checkpoint(folder / family, family) for family in WORDLESS}}


@pytest.fixture(scope="session")
def openvla(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published OpenVLA folder of three shards, to be read alone."""
    from tests import openvla_checkpoints as published

    path = tmp_path_factory.mktemp("openvla")
    published.write_published(path, num_shards=3, corpus=[published.PROMPT, *published.TEXTS] * 4)
    return path


@pytest.fixture(scope="session")
def libero_assets() -> Path:
    """The folder of LIBERO's assets; skips where there is none."""
    if reason := lack_of_libero():
        pytest.skip(reason)
    from rlvla_envs.libero.assets import find_assets

    return find_assets()


@functools.cache
def lack_of_libero() -> str:
    """What the tests that are marked so lack on this machine, or an empty string. Damaged assets raise instead."""
    from rlvla_envs.libero.assets import find_assets

    if importlib.util.find_spec("libero") is None:
        return "needs hf-libero: make setup"
    try:
        find_assets()
    except FileNotFoundError as error:
        return str(error)
    return ""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test of LIBERO with the reason why it cannot run here."""
    if item.get_closest_marker("libero") and (reason := lack_of_libero()):
        pytest.skip(reason)
