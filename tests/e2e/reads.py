"""A rank of a cold start that notes which rows it prepares: python reads.py FOLDER SCRIPT ... writes FOLDER/RANK."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rlvla.learner.sft import SFTTrainer


def main(folder: str, script: str, *arguments: str) -> None:
    """Run the script in this process."""
    file, each_row = Path(folder) / os.environ["RANK"], SFTTrainer._each_row

    def noted(trainer: SFTTrainer, indices: np.ndarray) -> Iterator[Any]:
        for index, row in zip(indices, each_row(trainer, indices), strict=True):
            with file.open("a") as log:
                log.write(f"{index}\n")
            yield row

    SFTTrainer._each_row = noted  # type: ignore[method-assign]
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
