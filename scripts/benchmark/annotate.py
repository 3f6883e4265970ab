"""What the chain-of-thought engine costs besides the model, and whether it keeps a server busy.

    python scripts/benchmark/annotate.py --output annotate_benchmark.json --chart annotate_concurrency.svg

Full runs of recipes/annotate.py's engine on recorded episodes, of which each frame is annotated, against a stand-in for
the model's server in a process of its own (`annotation_server.py`), with the keys of the shipped config
recipes/configs/annotate_qwen3-vl_libero-spatial.yaml:

- overhead: CPU and wall time of the annotating process a frame, medians over `--repeats` runs after one warm-up, where
  the server answers at once. Data card and contact sheet, which cost the same whatever the number of frames, are left
  out. Wall time includes what the server and others on the machine take;
- curve: frames/s by requests in flight, where the server takes `--latency` for an answer and makes at most `--most` at
  a time. Ideal is min(requests in flight, most) / latency. Ends before the data set is assembled, which asks nobody.

That memory does not grow with the data is tests/unit/test_annotation_store.py's.
"""

from __future__ import annotations

import asyncio
import json
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from annotation_server import MODEL, serving
from measuring import ROOT, Run, measure, table, write_result
from rlvla.annotation.run import annotate_all, protocol
from rlvla.annotation.store import Store
from rlvla.config import AnnotateConfig, load
from rlvla.pictures import to_png
from rlvla.report.svg_chart import COLOURS, INK, LEGEND, new_axes, to_svg

CONFIG = ROOT / "recipes/configs/annotate_qwen3-vl_libero-spatial.yaml"
"""Of the paper's setting: chunks of 8 env steps, a decision at each, 64 requests in flight."""
BAR_MS = 2.0
"""A frame, everything but the model."""
EPISODE_STEPS = 100
CURVE_STEPS = 40
"""Shorter episodes, so that few frames make whole ones where one request is in flight."""
SIDE = 64
"""Pixels, where the picture's size does not matter."""
NUM_PICTURES = 50
"""Different ones of a size; episodes take them in turn, since drawing them is not what is measured."""
CAMERA = "observation.images.image"


def main(
    *,
    sides: tuple[int, ...] = (64, 256),
    frames: int = 1000,
    repeats: int = 3,
    concurrency: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64),
    latency: float = 0.2,
    most: int = 16,
    seconds: float = 6.0,
    output: Path | None = None,
    chart: Path | None = None,
) -> None:
    """Measure, print, write.

    Args:
        sides: of the pictures, pixels.
        frames: of an overhead run at 64 pixels; fewer where they are larger.
        repeats: measured overhead runs of each kind.
        concurrency: of the curve.
        latency: of the curve's server, seconds.
        most: answers that the curve's server makes at a time.
        seconds: that each point of the curve takes at best.
        output: also write the result here, as JSON.
        chart: also draw the curve here, as SVG.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-annotate-") as name:
        folder = Path(name)
        overhead = {str(side): measure_overhead(side, frames, repeats, folder / f"overhead-{side}") for side in sides}
        points = measure_curve(concurrency, latency, most, seconds, folder / "curve")
    result = {
        "bar_met": {side: one["cpu_ms"] < BAR_MS for side, one in overhead.items()},
        "least_share_of_ideal": min(point["share"] for point in points),
        "bar_ms": BAR_MS,
        "overhead": overhead,
        "curve": {"latency_s": latency, "most": most, "points": points},
    }
    print(render(result))
    write_result(result, output)
    if chart:
        chart.write_text(draw(result["curve"]))


def configure(source: Path, output: Path, *, side: int, url: str, concurrency: int = 0) -> AnnotateConfig:
    """The shipped config with another source and server; concurrency 0: that of the config."""
    cfg = load(AnnotateConfig, ["--config", str(CONFIG)])
    server = replace(cfg.openai, base_url=url, model=MODEL, concurrency=concurrency or cfg.openai.concurrency)
    return replace(cfg, source=source, output=output, read=replace(cfg.read, view_size=side), openai=server)


def run(cfg: AnnotateConfig) -> Run:
    """Annotate as recipes/annotate.py does, without the data card.

    Its facts are `cpu_s` of the process, all threads, and `asking_s` of wall time until all takes were annotated and
    stored, before the data set is assembled.

    Raises:
        RuntimeError: an answer was refused and asked for again.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    with Store(cfg.output, protocol(cfg)) as store, ThreadPoolExecutor(max_workers=1) as thread:
        source = asyncio.run(annotate_all(cfg, store, thread))
        asked = time.perf_counter()
        store.finish(lambda _: None, **source.told)  # no card
        tally = store.tally
    end = time.perf_counter()
    if tally.num_dropped or tally.rejected:
        raise RuntimeError(f"the stand-in's answers were refused: {dict(tally.rejected)}")
    facts = {"cpu_s": time.process_time() - cpu, "asking_s": asked - wall}
    return Run(seconds=end - wall, counts={"frames": tally.num_decisions}, facts=facts)


