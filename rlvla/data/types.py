"""What a data set holds: what the policy should have said and done, and where that comes from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlvla.types import Annotation


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where an annotation comes from, a column of the data set each."""

    annotator: str
    """"openai", or the plugin's "module:function"."""
    model: str = ""
    """As the server names it."""
    prompt_hash: str = ""
    """Of the prompts' wording and of the answer's schema."""
    seed: int = 0
    """Of the accepted answer."""
    attempts: int = 1
    """Answers until one was accepted, itself included."""
    rejected: tuple[str, ...] = ()
    """Names of the checks that earlier answers failed, in order."""
    checks: tuple[str, ...] = ()
    """Names of the checks that the accepted one passed."""
    prompt_tokens: int = 0
    """Over all attempts."""
    completion_tokens: int = 0
    """Over all attempts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """One annotated decision of an expert: what the policy should have said and done."""

    instruction: str
    images: tuple[np.ndarray, ...]
    """One policy view per camera, [H, W, 3] uint8 RGB."""
    proprio: np.ndarray
    """[P] float32, simulator units."""
    texts: tuple[str, ...]
    """One per generation: all but the last end in a tool call, the last ends before `<act>`."""
    crops: tuple[np.ndarray, ...]
    """The tool's images, `crops[i]` after `texts[i]`; one fewer than `texts`."""
    actions: np.ndarray
    """[K, A] float32, simulator units."""
    annotation: Annotation | None = None
    """What `texts` and `crops` were made of; None where nobody has annotated it."""
    provenance: Provenance | None = None
    """Of `annotation`."""
    is_key_frame: bool = False
    """Whether the gripper opens or closes in this decision, or whatever else makes a key frame."""
    key_step: int | None = None
    """Env steps from this decision to the next key frame: 0 where its first action is the key frame's. It may be more
    than the chunk holds. None behind the last key frame, and in data sets of earlier versions."""
    decision_index: int = 0
    """Among all decisions of the episode, those counted that were dropped."""

    def __post_init__(self) -> None:
        """Raises ValueError unless each text but the last has its crop."""
        if len(self.texts) != len(self.crops) + 1:
            raise ValueError(f"{len(self.texts)} texts need {len(self.texts) - 1} crops, got {len(self.crops)}")
