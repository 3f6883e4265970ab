"""scripts/ablation.py: which recipes it runs behind a demo, with flags that they understand, and its table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import ablation
import demo
from rlvla.config import EvaluateConfig, GRPOConfig, SFTConfig, load

RATE = {"rate": 0.5, "low": 0.25, "high": 0.75, "num_trials": 2}
CLASSES: dict[str, Any] = {"sft": SFTConfig, "grpo": GRPOConfig, "evaluate": EvaluateConfig}


def test_what_a_demo_has_not_measured_is_run_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[tuple[str, Any]] = []

    def recipe(name: str, configs: Path, *flags: str) -> None:
        cfg = load(CLASSES[name], ["--config", str(configs / f"{name}_tiny_tabletop.yaml"), *flags])
        ran.append((name, cfg))
        cfg.output.mkdir(parents=True)
        (cfg.output / "summary.json").write_text(json.dumps({**RATE, "rate": 0.0}))

    monkeypatch.setattr(ablation, "recipe", recipe)
    monkeypatch.setattr(demo, "recipe", recipe)
    with pytest.raises(SystemExit, match=r"holds no demo that has run: python scripts/demo\.py"):
        ablation.main(demo=tmp_path)
    (tmp_path / "summary.json").write_text(json.dumps({"sft": RATE, "grpo": RATE, "grpo_no_zoom": RATE, "seed": 3}))
    for _ in range(2):
        ablation.main(demo=tmp_path)
    assert [(name, cfg.seed) for name, cfg in ran] == [("sft", 3), ("grpo", 3), ("evaluate", 3)]
    (_, sft), (_, grpo), (_, evaluation) = ran
    assert (sft.dataset, sft.num_steps, grpo.max_futile_steps) == (tmp_path / "demos", 0, 0)
    assert (grpo.model, evaluation.model) == (sft.output / "checkpoint", grpo.output / "checkpoint")
    rows = (tmp_path / "ablation.md").read_text().splitlines()
    assert rows[0] == "| | seed 3 |"
    assert rows[2:4] == [
        "| SFT only | 50.0% [25.0%, 75.0%] |",
        "| GRPO without cold start | 0.0% [25.0%, 75.0%] |",
    ]
    assert capsys.readouterr().out.splitlines() == rows * 2
