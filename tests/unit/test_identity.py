"""What a run was started from: contents change with what lies at a path, and with nothing else."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from rlvla.config import AnnotateConfig, EnvConfig, EvaluateConfig, GRPOConfig, RewardTermConfig, SFTConfig
from rlvla.durable.checkpoints import MANIFEST, appear_sealed
from rlvla.durable.files import CONTENT, differences
from rlvla.durable.provenance import to_dict
from rlvla.run import identity
from tests.e2e.run import environment
from tests.examples import write_dataset
from tests.unit.store_worker import answer, demonstration

CONFIGS = (AnnotateConfig, SFTConfig, GRPOConfig, EvaluateConfig)


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


@pytest.mark.parametrize("is_sealed", [True, False])
def test_another_policy_in_the_same_folder_is_another_one(tmp_path: Path, is_sealed: bool) -> None:
    """Sealed as our recipes leave them, or as a hub's files come."""
    folder = tmp_path / "checkpoint"

    def policy(weights: bytes, settings: str = "{}") -> str:
        with appear_sealed(folder) as aside:
            (aside / "model-1.safetensors").write_bytes(weights)
            (aside / "config.json").write_text(settings)
        if not is_sealed:
            (folder / MANIFEST).unlink()
        return identity.of_policy(folder)

    one, another, same = policy(b"1"), policy(b"2"), policy(b"1")
    assert one == same != another
    assert policy(b"1", '{"num_bins": 8}') != one
    write(folder / "config.json", "{}")  # edited in place: a manifest still tells of what was
    assert identity.of_policy(folder) == one
    write(folder / "tokenizer.model", "words")
    assert identity.of_policy(folder) != one


def test_a_policy_is_the_same_wherever_it_lies(tmp_path: Path) -> None:
    write(tmp_path / "a/model.safetensors", "weights")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    write(tmp_path / "b/.cache/downloaded", "today")
    write(tmp_path / "b/README.md", "a card")
    assert identity.of_policy(tmp_path / "a") == identity.of_policy(tmp_path / "b") != ""
    assert identity.of_policy(tmp_path / "nowhere") == identity.of_policy("nobody/has-this") == ""


def test_a_model_of_the_hub_is_what_was_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    def download(commit: str, weights: str) -> str:
        folder = tmp_path / f"models--lab--vla/snapshots/{commit}"
        write(folder / "config.json", "{}")
        write(folder / "model.safetensors", weights)
        write(tmp_path / "models--lab--vla/refs/main", commit)
        return identity.of_policy("lab/vla")

    assert identity.of_policy("lab/vla") == ""
    first = download("a" * 40, "weights")
    assert first == identity.of_policy(tmp_path / f"models--lab--vla/snapshots/{'a' * 40}") != ""
    assert download("b" * 40, "others") != first


def test_rows_make_a_data_set_and_its_card_does_not(tmp_path: Path) -> None:
    def made(folder: Path, episode: int) -> str:
        rows = [demonstration(episode, 0, answer(episode, 0, 1))]
        write_dataset(folder, [rows], robot="test", fps=2.0)
        return identity.of_dataset(folder)

    one, same, another = made(tmp_path / "a", 1), made(tmp_path / "b", 1), made(tmp_path / "c", 2)
    assert one == same != another
    write(tmp_path / "a/README.md", "a card")
    assert identity.of_dataset(tmp_path / "a") == one
    file = tmp_path / "a/meta/info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"suites": ["another"]}))
    assert identity.of_dataset(tmp_path / "a") != one


def test_a_plugin_is_its_file_and_what_that_imports_from_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "weights.py", "BONUS = 1.0\n")
    write(tmp_path / "unrelated.py", "x = 1\n")
    file = write(
        tmp_path / "mine.py", "import json\n\n\ndef score(trajectory):\n    import weights\n    return weights.BONUS\n"
    )
    spec = f"{file}:score"
    before = identity.of_plugin(spec)
    write(tmp_path / "unrelated.py", "x = 2\n")
    assert identity.of_plugin(spec) == before
    write(tmp_path / "weights.py", "BONUS = 2.0\n")
    after = identity.of_plugin(spec)
    write(file, file.read_text() + "# a comment counts, too\n")
    assert len({before, after, identity.of_plugin(spec)}) == 3
    assert identity.of_plugin(f"{tmp_path}/gone.py:score") == identity.of_plugin("sys:exit") == ""


