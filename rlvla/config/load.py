"""Defaults < YAML (`--config x.yaml`) < dotted flags (`--learner.lr 2e-6`); an unknown key is named."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro
from pydantic import TypeAdapter, ValidationError

from rlvla.config.file import ConfigError, explain, read_yaml, without_gone

C = TypeVar("C")


def load(cls: type[C], argv: Sequence[str] | None = None) -> C:
    """Read a config: defaults < `--config` YAML < dotted flags.

    Args:
        cls: one of the config dataclasses above.
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
    """Read and check one YAML file; raises ConfigError, which names the file, the key and the value."""
    try:
        return TypeAdapter(cls).validate_python(without_gone(read_yaml(path)))
    except ValidationError as error:
        raise ConfigError(explain(error, cls, str(path))) from None
