"""Keys of samplers, and of the processes of a run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from rlvla.config.marks import Loose, MayChange, MovesNoScore, strict


@strict
class SamplerConfig:
    """What each SamplerActor draws with. All but `backend`, `dtype`, `max_num_seqs` and `threads` is vLLM's alone."""

    backend: Literal["vllm", "transformers", "batched"] = "vllm"
    """`transformers`: one request after another, each from its first token on, many times slower; for what vLLM does
    not serve, such as checkpoints with `prefix_attention: bidirectional`. `batched`: the policy's own network on all
    requests that wait, of families without words."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of weights and activations; bfloat16 on GPUs."""
    max_num_seqs: PositiveInt = 64
    """Sequences that vLLM, or requests that `batched`, runs together at most. What shares a batch moves the last bits
    of float32: with 1 a `batched` run is reproducible bit for bit."""
    kv_cache_mb: NonNegativeInt = 256
    """KV cache, MiB; 0 leaves it to `gpu_memory_utilization` (GPU)."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.45
    """Share of GPU memory when `kv_cache_mb` is 0; 0.45 leaves room for a colocated learner."""
    enforce_eager: bool = True
    """False: compile and capture CUDA graphs (GPU)."""
    tensor_parallel_size: PositiveInt = 1
    """GPUs that one engine spans."""
    threads: PositiveInt = 1
    """OpenMP threads of a sampler on the CPU: beside simulators one is faster than two on two cores."""


@strict
class ClusterConfig:
    """How many processes of each kind, and what each may use."""

    address: Loose[str] = "local"
    """Ray: `local` starts one on loopback; `auto` or `host:port` joins a running cluster."""
    num_samplers: MayChange[PositiveInt] = 1
    """Engines of `sampler.backend`."""
    num_rollout_actors: MayChange[PositiveInt] = 1
    """Processes that drive envs."""
    envs_per_actor: MayChange[PositiveInt] = 32
    """Envs, hence concurrent episodes, in each rollout actor."""
    envs_per_process: Loose[PositiveInt] = 1
    """Envs in each process that a rollout actor starts for them. Together they take less memory (an env of the tabletop
    33 MB alone, 17 MB among 8); but one that hangs costs the others' episodes too, which are then played again."""
    max_restarts: Loose[NonNegativeInt] = 3
    """Times that each sampler and rollout actor is started anew in a run after it died, failed or hung; then the run
    ends."""
    actor_deadline_s: Loose[PositiveFloat] = 900.0
    """Seconds in which a sampler or rollout actor starts or answers anybody at all, and a sampler takes new weights;
    else it is ended and started anew. Ours: loading 7B weights and capturing graphs takes minutes."""
    learner_deadline_s: Loose[PositiveFloat] = 3600.0
    """Seconds in which all learner ranks start, learn from a step, gather their weights or write a state; else the run
    ends. Ours: a step on 512 trajectories with a 7B policy takes up to about half an hour on 4 GPUs."""
    bucket_mb: Loose[PositiveFloat] = 256.0
    """MiB of the buckets in which weights travel to the samplers; learner and sampler need room for two. A tensor that
    is larger is a bucket of its own. Ours: large enough that what a bucket costs beside its bytes, some milliseconds,
    does not count."""
    num_learners: MovesNoScore[PositiveInt] = 1
    """DeepSpeed ranks."""
    sampler_cpus: Loose[NonNegativeFloat] = 0.5
    """Ray CPUs that a sampler reserves."""
    rollout_cpus: Loose[NonNegativeFloat] = 0.5
    """Ray CPUs that a rollout actor reserves."""
    learner_cpus: Loose[NonNegativeFloat] = 0.5
    """Ray CPUs that a learner rank reserves."""
    sampler_gpus: Loose[NonNegativeFloat] = 0.0
    """Ray GPUs that a sampler reserves, all on one node: `sampler.tensor_parallel_size`, or a share of one."""
    learner_gpus: Loose[NonNegativeFloat] = 0.0
    """Ray GPUs that a learner rank reserves: 1, or a share, which colocates it: then each rank has a GPU together with
    one sampler, whose share is the rest (0.5 and 0.5). It takes as many samplers as learners."""
    threads: Loose[PositiveInt] = 2
    """OpenMP threads of a learner rank on the CPU."""
    placement: Loose[Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]] = "PACK"
    """Ray placement-group strategy over nodes: PACK colocates, SPREAD keeps apart."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the key."""
        for key in ("sampler_gpus", "learner_gpus"):
            amount = getattr(self, key)
            if amount > 1 and amount % 1:
                raise ValueError(f"cluster.{key} is {amount}: Ray gives shares of one GPU, or whole ones")
