"""How every config class is made: frozen, keywords only, and no key that it does not have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar, dataclass_transform

from pydantic import ConfigDict

C = TypeVar("C")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def strict(cls: type[C]) -> type[C]:
    """Make a config class; flags come in past pydantic, as instances, and it has to look into those as well."""
    forbid: Any = ConfigDict(extra="forbid", allow_inf_nan=False, revalidate_instances="always")
    cls.__pydantic_config__ = forbid  # pyright: ignore[reportAttributeAccessIssue]
    return dataclass(frozen=True, kw_only=True)(cls)
