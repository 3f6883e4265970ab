"""Seconds of a weight sync, learner process to sampler process over Ray, against a memcpy of the same bytes.

python scripts/benchmark/sync.py [--num-params 1e9] [--backend transformers] [--output sync.json]

The model is an Idefics3 of random bfloat16 weights, as `tiny_vlm` builds it, made wide. Nothing learns: the learner's
process holds the weights as a rank does (without AdamW, whose 12 bytes a weight have no part in a sync) and changes all
of them before each sync. At the end those of a transformers sampler are compared with them bit for bit.

- `sync_vs_memcpy`: seconds of a sync over seconds of copying as many bytes from one tensor to another, in this run.
- `extra_buckets_store`, `_learner`, `_sampler`: the most that Ray's store, and each process besides, held during a sync
  more than before it, in buckets. A bucket that is being taken and one that is being made are two.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Literal

import tyro

from measuring import Peaks, Run, measure, medians, set_environment, store_stats, table, verdict, verdicts, write_result

Backend = Literal["transformers", "vllm"]
SAMPLE_S = 0.002


def main(
    *,
    num_params: float = 1e9,
    backend: Backend = "transformers",
    bucket_mb: float = 256.0,
    repeats: int = 3,
    threads: int = 1,
    output: Path | None = None,
) -> None:
    """Measure, print the table, write the JSON.

    Args:
        num_params: of the model, about.
        backend: of the sampler.
        bucket_mb: as `cluster.bucket_mb`.
        repeats: measured syncs behind one that warms up.
        threads: of each process.
        output: also write the result here, as JSON.
    """
    set_environment()
    with TemporaryDirectory() as folder:
        result = measure_all(Path(folder), num_params, backend, bucket_mb, repeats, threads)
    print(render(result))
    write_result(result, output, threads)


def measure_all(
    folder: Path, num_params: float, backend: Backend, bucket_mb: float, repeats: int, threads: int
) -> dict[str, Any]:
    """Start both processes, sync, copy."""
    import ray
    import torch

    from rlvla.cluster.cluster import start_ray
    from rlvla.cluster.weight_sync import give
    from rlvla.config import ClusterConfig, SamplerConfig
    from sync_actors import Receiver, Source

    torch.set_num_threads(threads)
    model = folder / "policy"
    num_bytes = make_checkpoint(model, num_params)
    config = SamplerConfig(backend=backend, dtype="bfloat16", threads=threads, kv_cache_mb=256)
    start_ray(ClusterConfig())
    try:
        options: dict[str, Any] = {"num_cpus": 0, "concurrency_groups": {"probe": 1, "writer": 1}}
        learner: Any = ray.remote(**options)(Source).remote(model, bucket_mb, threads)
        sampler: Any = ray.remote(num_cpus=0)(Receiver).remote(model, config)
        pids: dict[str, int] = {
            who: ray.get(at.pid.remote()) for who, at in (("learner", learner), ("sampler", sampler))
        }

        def sync(index: int) -> Run:
            ray.get(learner.change.remote())
            started = time.perf_counter()
            give([learner], [sampler], index + 1, learner_deadline_s=600, sampler_deadline_s=600)
            return Run(seconds=time.perf_counter() - started, counts={"bytes": num_bytes})

        syncs: list[Run] = measure("sync", repeats, sync)
        with Peaks(lambda: held(pids), SAMPLE_S) as peaks:  # not timed: to look so often takes a core
            sync(repeats + 1)
        if ray.get(sampler.status.remote(600)) != ("", repeats + 2):
            raise SystemExit("the sampler does not serve the last weights")
        if backend == "transformers" and ray.get(learner.digest.remote()) != ray.get(sampler.digest.remote()):
            raise SystemExit("the sampler's weights are not the learner's")
    finally:
        ray.shutdown()
    copies = measure("memcpy", repeats, lambda _: copy(num_bytes))
    ratio = median(run.seconds for run in syncs) / median(run.seconds for run in copies)
    extra = {f"extra_buckets_{who}": peak / (bucket_mb * 2**20) for who, peak in peaks.grown.items()}
    result = {"sync": medians(syncs) | extra, "memcpy": medians(copies), "sync_vs_memcpy": ratio}
    result |= {"num_bytes": num_bytes, "backend": backend, "bucket_mb": bucket_mb, "repeats": repeats}
    return result | {"targets": verdicts(result | extra)}


def make_checkpoint(folder: Path, num_params: float) -> int:
    """Write a policy of about so many random bfloat16 weights; its bytes."""
    import torch

    from rlvla.config import TinyModelConfig
    from rlvla.policies.models.tiny_vlm import build_tiny
    from rlvla.policies.thinker.actions import QuantileCodec
    from rlvla.policies.thinker.policy import save_policy
    from rlvla.policies.thinker.prompt import PolicyProcessor
    from rlvla.policies.thinker.settings import Settings

    # A layer of the language model has about 12 width^2 weights (attention 3, MLP 9), one of the vision tower 8.
    width = max(64, round((num_params / (24 * 12 + 8)) ** 0.5 / 64) * 64)
    sizes = TinyModelConfig(hidden_size=width, num_layers=24, vision_layers=1, image_size=32)
    model, processor = build_tiny(sizes, ["press the red pad"], 8, seed=0)
    model = model.to(torch.bfloat16)
    codec = QuantileCodec(low=(-1.0,), high=(1.0,), num_bins=8, chunk_length=2, gripper_dim=None)
    save_policy(model, PolicyProcessor.create(processor, Settings(codec=codec)), folder)
    return sum(p.nbytes for p in model.parameters())


def held(pids: Mapping[str, int]) -> dict[str, float]:
    """Bytes in Ray's store, and those that are each process's own."""
    import psutil

    memory = {who: psutil.Process(pid).memory_info() for who, pid in pids.items()}
    return {"store": store_stats().object_store_bytes_used, **{who: m.rss - m.shared for who, m in memory.items()}}


def copy(num_bytes: int) -> Run:
    """From one tensor to another, both of which are there already."""
    import torch

    source, target = torch.ones(num_bytes, dtype=torch.uint8), torch.zeros(num_bytes, dtype=torch.uint8)
    started = time.perf_counter()
    target.copy_(source)
    return Run(seconds=time.perf_counter() - started, counts={"bytes": num_bytes})


def render(result: Mapping[str, Any]) -> str:
    """The result in columns."""
    rows: list[tuple[object, ...]] = [("", "seconds", "GB/s")]
    for name in ("sync", "memcpy"):
        found = result[name]
        rows.append((name, median(found["seconds"]), found["bytes_per_s"] / 1e9))
    said = [f"{result['num_bytes'] / 1e9:.2f} GB, {result['backend']}, buckets of {result['bucket_mb']:g} MiB"]
    for name, value in {**result["sync"], "sync_vs_memcpy": result["sync_vs_memcpy"]}.items():
        if name.startswith(("extra", "sync")):
            said.append(f"{name}: {value:.2f}{verdict(name, value)}")
    return table(rows) + "\n" + "\n".join(said)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
