"""What comes from outside is data: checkpoints, data sets, configs, and the words of a model on a page."""

from __future__ import annotations

import ast
import json
import pickle
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from rlvla import html_page, policy
from rlvla.html_page import note
from tests.learning import make_checkpoint

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    path for folder in ("rlvla", "envs", "reward", "recipes", "scripts") for path in (ROOT / folder).rglob("*.py")
]
BROWSER = next((found for name in ("chromium", "google-chrome", "chrome") if (found := shutil.which(name))), None)
EVIL = """<script>document.title='owned'</script><img src=x onerror="document.title='owned'">"""


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
        policy.load_model(checkpoint)
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
        policy.load_model(checkpoint)
    assert not made.exists()


def title(page: Path, profile: Path) -> str:
    """That of a page, once a real browser has run what there is to run."""
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--dump-dom"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=90, check=True)
    found = re.search("<title>(.*?)</title>", done.stdout)
    assert found is not None, done.stderr[-2000:]
    return found[1]


@pytest.mark.skipif(BROWSER is None, reason="needs a browser: chromium or chrome")
@pytest.mark.timeout(200)
def test_a_browser_runs_nothing_that_a_model_wrote(tmp_path: Path) -> None:
    escaped = html_page.page("rlvla report", {EVIL: note(EVIL, EVIL)})
    files = {"escaped": escaped, "no-policy": re.sub("<meta http-equiv=.*?>", "", escaped, flags=re.DOTALL)}
    raw = html_page.page("rlvla report", {"Episodes": EVIL})
    files |= {"raw": raw, "raw-no-policy": re.sub("<meta http-equiv=.*?>", "", raw, flags=re.DOTALL)}
    for name, source in files.items():
        (tmp_path / f"{name}.html").write_text(source)
    titles = {name: title(tmp_path / f"{name}.html", tmp_path / "profile") for name in files}
    # Escaping holds by itself, so does the page's policy; without both the payload runs.
    assert titles == {
        "escaped": "rlvla report",
        "no-policy": "rlvla report",
        "raw": "rlvla report",
        "raw-no-policy": "owned",
    }