def test_an_installed_plugin_is_what_it_takes_of_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the function is only handed on by the module that the config names."""
    monkeypatch.syspath_prepend(tmp_path)
    write(tmp_path / "my_lab/__init__.py", "from my_lab.tools.look import look\n")
    write(tmp_path / "my_lab/tools/__init__.py", "")
    write(
        tmp_path / "my_lab/tools/look.py",
        "from .. import sharpness\nfrom ..sharpness import LEVEL\n\ndef look(): ...\n",
    )
    write(tmp_path / "my_lab/sharpness.py", "LEVEL = 1\n")
    write(tmp_path / "my_lab/other.py", "LEVEL = 1\n")
    before = identity.of_plugin("my_lab:look")
    write(tmp_path / "my_lab/other.py", "LEVEL = 2\n")
    assert identity.of_plugin("my_lab:look") == before
    write(tmp_path / "my_lab/sharpness.py", "LEVEL = 2\n")
    assert identity.of_plugin("my_lab:look") != before
    for name in [name for name in sys.modules if name.split(".")[0] == "my_lab"]:
        del sys.modules[name]


def test_a_plugin_is_the_same_in_another_checkout_and_process(tmp_path: Path) -> None:
    """Where two of its files have one name, in any order; of a `functools.partial` its own file counts alone."""
    for place in ("one", "two"):
        for part in ("a", "b"):
            write(tmp_path / place / f"lab/{part}/core/__init__.py", f"LEVEL = {part!r}\n")
            write(tmp_path / place / f"lab/{part}/__init__.py", "")
        write(tmp_path / place / "lab/__init__.py", "")
        write(
            tmp_path / place / "lab/tool.py",
            "import functools\nfrom lab.a import core as a\nfrom lab.b import core as b\n\n"
            "def look(level): ...\n\nlook_closely = functools.partial(look, a)\n",
        )
    code = "from rlvla.run.identity import of_plugin; print(of_plugin('lab.tool:look_closely'))"

    def found(place: str, seed: str) -> str:
        env = {**environment(), "PYTHONHASHSEED": seed}
        env["PYTHONPATH"] = f"{tmp_path / place}{os.pathsep}{env['PYTHONPATH']}"
        return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout

    before = found("one", "1")
    assert before == found("two", "5")
    write(tmp_path / "two/lab/b/core/__init__.py", "LEVEL = 3\n")
    assert before != found("two", "1")


def test_an_env_is_the_file_of_its_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(__file__).with_name("leaky_env.py").read_text()
    file = write(tmp_path / "edited_env.py", source.replace("lab/", "edited/").replace("leaky_env:", "edited_env:"))
    monkeypatch.syspath_prepend(tmp_path)
    cfg = EnvConfig(id="edited/Leaky-v0", imports=("edited_env",))
    before = identity.of_env(cfg)
    assert before == identity.of_env(replace(cfg, deadline_s=5.0))
    write(file, file.read_text() + "# another friction\n")
    assert identity.of_env(cfg) != before


def test_a_file_that_an_argument_names_counts_and_a_folder_does_not(tmp_path: Path) -> None:
    table, folder = write(tmp_path / "table.json", "[1]"), tmp_path / "log"
    rubric = "A sentence ends with a full stop. " * 20  # longer than any file's name
    kwargs = {"table": str(table), "log": str(folder), "word": "success", "rubric": rubric}
    term = RewardTermConfig(fn="success", kwargs=kwargs)
    cfg = GRPOConfig(reward=(term,))
    folder.mkdir()
    before = identity.of(cfg, ("env", "episode"))
    assert [key for key in before if key.startswith("content of")] == ["content of reward.0.kwargs.table"]
    write(folder / "line", "written")
    assert identity.of(cfg, ("env", "episode")) == before
    write(table, "[2]")
    assert identity.of(cfg, ("env", "episode")) != before


def leaves(cls: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, type) of a config's fields."""
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        key, hint = f"{above}{field.name}", hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from leaves(hint, f"{key}.")
        else:
            yield key, hint


@pytest.mark.parametrize("cls", CONFIGS)
def test_every_key_that_names_a_path_has_a_content_or_is_known_to_need_none(cls: Any) -> None:
    """A new one has to be decided on."""
    needs_none = {"output", "plan.architecture"}  # what is written; what only a plan assumes
    patterns = [pattern for pattern, _ in identity._KINDS]
    paths = {key for key, hint in leaves(cls) if "Path" in str(hint)} - needs_none
    assert paths == {key for key in paths if any(identity.re.fullmatch(pattern, key) for pattern in patterns)}


def test_lists_of_keys_are_flat_too() -> None:
    flat = identity.flatten(to_dict(GRPOConfig()))
    assert (flat["reward.1.fn"], flat["learner.betas"]) == ("format", [0.9, 0.95])
    assert identity.flatten(flat) == flat
    assert identity.is_below("content of reward.1.fn", ("reward",))
    assert not identity.is_below("rewarded", ("reward",))


def test_code_that_comes_with_rlvla_is_compared_within_one_version_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    key, spec = f"{CONTENT}episode.tools.zoom_in", "rlvla.policies.thinker.tools:zoom_in"
    now = {key: identity.of_plugin(spec)}
    assert differences({key: "0123456789abcdef"}, now) == ""  # of a version that told the digest alone
    edited = {key: now[key].replace(now[key][:4], "0000")}
    assert key in differences(edited, now)
    monkeypatch.setattr(identity, "__version__", "99")
    assert differences(edited, {key: identity.of_plugin(spec)}) == ""


def test_a_run_that_names_our_modules_as_they_were_is_the_same_one() -> None:
    former = {"expert": "rlvla_envs.tabletop_expert:play", "annotator": "rlvla_envs.tabletop_annotate:annotate"}
    present = {"expert": "rlvla_envs.tabletop.expert:play", "annotator": "rlvla_envs.tabletop.annotate:annotate"}
    before, now = (identity.of(AnnotateConfig(**names)) for names in (former, present))
    assert before != now
    assert differences(before, now) == ""
    assert differences(before, {**now, "expert": "mine:play"}).startswith(
        "expert was 'rlvla_envs.tabletop.expert:play'"
    )
    tool = identity.of(GRPOConfig(), ("env",))
    assert differences({**tool, "episode.tools.zoom_in": "rlvla.tools:zoom_in"}, tool) == ""
