"""What a turn may hold beside its action, by `episode.mode`: one table for who decides and who scores."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Mode:
    """One value of `episode.mode`."""

    thinks: bool = True
    """Else the turn starts behind an injected `<act>`."""
    stop: str = "</tool>"
    """The mark that ends what is asked for, beside the action's; behind a `</think>` an `<act>` is injected."""
    banned: tuple[str, ...] = ()
    """Marks that cannot be sampled."""

    @property
    def acts_on_thought(self) -> bool:
        """Whether an action follows a thought at once."""
        return self.stop == "</think>"


MODES = {
    "zoom": Mode(),
    "think": Mode(stop="</think>", banned=("<tool>",)),
    "act": Mode(thinks=False),
}
"""Value of `episode.mode` -> what it means."""
