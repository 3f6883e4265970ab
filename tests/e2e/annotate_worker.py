"""Runs of recipes/annotate.py that are killed and started again: `python annotate_worker.py CONFIG NUM_KILLS`.

A process of its own, which forks, so that everything is imported once and not once a kill.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path

import pandas as pd  # noqa: F401 (pyarrow loads it with its first array, which would be in each process)
import pyarrow.parquet as pq  # noqa: F401 (likewise)

from rlvla.annotation import openai_annotator  # noqa: F401 (likewise)
from rlvla.config import AnnotateConfig, load

RECIPE = Path(__file__).resolve().parents[2] / "recipes/annotate.py"


def main(config: Path, num_kills: int) -> list[str]:
    """One run that nobody disturbs, then runs that are killed at random; returns the folders of all of them."""
    cfg = load(AnnotateConfig, ["--config", str(config)])
    started = time.perf_counter()
    assert is_over(fork(cfg))
    took_s, rng, folders = time.perf_counter() - started, random.Random(0), [str(cfg.output)]
    while num_kills > 0:
        output = cfg.output.with_name(f"{cfg.output.name}-{len(folders)}")
        while True:
            child = fork(replace(cfg, output=output))
            if num_kills:
                time.sleep(rng.uniform(0.0, 0.5) * took_s)
                os.kill(child, signal.SIGKILL)
            if is_over(child):
                break
            num_kills -= 1
        folders.append(str(output))
    return folders


def fork(cfg: AnnotateConfig) -> int:
    """Process id of a child that runs the recipe, and exits with 1 where it raises."""
    if child := os.fork():
        return child
    try:
        spec = importlib.util.spec_from_file_location("annotate", RECIPE)
        assert spec is not None
        assert spec.loader is not None
        recipe = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(recipe)
        recipe.main(cfg)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def is_over(child: int) -> bool:
    """Whether a child got to its end; a child that raised ends the test."""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), f"the recipe exited with {code}"
    return code == 0


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
