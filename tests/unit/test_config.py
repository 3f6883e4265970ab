import ast
import dataclasses
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlvla import config
from rlvla.config import AnnotateConfig, EvaluateConfig, GRPOConfig, RewardTermConfig, SFTConfig, load, write_resolved
from rlvla.config.file import GONE

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "rlvla/config"
CLASSES = {"annotate": AnnotateConfig, "sft": SFTConfig, "grpo": GRPOConfig, "evaluate": EvaluateConfig}
"""By the first word of a YAML file's name."""
YAML_FILES = sorted((ROOT / "recipes/configs").glob("*.yaml"))


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: path.stem)
def test_every_shipped_yaml_loads_with_the_class_that_its_name_says(path: Path) -> None:
    cls = CLASSES[path.stem.split("_")[0]]
    loaded = load(cls, ["--config", str(path)])
    assert isinstance(loaded, cls)
    assert path.read_text().startswith("#"), "say the command, the hardware and the expected result on top"


def test_there_is_a_yaml_for_every_recipe() -> None:
    assert {path.stem.split("_")[0] for path in YAML_FILES} == CLASSES.keys()


@pytest.mark.parametrize("cls", CLASSES.values(), ids=CLASSES)
def test_defaults_are_valid_and_survive_a_file(cls: type, tmp_path: Path) -> None:
    default = load(cls, [])
    assert default == cls()
    write_resolved(default, tmp_path)
    assert load(cls, ["--config", str(tmp_path / "config.yaml")]) == default
    assert "numpy" in json.loads((tmp_path / "provenance.json").read_text())["packages"]


@pytest.mark.parametrize(
    ("text", "key"),
    [("num_stesp: 3", "num_stesp"), ("learner: {learning_rate: 1}", "learner.learning_rate")],
)
def test_an_unknown_key_is_named(tmp_path: Path, text: str, key: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SystemExit, match=key) as caught:
        load(GRPOConfig, ["--config", path])
    assert path in str(caught.value)


@pytest.mark.parametrize("key", GONE)
def test_a_key_that_went_says_so_unless_it_said_nothing(tmp_path: Path, key: str) -> None:
    """The config that an earlier version's run left holds it at its default."""
    cls = next((c for c in CLASSES.values() if key.split(".")[0] in c.__dataclass_fields__), GRPOConfig)
    default, why = GONE[key]
    for value in (default, "another"):
        given: Any = value
        for part in reversed(key.split(".")):
            given = {part: given}
        path = write(tmp_path, yaml.safe_dump(given))
        if value == default:
            assert load(cls, ["--config", path]) == cls()
        else:
            with pytest.raises(SystemExit, match=re.escape(f"run.yaml: {key}: this key is gone: {why}")):
                load(cls, ["--config", path])


def test_a_wrong_value_names_key_and_value(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"run\.yaml: num_steps: .*valid integer.*got 'many'"):
        load(GRPOConfig, ["--config", write(tmp_path, "num_steps: many")])


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"nowhere\.yaml"):
        load(GRPOConfig, ["--config", "nowhere.yaml"])
    with pytest.raises(SystemExit, match=r"run\.yaml"):
        load(GRPOConfig, ["--config", write(tmp_path, "a: [1")])


def test_1e_6_is_a_number(tmp_path: Path) -> None:
    path = write(tmp_path, "learner: {lr: 1e-6}")
    assert yaml.safe_load(Path(path).read_text()) == {"learner": {"lr": "1e-6"}}  # why this needs a test
    assert load(GRPOConfig, ["--config", path]).learner.lr == 1e-6


def test_flags_override_the_file_which_overrides_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, "num_steps: 7\nlearner: {lr: 1e-3, zero_stage: 2}\nenv: {kwargs: {a: 1}}")
    cfg = load(GRPOConfig, ["--learner.lr", "2e-6", "--config", path, "--loss.clip-high", "0.3"])
    assert (cfg.num_steps, cfg.learner.lr, cfg.learner.zero_stage, cfg.loss.clip_high) == (7, 2e-6, 2, 0.3)
    assert cfg.env.kwargs == {"a": 1}
    assert cfg.group_size == GRPOConfig().group_size
    assert load(EvaluateConfig, ["--episode.mode", "think"]).episode.mode == "think"