def measure_overhead(side: int, frames: int, repeats: int, folder: Path) -> dict[str, Any]:
    """CPU and wall time a frame."""
    num_episodes = max(1, math.ceil(frames / EPISODE_STEPS * min(1.0, SIDE / side * 1.6)))
    source = write_episodes(folder / "source", num_episodes=num_episodes, length=EPISODE_STEPS, side=side)
    with serving() as url:
        configs = [configure(source, folder / f"run-{i}", side=side, url=url) for i in range(repeats + 1)]
        runs = measure(f"overhead, {side} px", repeats, lambda i: run(configs[i]))
    cpu_ms = [1000 * one.facts["cpu_s"] / one.counts["frames"] for one in runs]
    return {
        "cpu_ms": median(cpu_ms),
        "cpu_ms_of_runs": cpu_ms,
        "wall_ms": median(1000 * one.seconds / one.counts["frames"] for one in runs),
        "num_frames": runs[0].counts["frames"],
    }


def measure_curve(
    concurrency: Sequence[int], latency: float, most: int, seconds: float, folder: Path
) -> list[dict[str, float]]:
    """Frames/s by requests in flight."""
    ideals = {number: min(number, most) / latency for number in concurrency}
    episodes = {number: max(1, round(seconds * ideal / CURVE_STEPS)) for number, ideal in ideals.items()}
    source = write_episodes(folder / "source", num_episodes=max(episodes.values()), length=CURVE_STEPS, side=SIDE)
    points = []
    with serving(latency_s=latency, most=most) as url:
        for number, ideal in ideals.items():
            cfg = configure(source, folder / f"run-{number}", side=SIDE, url=url, concurrency=number)
            one = run(replace(cfg, num_episodes=episodes[number]))
            speed = one.counts["frames"] / one.facts["asking_s"]
            points.append({"concurrency": number, "frames_per_s": speed, "ideal": ideal, "share": speed / ideal})
    return points


