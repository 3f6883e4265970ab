"""Runs of recipes/annotate.py that are killed and started again: `python annotate_worker.py CONFIG NUM_KILLS`.

A process of its own, which forks, so that everything is imported once and not once a kill.
"""

from __future__ import annotations

import json
import os
import random
import runpy
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq  # noqa: F401 (loaded once, not in each process)

from rlvla.annotation import card, openai_annotator  # noqa: F401 (as pyarrow)
from rlvla.config import AnnotateConfig, load
from tests.killed import fork, is_over

RECIPE = Path(__file__).resolve().parents[2] / "recipes/annotate.py"


def main(config: Path, num_kills: int) -> list[str]:
    """One run that nobody disturbs, then runs that are killed at random; returns the folders of all of them."""
    cfg = load(AnnotateConfig, ["--config", str(config)])
    started = time.perf_counter()
    assert is_over(fork(lambda: annotate(cfg)))
    took_s, rng, folders = time.perf_counter() - started, random.Random(0), [str(cfg.output)]
    while num_kills > 0:
        again = replace(cfg, output=cfg.output.with_name(f"{cfg.output.name}-{len(folders)}"))
        while True:
            child = fork(lambda: annotate(again))  # noqa: B023 (called at once)
            if num_kills:
                time.sleep(rng.uniform(0.0, 0.5) * took_s)
                os.kill(child, signal.SIGKILL)
            if is_over(child):
                break
            num_kills -= 1
        folders.append(str(again.output))
    return folders


def annotate(cfg: AnnotateConfig) -> None:
    """What the recipe does."""
    runpy.run_path(str(RECIPE))["main"](cfg)


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
