"""What comes from outside is data: checkpoints, data sets, configs, and the words of a model on a page."""

from __future__ import annotations

import ast
import json
import pickle
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch

from rlvla.policies.weights import load_model
from rlvla.report.run_page import Run, run_page
from tests.examples import good_turn, trajectory
from tests.learning import make_checkpoint
from tests.pages import EVIL, needs_browser, title, without_policy

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    path for folder in ("rlvla", "envs", "reward", "recipes", "scripts") for path in (ROOT / folder).rglob("*.py")
]


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return Path.mkdir, (self.folder,)


def unsafe(path: Path) -> list[str]:
    """Calls of a module that could run what they read."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            is_open = name == "torch.load" and keywords.get("weights_only") != "True"
            is_open |= name in ("eval", "exec", "yaml.load", "yaml.unsafe_load", "pickle.load", "pickle.loads")
            is_open |= keywords.get("trust_remote_code", "False") != "False" or keywords.get("allow_pickle") == "True"
            is_open |= keywords.get("shell") == "True"
            found += [f"{path.name}:{node.lineno} {name}"] if is_open else []
    return found


def test_nothing_runs_what_it_reads() -> None:
    assert len(SOURCES) > 100
    assert [call for path in SOURCES for call in unsafe(path)] == []


def test_the_search_finds_what_it_looks_for(tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text("torch.load(f)\nAutoModel.from_pretrained(p, trust_remote_code=True)\nyaml.load(t)\neval(x)")
    assert [call.split()[1] for call in unsafe(file)] == [
        "torch.load",
        "AutoModel.from_pretrained",
        "yaml.load",
        "eval",
    ]


def test_a_pickled_checkpoint_is_not_opened(tmp_path: Path) -> None:
    checkpoint, made = make_checkpoint(tmp_path / "policy"), tmp_path / "made"
    (checkpoint / "model.safetensors").unlink()
    torch.save({"weight": Payload(made)}, checkpoint / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        load_model(checkpoint)
    assert not made.exists()
    pickle.loads(pickle.dumps(Payload(made)))  # it would have worked
    assert made.is_dir()


def test_code_that_comes_with_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    checkpoint, made = make_checkpoint(tmp_path / "policy"), tmp_path / "made"
    config = json.loads((checkpoint / "config.json").read_text())
    own = {"AutoConfig": "own.Config", "AutoModelForImageTextToText": "own.Model"}
    (checkpoint / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": own}))
    (checkpoint / "own.py").write_text(f"import pathlib\npathlib.Path({str(made)!r}).mkdir()\n")
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_model(checkpoint)
    assert not made.exists()


@needs_browser
@pytest.mark.timeout(200)
def test_a_browser_runs_nothing_that_a_model_wrote(tmp_path: Path) -> None:
    run = Run(name=EVIL, summary={}, metrics=[], trajectories=(replace(trajectory([good_turn()]), error=EVIL),))
    escaped = run_page([run], "rlvla report", lambda call: 0)
    raw = unescape(escaped)
    pages = {"escaped": escaped, "no-policy": without_policy(escaped), "raw": raw, "raw-no-policy": without_policy(raw)}
    titles = {name: title(source, tmp_path) for name, source in pages.items()}
    # Escaping holds by itself, so does the page's policy; without both the payload runs.
    assert titles == {
        "escaped": "rlvla report",
        "no-policy": "rlvla report",
        "raw": "rlvla report",
        "raw-no-policy": "owned",
    }
