"""Defaults < YAML (`--config x.yaml`) < dotted flags (`--learner.lr 2e-6`), and what is wrong with them in words."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro
import yaml
from pydantic import TypeAdapter, ValidationError

C = TypeVar("C")

MAX_BYTES = 100_000
"""A larger file is none of a config, but for example a checkpoint named by mistake."""
_DESCRIBED = "the JSON file in plan.architecture says it of a policy that is not here"
_ENV_TELLS = "the env tells it, and its class where the simulator is not here"
GONE: dict[str, tuple[Any, str]] = {
    "plan.gpu_memory_gb": (0.0, "name the GPU in plan.gpu"),
    "plan.env_steps_per_s": (0.0, "the time of simulators is no longer estimated"),
    "plan.chunk_length": (8, _DESCRIBED),
    "plan.action_decoding": ("autoregressive", _DESCRIBED),
    "plan.num_images": (1, _ENV_TELLS),
    "plan.view_size": (256, _ENV_TELLS),
    "plan.action_size": (7, _ENV_TELLS),
    "plan.max_env_steps": (520, _ENV_TELLS),
    "sampler.block_size": (32, "blocks of the KV cache are of 32 tokens"),
    "carry_thought": (False, "prompts no longer show the thought before; measured, it gained nothing: leave it out"),
}
"""Key that went -> its default, which says nothing, and why it went or what to do instead."""
_MAX_SHOWN = 80
"""Characters of a wrong value in a message."""


class ConfigError(ValueError):
    """A config that cannot be read; the message names the file, the key and the value."""


def load(cls: type[C], argv: Sequence[str] | None = None) -> C:
    """Read a config: defaults < `--config` YAML < dotted flags.

    Args:
        cls: one of the dataclasses of `rlvla.config`.
        argv: command line without the program's name; None: `sys.argv[1:]`.

    Raises:
        SystemExit: the YAML or a flag is wrong; the message names the file, the key and the value.
    """
    before = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    before.add_argument("--config", type=Path, action="append", default=[])
    known, rest = before.parse_known_args(argv)
    if len(known.config) > 1:
        raise SystemExit(f"--config is given {len(known.config)} times: name one file, and the rest as flags")
    try:
        given: dict[str, Any] = {"default": from_yaml(cls, known.config[0])} if known.config else {}
    except ConfigError as error:
        raise SystemExit(str(error)) from None
    config = tyro.cli(cls, args=rest, **given)
    try:
        return TypeAdapter(cls).validate_python(config)
    except ValidationError as error:
        raise SystemExit(explain(error, cls, "command line")) from None


def from_yaml(cls: type[C], path: Path) -> C:
    """Read and check one YAML file; raises ConfigError, which names the file, and the line or the key and its value."""
    try:
        if path.is_file() and path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: is larger than {MAX_BYTES} bytes: not a config")
        values = parse_yaml(path.read_bytes().decode(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    try:
        return TypeAdapter(cls).validate_python(without_gone(values))
    except ValidationError as error:
        raise ConfigError(explain(error, cls, str(path))) from None


class _Loader(yaml.SafeLoader):
    """Strict: PyYAML itself keeps the last of two equal keys, and lets a few lines of aliases grow without bound."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.constructor.ConstructorError(
                problem="an alias (*name): write its value out", problem_mark=self.peek_event().start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value!r} is there twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, name: str) -> dict[str, Any]:
    """The keys and values in the text of a file, none of an empty one; raises ConfigError, naming file and line."""
    try:
        values = _Loader(text).get_single_data()
    except RecursionError:
        raise ConfigError(f"{name}: nested too deeply") from None
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError) as error:
        # PyYAML lets through what Python says of a date in month 13, of `!!int x` or of an integer of 5000 digits.
        raise ConfigError(f"{name}: no YAML that can be read ({error})") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{name}: is a {type(values).__name__}, need keys with values, as in `num_steps: 100`")
    if wrong := [key for key in values if not isinstance(key, str)]:
        raise ConfigError(f"{name}: {wrong[0]!r} is no key")
    return values


def without_gone(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """A config's values, nested or flat, without keys that went and hold their default.

    The config that a run of an earlier version left has all of them.
    """
    kept: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{above}{key}"
        if name not in GONE or value not in (None, GONE[name][0]):
            kept[key] = without_gone(value, f"{name}.") if isinstance(value, dict) else value
    return kept


def explain(error: ValidationError, cls: type, where: str) -> str:
    """All that is wrong with a config, a line each.

    Args:
        error: pydantic's.
        cls: config class.
        where: file, or "command line".
    """
    lines = []
    for problem in error.errors():
        path = [str(part) for part in problem["loc"]]
        key = ".".join(path)
        if key in GONE:
            lines.append(f"{where}: {key}: this key is gone: {GONE[key][1]}")
        elif problem["type"] == "unexpected_keyword_argument":
            names = _keys(cls, path[:-1])
            near = difflib.get_close_matches(path[-1], names, 1)
            reason = f"there is no such key; did you mean {near[0]}?" if near else "there is no such key"
            lines.append(f"{where}: {key}: {reason}")
        elif problem["type"] == "value_error":  # one of our own, which names its keys
            lines.append(f"{where}: {problem['msg'].removeprefix('Value error, ')}")
        else:
            lines.append(f"{where}: {key}: {problem['msg']}, got {_short(problem['input'])}")
    return "\n".join(dict.fromkeys(lines))


def _keys(cls: Any, path: list[str]) -> list[str]:
    """Names of the keys below `path`; none where nothing is known of them."""
    for part in (part for part in path if not part.isdigit()):  # no places in a list
        cls = _element(get_type_hints(cls).get(part)) if dataclasses.is_dataclass(cls) else cls
    return [field.name for field in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []


def _element(hint: Any) -> Any:
    """The dataclass in `X`, `X | None` or `tuple[X, ...]`."""
    if get_origin(hint) in (Union, UnionType, tuple):
        return next((part for part in get_args(hint) if dataclasses.is_dataclass(part)), None)
    return hint


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
