"""What the chain-of-thought engine costs besides the model, and whether it keeps a server busy.

    python scripts/benchmark_annotate.py --output benchmark_annotate.json --chart annotate_concurrency.svg

Full runs of recipes/annotate.py's engine on recorded episodes, of which each frame is annotated, against a stand-in for
the model's server in a process of its own (`benchmark_annotate_server.py`), in the setting of the shipped config
recipes/configs/annotate_qwen3-vl_libero-spatial.yaml:

- overhead: CPU and wall time of the annotating process a frame, medians over `--repeats` runs after one warm-up, where
  the server answers at once; and what the parts cost by themselves. Data card and contact sheet, which cost the same
  whatever the number of frames, are left out. Wall time includes what the server and others on the machine take;
- curve: frames/s by requests in flight, where the server takes `--latency` for an answer and makes at most `--most` at
  a time. Ideal is min(requests in flight, most) / latency. Ends before the data set is assembled, which asks nobody;
- memory: peak of a process that annotates a number of episodes, and of one that annotates ten times as many.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmark_result import cpu_model

from benchmark_annotate_data import write_episodes
from benchmark_annotate_parts import PARTS, measure_parts
from benchmark_annotate_run import Measured, configure, run
from benchmark_annotate_server import AnnotationServer
from rlvla.config import provenance
from rlvla.report.svg_chart import COLOURS, INK, new_axes, to_svg

BAR_MS = 2.0
"""A frame, everything but the model."""
EPISODE_STEPS = 100
CURVE_STEPS = 40
"""Shorter episodes, so that few frames make whole ones where one request is in flight."""
SIDE = 64
"""Pixels, where the picture's size does not matter."""
MANY = 10
"""Times as many episodes in the second memory run."""


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; raises SystemExit naming the option that is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 256], help="of the pictures, pixels")
    parser.add_argument("--frames", type=int, default=1000, help="of an overhead run at 64 pixels; fewer where larger")
    parser.add_argument("--repeats", type=int, default=3, help="measured overhead runs of each kind")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64], help="of the curve")
    parser.add_argument("--latency", type=float, default=0.2, help="of the curve's server, seconds")
    parser.add_argument("--most", type=int, default=16, help="answers that the curve's server makes at a time")
    parser.add_argument("--seconds", type=float, default=6.0, help="that each point of the curve takes at best")
    parser.add_argument("--episodes", type=int, default=10, help="of the memory run, and ten times as many")
    parser.add_argument("--output", type=Path, help="also write the result here, JSON")
    parser.add_argument("--chart", type=Path, help="also draw the curve here, SVG")
    args = parser.parse_args(argv)
    numbers = [*args.sides, *args.concurrency, args.frames, args.repeats, args.most, args.episodes]
    if min(numbers) < 1 or min(args.latency, args.seconds) <= 0:
        parser.error("all numbers must be positive")
    return args


