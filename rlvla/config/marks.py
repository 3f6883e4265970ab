"""How a config class is made, and what of it may differ between two starts: a mark counts for all below its field."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar, dataclass_transform, get_type_hints

from pydantic import ConfigDict

T = TypeVar("T")
MAY_CHANGE, MOVES_NO_SCORE = "may change", "moves no score"
MayChange = Annotated[T, MAY_CHANGE]
"""A run that goes on from its states may have another value: how far it goes, where and how fast it computes, what is
logged, and what a fault asks to be changed."""
MovesNoScore = Annotated[T, MOVES_NO_SCORE]
"""An evaluation is the same with another value: where it goes, who computes, and limits whose trials are played again.
How many compute at once is not among them: samplers compute together what comes together, in another order."""
Loose = Annotated[T, MAY_CHANGE, MOVES_NO_SCORE]
"""Both."""


@dataclass_transform(frozen_default=True, kw_only_default=True)
def strict(cls: type[T]) -> type[T]:
    """Make a config class: frozen, keywords only, and no key that it does not have.

    Flags come in past pydantic, as instances, and it has to look into those as well.
    """
    forbid: Any = ConfigDict(extra="forbid", allow_inf_nan=False, revalidate_instances="always")
    cls.__pydantic_config__ = forbid  # pyright: ignore[reportAttributeAccessIssue]
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


def marked(cls: Any, mark: str, above: str = "") -> Iterator[str]:
    """Dotted keys of a config class whose fields carry a mark."""
    for name, hint in get_type_hints(cls, include_extras=True).items():
        if mark in getattr(hint, "__metadata__", ()):
            yield f"{above}{name}"
        elif dataclasses.is_dataclass(hint):
            yield from marked(hint, mark, f"{above}{name}.")
