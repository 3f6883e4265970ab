"""How often a run may go on after a skipped update: a reward, the loss or the gradient was not finite."""

from __future__ import annotations

from pathlib import Path


class SkipCount:
    """Steps in a row in which an update was skipped.

    Args:
        allowed: `learner.max_skipped_steps`.
    """

    def __init__(self, allowed: int) -> None:
        self._allowed = allowed
        self._in_a_row = 0

    def forget(self) -> None:
        """A step skipped none."""
        self._in_a_row = 0

    def add(self, step: int, file: Path) -> None:
        """A step skipped some.

        Args:
            step: of the run.
            file: where what it was to learn from is kept.

        Raises:
            FloatingPointError: it is one in a row too many; the message names the file and the key.
        """
        self._in_a_row += 1
        if self._in_a_row > self._allowed:
            raise FloatingPointError(
                f"reward, loss or gradient was not finite in {self._in_a_row} steps in a row, the last of them step "
                f"{step}, and learner.max_skipped_steps is {self._allowed}: look at what it was to learn from in "
                f"{file}; mend the reward, lower learner.lr, or raise the key, then start again, from the last state"
            )
