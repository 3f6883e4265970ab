"""One run of the engine, timed: for scripts/benchmark_annotate.py, in its own process or as a process for each run.

python scripts/benchmark_annotate_run.py SOURCE OUTPUT SIDE URL    prints the result as JSON
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmark_annotate_server import MODEL
from rlvla.annotation.run import annotate_all, protocol
from rlvla.annotation.store import Store
from rlvla.annotation.take import Tally
from rlvla.config import AnnotateConfig, load

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "recipes/configs/annotate_qwen3-vl_libero-spatial.yaml"
"""Of the paper's setting: chunks of 8 env steps, a decision at each, 64 requests in flight."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A run from the first file that is opened to the last that is written, without the data card."""

    num_frames: int
    cpu_s: float
    """Of the process, all threads."""
    wall_s: float
    asking_wall_s: float
    """Of the wall time, until all takes were annotated and stored, hence before the data set is assembled."""
    peak_mib: float
    """Most memory that the process has ever held."""


def configure(source: Path, output: Path, *, side: int, url: str, concurrency: int = 0) -> AnnotateConfig:
    """The shipped config with another source and server; concurrency 0: that of the config."""
    cfg = load(AnnotateConfig, ["--config", str(ROOT / CONFIG)])
    concurrency = concurrency or cfg.openai.concurrency
    return replace(
        cfg,
        source=source,
        output=output,
        read=replace(cfg.read, view_size=side),
        openai=replace(cfg.openai, base_url=url, model=MODEL, concurrency=concurrency),
    )


def run(cfg: AnnotateConfig) -> Measured:
    """Annotate as recipes/annotate.py does; raises RuntimeError where an answer was refused and asked for again."""

    def complete(folder: Path, tally: Tally) -> None:
        """No card: it costs the same whatever the number of frames."""

    wall, cpu = time.perf_counter(), time.process_time()
    with Store(cfg.output, protocol(cfg)) as store, ThreadPoolExecutor(max_workers=1) as thread:
        source = asyncio.run(annotate_all(cfg, store, thread))
        asked = time.perf_counter()
        store.finish(robot=source.robot, fps=source.fps, suites=source.suites, complete=complete)
        tally = store.tally
    end = time.perf_counter()
    if tally.num_dropped or tally.rejected:
        raise RuntimeError(f"the stand-in's answers were refused: {dict(tally.rejected)}")
    return Measured(
        num_frames=tally.num_decisions,
        cpu_s=time.process_time() - cpu,
        wall_s=end - wall,
        asking_wall_s=asked - wall,
        peak_mib=peak_mib(),
    )


def peak_mib(status: Path = Path("/proc/self/status")) -> float:
    """Most memory that this process has held, MiB; `ru_maxrss` would count what its parent held at the fork."""
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
    assert found is not None
    return int(found[1]) / 1024


if __name__ == "__main__":
    _source, _output, _side, _url = sys.argv[1:]
    print(json.dumps(asdict(run(configure(Path(_source), Path(_output), side=int(_side), url=_url)))))
