"""Feed millions of wrong inputs to everything that reads what a model, a user or a stranger wrote.

    python scripts/fuzz.py --seconds 5                        each target for that long
    python scripts/fuzz.py markup calls --runs 1000000        some of them, that many inputs over all
    python scripts/fuzz.py --replay outputs/fuzz/markup.bin markup

The table of targets is scripts/fuzz_targets.py. Inputs come from atheris, which steers by coverage, where it is
installed; else from a plain mutator. A target ends at its first finding: an exception, more than `--cpu-s` of CPU
time or more than `--memory-mb` of memory for one input. The input is kept, and the exit status is 1.

Many targets write files: with `TMPDIR` on a RAM disk they run many times faster.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import mmap
import os
import platform
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

MIB = 1 << 20
MAX_ADDRESS_BYTES = 32 << 30
"""Of a target's process: what asks for more at once gets a MemoryError, not the machine's memory."""


class FindingError(AssertionError):
    """An input that took too much."""


@dataclass(kw_only=True)
class Watch:
    """Calls a target, counts, and holds it to its bounds."""

    run: Callable[[bytes], None]
    cpu_s: float
    memory_mb: float
    num_runs: int = 0
    slowest_s: float = 0.0
    """CPU time of an input."""
    first_mb: float = field(default_factory=lambda: peak_mb())

    def __call__(self, data: bytes) -> None:
        """Raises what the target raises, or FindingError where it took too long or too much memory."""
        started = time.process_time()
        self.run(data)
        seconds = time.process_time() - started
        self.num_runs += 1
        self.slowest_s = max(self.slowest_s, seconds)
        if seconds > self.cpu_s:
            raise FindingError(f"took {seconds:.2f} s of CPU time, more than {self.cpu_s:g}")
        if (grown := peak_mb() - self.first_mb) > self.memory_mb:
            raise FindingError(f"memory has grown by {grown:.0f} MiB, more than {self.memory_mb:g}")


def peak_mb() -> float:
    """Peak resident memory of this process, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def mutate(rng: random.Random, seeds: Sequence[bytes], tokens: Sequence[str], max_bytes: int) -> bytes:
    """An input of the plain mutator: a good one with some changes, or noise."""
    if rng.random() < 0.1:
        return rng.randbytes(rng.randrange(min(max_bytes, 256)))
    data = bytearray(rng.choice(seeds))
    for _ in range(1 + rng.randrange(6)):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.randrange(1, 33))
        kind = rng.randrange(6)
        if kind == 0 and start < len(data):
            data[start] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[start:end]
        elif kind == 2:
            data[start:start] = data[start:end] * rng.choice((1, 2, 50))
        elif kind == 3 and tokens:
            data[start:start] = rng.choice(tokens).encode()
        elif kind == 4:
            data[start:end] = rng.randbytes(rng.randrange(9))
        else:
            other = rng.choice(seeds)
            data[start:] = other[rng.randrange(len(other) + 1) :]
    return bytes(data[:max_bytes])


def child(args: argparse.Namespace) -> NoReturn:
    """Fuzz one target in this process until it is due to end, or the first finding; `_exit`s, as libFuzzer would."""
    instrumented: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if has_atheris := args.engine == "atheris":
        import atheris

        instrumented = atheris.instrument_imports(include=["rlvla"])
    (name,) = args.targets
    with instrumented:
        from fuzz_targets import FOLDER, TARGETS

        target = TARGETS[name]
        record = _Record(args.output / f"{name}.input", target.max_bytes)
        record.keep(target.seeds[0])
        target.run(target.seeds[0])  # imports what it needs, which is not to be blamed on an input
    resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESS_BYTES, MAX_ADDRESS_BYTES))
    watch = Watch(run=target.run, cpu_s=args.cpu_s, memory_mb=args.memory_mb)
    started = time.monotonic()

    def end(code: int) -> NoReturn:
        seconds = time.monotonic() - started
        told = {"runs": watch.num_runs, "seconds": round(seconds, 1), "runs_per_s": round(watch.num_runs / seconds)}
        told |= {"peak_mb": round(peak_mb()), "grown_mb": round(peak_mb() - watch.first_mb)}
        told |= {"slowest_ms": round(1000 * watch.slowest_s, 1), "engine": args.engine}
        (args.output / f"{name}.json").write_text(json.dumps(told))
        shutil.rmtree(FOLDER)  # `_exit` runs no exit handlers
        sys.stdout.flush()
        os._exit(code)

    def one(data: bytes) -> None:
        record.keep(data)
        signal.setitimer(signal.ITIMER_PROF, 2 * args.cpu_s)  # ends the process, also inside C
        try:
            watch(data)
        except Exception:
            traceback.print_exc(file=sys.stdout)
            end(1)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if watch.num_runs >= args.runs or time.monotonic() - started > args.seconds:
            end(0)

    if has_atheris:
        _atheris(args, target, one)
    rng = random.Random(args.seed)
    while True:
        one(mutate(rng, target.seeds, target.tokens, target.max_bytes))