def measure_overhead(side: int, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """CPU and wall time a frame, and of the parts."""
    num_episodes = max(1, math.ceil(args.frames / EPISODE_STEPS * min(1.0, SIDE / side * 1.6)))
    source = write_episodes(folder / "source", num_episodes=num_episodes, length=EPISODE_STEPS, side=side)
    with AnnotationServer() as server:
        runs = [
            run(configure(source, folder / f"run-{i}", side=side, url=server.url)) for i in range(args.repeats + 1)
        ][1:]
        parts = measure_parts(configure(source, folder, side=side, url=server.url), folder / "parts")
    cpu_ms = [1000 * one.cpu_s / one.num_frames for one in runs]
    return {
        "cpu_ms": median(cpu_ms),
        "cpu_ms_of_runs": cpu_ms,
        "wall_ms": median(1000 * one.wall_s / one.num_frames for one in runs),
        "num_frames": runs[0].num_frames,
        "parts_cpu_ms": {**parts, "rest": median(cpu_ms) - sum(parts.values())},
    }


def measure_curve(args: argparse.Namespace, folder: Path) -> list[dict[str, float]]:
    """Frames/s by requests in flight."""
    ideals = {most: min(most, args.most) / args.latency for most in args.concurrency}
    numbers = {most: max(1, round(args.seconds * ideal / CURVE_STEPS)) for most, ideal in ideals.items()}
    source = write_episodes(folder / "source", num_episodes=max(numbers.values()), length=CURVE_STEPS, side=SIDE)
    points = []
    with AnnotationServer(latency_s=args.latency, most=args.most) as server:
        for most, ideal in ideals.items():
            cfg = configure(source, folder / f"run-{most}", side=SIDE, url=server.url, concurrency=most)
            one = run(replace(cfg, num_episodes=numbers[most]))
            speed = one.num_frames / one.asking_wall_s
            points.append({"concurrency": most, "frames_per_s": speed, "ideal": ideal, "share": speed / ideal})
    return points


def measure_memory(args: argparse.Namespace, folder: Path) -> list[dict[str, float]]:
    """Peak memory by number of frames, of a process each."""
    points = []
    with AnnotationServer() as server:
        for factor in (1, MANY):
            source = write_episodes(
                folder / f"source-{factor}", num_episodes=factor * args.episodes, length=EPISODE_STEPS, side=SIDE
            )
            script = Path(__file__).with_name("benchmark_annotate_run.py")
            command = [sys.executable, str(script), str(source), str(folder / f"run-{factor}"), str(SIDE), server.url]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            one = Measured(**json.loads(output))
            points.append({"num_frames": one.num_frames, "peak_mib": one.peak_mib})
    return points


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything, ratios first."""
    load = [os.getloadavg()[0]]
    overhead = {str(side): measure_overhead(side, args, folder / f"overhead-{side}") for side in args.sides}
    curve = measure_curve(args, folder / "curve")
    memory = measure_memory(args, folder / "memory")
    load.append(os.getloadavg()[0])
    return {
        "overhead_vs_bar": {side: one["cpu_ms"] / BAR_MS for side, one in overhead.items()},
        "bar_met": {side: one["cpu_ms"] < BAR_MS for side, one in overhead.items()},
        "least_share_of_ideal": min(point["share"] for point in curve),
        "memory_growth": memory[-1]["peak_mib"] / memory[0]["peak_mib"],
        "bar_ms": BAR_MS,
        "overhead": overhead,
        "curve": {"latency_s": args.latency, "most": args.most, "points": curve},
        "memory": memory,
        "machine": {
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "load_average": load,
        },
        "software": provenance(),
    }


def table(result: Mapping[str, Any]) -> str:
    """The result in words and columns."""
    facts = result["machine"]
    before, after = facts["load_average"]
    lines = [f"{facts['cpu']}, {facts['cores']} cores, load {before:.1f} before and {after:.1f} after", ""]
    lines.append(f"{'overhead, ms a frame':42s}" + "".join(f"{side + ' px':>10s}" for side in result["overhead"]))
    columns = result["overhead"].values()
    for name, what in {**PARTS, "rest": "the rest: event loop, threads, interplay"}.items():
        lines.append(f"  {what:40s}" + "".join(f"{one['parts_cpu_ms'][name]:10.3f}" for one in columns))
    lines.append(f"{'CPU':42s}" + "".join(f"{one['cpu_ms']:10.2f}" for one in columns))
    lines.append(f"{'wall':42s}" + "".join(f"{one['wall_ms']:10.2f}" for one in columns))
    verdicts = ("met" if met else "MISSED" for met in result["bar_met"].values())
    lines.append(f"{f'bar: CPU below {BAR_MS:g}':42s}" + "".join(f"{verdict:>10s}" for verdict in verdicts))
    curve = result["curve"]
    lines += ["", f"{'requests in flight':>18s}{'frames/s':>10s}{'ideal':>8s}{'share':>8s}"]
    for point in curve["points"]:
        share = f"{100 * point['share']:.1f} %"
        lines.append(f"{point['concurrency']:18d}{point['frames_per_s']:10.1f}{point['ideal']:8.1f}{share:>8s}")
    few, many = result["memory"]
    lines += ["", f"peak memory: {few['peak_mib']:.0f} MiB for {few['num_frames']} frames"]
    lines[-1] += f", {many['peak_mib']:.0f} MiB for {many['num_frames']} ({result['memory_growth']:.2f}x)"
    return "\n".join(lines)


def chart(curve: Mapping[str, Any]) -> str:
    """The curve as SVG, both axes in powers of two, so that proportional is a straight line."""
    points = curve["points"]
    most = [point["concurrency"] for point in points]
    figure, axes = new_axes(5.4, 3.3)
    figure.set_facecolor("white")
    axes.plot(most, [p["ideal"] for p in points], color=INK, alpha=0.55, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.plot(most, [p["frames_per_s"] for p in points], color=COLOURS[0], linewidth=1.8, marker="o", markersize=4.5)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(most, [str(one) for one in most])
    ideals = sorted({point["ideal"] for point in points})
    axes.set_yticks(ideals, [f"{ideal:g}" for ideal in ideals])
    axes.minorticks_off()
    axes.set_ylim(ideals[0] / 1.3, ideals[-1] * 1.45)
    axes.set_xlabel("requests in flight", color=INK)
    axes.set_ylabel("frames/s", color=INK)
    what = f"the server: {curve['latency_s']:g} s an answer, {curve['most']} at a time"
    axes.text(most[0], ideals[-1] * 1.12, f"- - -  {what}", color=INK, alpha=0.7)
    last = points[-1]
    axes.annotate(
        "the engine",
        (last["concurrency"], last["frames_per_s"]),
        xytext=(0, -14),
        textcoords="offset points",
        ha="right",
        color=COLOURS[0],
    )
    svg = to_svg(figure, salt="annotate", label="Frames a second by requests in flight", ink="#24292f")
    return svg.rstrip() + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a table, write what is wanted."""
    args = parse(argv)
    with tempfile.TemporaryDirectory(prefix="benchmark-annotate-") as folder:
        result = measure(args, Path(folder))
    print(table(result))
    if args.output:
        args.output.write_text(json.dumps(result, indent=2) + "\n")
    if args.chart:
        args.chart.write_text(chart(result["curve"]))


if __name__ == "__main__":
    main()