def test_reward_terms_come_from_yaml(tmp_path: Path) -> None:
    text = "reward: [{fn: success}, {fn: 'mine.py:f', weight: 0.2, kwargs: {k: 3}, name: g}]"
    cfg = load(GRPOConfig, ["--config", write(tmp_path, text)])
    assert cfg.reward == (
        RewardTermConfig(fn="success"),
        RewardTermConfig(fn="mine.py:f", weight=0.2, kwargs={"k": 3}, name="g"),
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"group_size": 1}, "group_size is 1"),
        ({"episode": config.EpisodeConfig(temperature=0.0)}, r"episode\.temperature"),
        ({"reward": ()}, "reward is empty"),
        (
            {"learner": config.LearnerConfig(zero_stage=3, lora=config.LoraConfig())},
            r"zero_stage 3 with learner\.lora",
        ),
    ],
)
def test_keys_that_contradict_each_other_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GRPOConfig(**fields)


def test_an_adapter_needs_the_model_that_it_was_trained_on(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"run\.yaml: adapter is mine, and model is empty"):
        load(SFTConfig, ["--config", write(tmp_path, "adapter: mine")])
    assert load(SFTConfig, ["--model", "a", "--adapter", "mine"]).adapter == Path("mine")


@pytest.mark.parametrize("value", [{"deadline_s": 0.0}, {"reset_deadline_s": -1.0}, {"max_attempts": 0}])
def test_env_limits_that_nothing_could_keep_are_named(value: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"env\.{next(iter(value))}"):
        config.EnvConfig(**value)


def test_a_process_has_at_least_one_env(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"cluster\.envs_per_process"):
        load(EvaluateConfig, ["--config", write(tmp_path, "{cluster: {envs_per_process: 0}}")])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("think_every: 0", r"episode\.think_every is 0: need at least 1"),
        ("{mode: act, think_every: 2}", r"episode\.think_every is 2, and episode\.mode act has no thought to reuse"),
        ("mode: look", r"episode\.mode[\s\S]*'zoom', 'think' or 'act'"),
        ("use_zoom: false", r"episode\.use_zoom"),
    ],
)
def test_modes_that_do_not_exist_are_named(tmp_path: Path, text: str, message: str) -> None:
    body = text if text.startswith("{") else f"{{{text}}}"
    with pytest.raises(SystemExit, match=message):
        load(EvaluateConfig, ["--config", write(tmp_path, f"episode: {body}")])


def test_every_key_is_documented() -> None:
    trees = [ast.parse(path.read_text()) for path in CONFIG.glob("*.py")]
    classes = [c for tree in trees for c in tree.body if isinstance(c, ast.ClassDef) and c.name.endswith("Config")]
    assert len(classes) > 10
    for cls in classes:
        for field, after in pairwise([*cls.body, None]):
            if isinstance(field, ast.AnnAssign) and "ClassVar" not in ast.unparse(field.annotation):
                is_string = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                assert is_string, f"{cls.name}: no docstring under {ast.unparse(field)}"


def test_every_key_is_read_somewhere() -> None:
    sources = [*ROOT.glob("rlvla/**/*.py"), *ROOT.glob("recipes/*.py"), *ROOT.glob("reward/rlvla_reward/*.py")]
    code = "\n".join(path.read_text() for path in sources if path.parent != CONFIG)
    own = "\n".join(path.read_text() for path in CONFIG.glob("*.py"))
    configs = [c for c in vars(config).values() if isinstance(c, type) and dataclasses.is_dataclass(c)]
    assert len(configs) > 10
    unread = [
        f"{c.__name__}.{field.name}"
        for c in configs
        for field in dataclasses.fields(c)
        if not re.search(rf"\.{field.name}\b", code) and f"self.{field.name}" not in own
    ]
    assert unread == []