def _atheris(args: argparse.Namespace, target: Any, one: Callable[[bytes], None]) -> NoReturn:
    import atheris

    corpus = args.output / "corpus" / args.targets[0]
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = [f"-max_len={target.max_bytes}", f"-seed={args.seed + 1}", "-rss_limit_mb=0", "-timeout=600"]
    options += ["-verbosity=0", "-print_final_stats=0"]
    escaped = ("".join(f"\\x{byte:02x}" for byte in token.encode()[:64]) for token in target.tokens)
    if target.tokens:  # libFuzzer takes no empty dictionary
        words = args.output / f"{args.targets[0]}.dict"
        words.write_text("".join(f'"{token}"\n' for token in escaped))
        options.append(f"-dict={words}")
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()
    raise AssertionError("libFuzzer does not return")


class _Record:
    """The input at hand in a file, so that it is known after a crash in C: a memory map, hence no system call."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        path.write_bytes(bytes(8 + max_bytes))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)

    def keep(self, data: bytes) -> None:
        self._map[:8] = len(data).to_bytes(8, "little")
        self._map[8 : 8 + len(data)] = data

    @staticmethod
    def read(path: Path) -> bytes:
        content = path.read_bytes()
        return content[8 : 8 + int.from_bytes(content[:8], "little")]


def parent(args: argparse.Namespace, shares: dict[str, int]) -> int:
    """Fuzz the targets one after another, each in a process of its own, and write the report; returns the status."""
    results: dict[str, Any] = {}
    total = sum(shares.values())
    for name, share in shares.items():
        runs = -(-args.runs * share // total) if args.runs else sys.maxsize
        seconds = args.seconds or 1e9
        command = [sys.executable, __file__, name, "--child", "--runs", str(runs), "--seconds", str(seconds)]
        command += ["--engine", args.engine, "--seed", str(args.seed), "--output", str(args.output)]
        command += ["--cpu-s", str(args.cpu_s), "--memory-mb", str(args.memory_mb)]
        log = args.output / f"{name}.log"
        told = args.output / f"{name}.json"
        told.unlink(missing_ok=True)
        with log.open("w") as file:
            status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
        results[name] = json.loads(told.read_text()) if told.is_file() else {"runs": 0}
        if status:
            kept = args.output / f"{name}.bin"
            kept.write_bytes(_Record.read(args.output / f"{name}.input"))
            results[name] |= {"finding": str(kept), "status": status}
            print(f"{name}: FOUND something, status {status}: {kept}, {log}")
        else:
            r = results[name]
            print(f"{name:13s} {r['runs']:9d} runs, {r['runs_per_s']:6d} a second, peak {r['peak_mb']} MiB", flush=True)
        _write_report(args, results)
    return int(any("finding" in result for result in results.values()))


def _write_report(args: argparse.Namespace, results: dict[str, Any]) -> None:
    report = {
        "runs": sum(result["runs"] for result in results.values()),
        "findings": sum("finding" in result for result in results.values()),
        "bounds": {"cpu_s": args.cpu_s, "memory_mb": args.memory_mb},
        "seed": args.seed,
        "python": platform.python_version(),
        "atheris": metadata.version("atheris") if args.engine == "atheris" else None,
        "targets": results,
    }
    args.report.write_text(json.dumps(report, indent=2) + "\n")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", help="default: all")
    parser.add_argument("--seconds", type=float, default=0, help="for each target; 0: as long as the runs take")
    parser.add_argument("--runs", type=int, default=0, help="over all targets; 0: as many as the seconds allow")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpu-s", type=float, default=2.0, help="CPU time that one input may take")
    parser.add_argument("--memory-mb", type=float, default=512.0, help="by which inputs may let the memory grow, MiB")
    parser.add_argument("--output", type=Path, default=Path("outputs/fuzz"), help="corpus, logs and findings")
    parser.add_argument("--report", type=Path, help="JSON; default: report.json in --output")
    is_there = importlib.util.find_spec("atheris") is not None
    parser.add_argument("--engine", choices=("atheris", "plain"), default="atheris" if is_there else "plain")
    parser.add_argument("--replay", type=Path, help="run the one target named on this input only")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if not (args.seconds or args.runs or args.replay):
        parser.error("say how long: --seconds, --runs or both")
    args.report = args.report or args.output / "report.json"
    return args


def main() -> int:
    """Returns the exit status."""
    args = parse()
    args.output.mkdir(parents=True, exist_ok=True)
    if args.child:
        child(args)
    from fuzz_targets import TARGETS

    if unknown := [name for name in args.targets if name not in TARGETS]:
        raise SystemExit(f"no target {unknown[0]}; there are {', '.join(TARGETS)}")
    if args.replay:
        (name,) = args.targets
        TARGETS[name].run(args.replay.read_bytes())
        return 0
    return parent(args, {name: TARGETS[name].share for name in args.targets or TARGETS})


if __name__ == "__main__":
    sys.exit(main())