def write_episodes(root: Path, *, num_episodes: int, length: int, side: int) -> Path:
    """Write a LeRobot v2.1 folder with pictures in its tables, as PNG, `side` pixels wide and high.

    An episode is a pick and place of `length` env steps: the gripper closes after 40 % of them and opens after 80 %, so
    that at stride 1 twice `chunk_length` of its decisions are key frames.
    """
    for name in ("meta", "data"):
        (root / name).mkdir(parents=True)
    pictures = [{"bytes": to_png(picture(t / NUM_PICTURES, side)), "path": None} for t in range(NUM_PICTURES)]
    frames = np.arange(length)
    for number in range(num_episodes):
        rng = np.random.default_rng(number)
        actions = rng.uniform(-1, 1, (length, 7)).astype(np.float32)
        actions[:, -1] = np.where((frames >= 0.4 * length) & (frames < 0.8 * length), 1, -1)
        columns = {
            CAMERA: pa.array([pictures[t * NUM_PICTURES // length] for t in range(length)]),
            "observation.state": list(rng.normal(size=(length, 8)).astype(np.float32)),
            "action": list(actions),
            "timestamp": (frames / 20).astype(np.float32),
            "frame_index": frames,
            "episode_index": np.full(length, number),
            "index": number * length + frames,
            "task_index": np.zeros(length, int),
        }
        pq.write_table(pa.table(columns), root / f"data/{number}.parquet")
    task = "put the bowl on the plate"
    episodes = [{"episode_index": i, "tasks": [task], "length": length} for i in range(num_episodes)]
    (root / "meta/episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in episodes))
    (root / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": task}) + "\n")
    features = {CAMERA: {"dtype": "image"}, "observation.state": {"dtype": "float32"}, "action": {"dtype": "float32"}}
    info = {"codebase_version": "v2.1", "robot_type": "panda", "fps": 20, "chunks_size": 1_000_000}
    info |= {"data_path": "data/{episode_index}.parquet", "video_path": None, "features": features}
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


def picture(progress: float, side: int) -> np.ndarray:
    """[side, side, 3] uint8, with about a simulator's detail: a textured table, and a thing that moves over it."""
    down, right = np.mgrid[:side, :side] / side
    rng = np.random.default_rng(0)
    grain = np.kron(rng.normal(0, 4, (side // 4, side // 4)), np.ones((4, 4))) + rng.normal(0, 1, (side, side))
    wood = 40 * down + 12 * np.sin(40 * right + 3 * np.sin(9 * down)) + grain
    distance = np.hypot(right - 0.2 - 0.6 * progress, down - 0.55)[..., None] / 0.15
    table = np.stack([150 + wood, 110 + wood, 70 + wood], axis=-1)
    return np.clip(np.where(distance < 1, 200 - 80 * distance, table), 0, 255).astype(np.uint8)


def render(result: Mapping[str, Any]) -> str:
    """The result in columns."""
    overhead = [
        (f"{side} px", one["cpu_ms"], one["wall_ms"], "met" if result["bar_met"][side] else "MISSED")
        for side, one in result["overhead"].items()
    ]
    tables = (
        [("a frame", "CPU ms", "wall ms", f"bar: CPU below {BAR_MS:g}"), *overhead],
        [("requests in flight", "frames/s", "ideal", "share"), *(one.values() for one in result["curve"]["points"])],
    )
    return "\n\n".join(table([list(row) for row in rows]) for rows in tables)


def draw(curve: Mapping[str, Any]) -> str:
    """The curve as SVG, both axes in powers of two, so that proportional is a straight line."""
    points = curve["points"]
    most, ideals = [p["concurrency"] for p in points], [p["ideal"] for p in points]
    figure, axes = new_axes(5.4, 3.3, x="requests in flight", y="frames/s")
    figure.set_facecolor("white")
    server = f"the server: {curve['latency_s']:g} s an answer, {curve['most']} at a time"
    speeds = [p["frames_per_s"] for p in points]
    axes.plot(most, ideals, color=INK, alpha=0.55, linewidth=1.2, linestyle=(0, (4, 3)), label=server)
    axes.plot(most, speeds, color=COLOURS[0], linewidth=1.8, marker="o", markersize=4.5, label="the engine")
    axes.loglog(base=2)
    axes.set_xticks(most, [str(one) for one in most])
    axes.set_yticks(sorted(set(ideals)), [f"{ideal:g}" for ideal in sorted(set(ideals))])
    axes.minorticks_off()
    axes.legend(**LEGEND, loc="lower right")
    svg = to_svg(figure, salt="annotate", label="Frames a second by requests in flight", ink="#24292f")
    return svg.rstrip() + "\n"


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
