"""What the parts of the benchmark have in common: bars at the top of one file, and CPU seconds by kind of process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import cpu
import gather


def test_bars_come_from_whichever_part_has_them_and_parts_are_kept(tmp_path: Path) -> None:
    output = tmp_path / "results/benchmark.json"
    for name, part in {"libero": {"rollout_libero_vs_lockstep": 9.0}, "sync": {"sync_vs_memcpy": 2.0, "s": 1}}.items():
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(part))
        gather.main(file, output=output)  # one after the other, as they are measured
    result = json.loads(output.read_text())
    assert (result["rollout_libero_vs_lockstep"], result["sync_vs_memcpy"]) == (9.0, 2.0)
    assert result["met"] == {"rollout_libero_vs_lockstep": False, "sync_vs_memcpy": True}
    assert set(result["missing"]) == set(gather.PROMISED) - result["met"].keys()
    assert result["parts"]["sync"]["s"] == 1
    told = gather.render(result)
    assert (told.count("MISSED"), told.count("not measured")) == (1, len(result["missing"]))


def test_what_was_measured_before_there_were_parts_is_the_tabletop_part(tmp_path: Path) -> None:
    output, demo = tmp_path / "benchmark.json", tmp_path / "demo"
    old = {"learner_vs_padded": 4.5, "rollout": {"trajectories_per_s": 29.0}}
    output.write_text(json.dumps(old))
    demo.mkdir()
    (demo / "summary.json").write_text(json.dumps({"minutes": 8.5, "seed": 0}))
    (tmp_path / "sync.json").write_text('{"sync_vs_memcpy": 2.0}')
    for _ in range(2):  # the second time it has parts
        gather.main(tmp_path / "sync.json", demo=demo, output=output)
    result = json.loads(output.read_text())
    assert result["parts"].keys() == {"tabletop", "sync", "demo"}
    assert result["parts"]["tabletop"] == old
    assert (result["learner_vs_padded"], result["demo_minutes"]) == (4.5, 8.5)


def test_a_bar_has_one_owner() -> None:
    with pytest.raises(SystemExit, match="driver_mb is in a and in b"):
        gather.gather({"a": {"driver_mb": 1.0}, "b": {"driver_mb": 2.0}})


def test_cpu_seconds_are_those_of_this_process_and_its_descendants_by_kind() -> None:
    """A child that waits for one of its own, which works; their names are arguments that nobody reads."""
    burn = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    grandchild = [sys.executable, "-c", burn, "ray::SamplerActor.sample"]
    child = [sys.executable, "-c", f"import subprocess\nsubprocess.run({grandchild})", "rlvla.rollout.env_server"]
    before = cpu.cpu_seconds()
    with subprocess.Popen(child, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        spent = cpu.since(before)
        process.communicate(b"\n")
    assert spent["cpu_s/sampler"] >= 0.25
    assert 0 < spent["cpu_s/envs"] < spent["cpu_s/sampler"]
    assert "sampler" not in cpu.cpu_seconds()  # it has ended


def test_what_is_none_of_our_actors_is_rays() -> None:
    assert [cpu.kind_of(c) for c in ("raylet --port 1", "ray::sampler-0:SamplerActor.sample")] == ["Ray", "sampler"]


def test_cpu_seconds_grow_with_work() -> None:
    before = cpu.cpu_seconds()
    # Longer than is asked for, as the sums are rounded.
    while cpu.cpu_seconds()["this process"] < before["this process"] + 0.06:
        sum(range(10000))
    assert cpu.since(before)["cpu_s/this process"] >= 0.05
