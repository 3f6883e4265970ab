"""DeepSpeed behind few verbs: backward, step, total, gather, changes, save_policy. An object is a rank."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read at the import below
import deepspeed
from deepspeed import comm
from deepspeed.ops import __compatible_ops__ as compatible_ops
from deepspeed.utils import safe_get_full_fp32_param, safe_set_full_fp32_param
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]
from transformers.utils import logging as hf_logging

from rlvla.config import LearnerConfig
from rlvla.learner.state import State
from rlvla.policies.buckets import Bucket, Part, Weights, make_buckets
from rlvla.policies.family import Policy
from rlvla.policies.models.lora import Adapter, take
from rlvla.policies.weights import has_adapter, holding

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def join(rank: int, world: int, master: str) -> torch.device:
    """Enter the process group, over gloo on the CPU and nccl on GPUs; returns the device of this rank.

    Rank 0 listens at `master`, `host:port`; at any free port for 0.

    Raises:
        ValueError: `master` is no `host:port`.
        OSError: rank 0 cannot listen there; the message names the address.
    """
    host, _, port = master.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"master is {master!r}: write it as host:port, for example 127.0.0.1:29500")
    os.environ.setdefault("LOCAL_RANK", "0")
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR=host, MASTER_PORT=port)
    return _enter(lambda: {"store": _store(host, int(port), rank, world), "rank": rank, "world_size": world})


def join_launched() -> torch.device:
    """As `join`, of `accelerate launch` or torchrun, at the port of the launcher; alone, a group of its own."""
    if "LOCAL_RANK" not in os.environ:
        return join(0, 1, "127.0.0.1:0")
    return _enter(lambda: {"init_method": "env://"})


def _enter(where: Callable[[], dict[str, Any]]) -> torch.device:
    """Enter torch's process group as `where` says, unless this process is in one, and ready DeepSpeed for it."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    hf_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # one a call, by DeepSpeed
    # Its shared-memory all-reduce is a minute of C++ for a little speed on one CPU host.
    compatible_ops["deepspeed_shm_comm"] = False
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    backend = "nccl" if on_gpu else "gloo"
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group(backend, **where())
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False)
    return device


def _store(host: str, port: int, rank: int, world: int) -> TCPStore:
    """Where the ranks meet; torch's own would listen on every interface, and rank 0's listens on `host` alone."""
    if rank:
        return TCPStore(host, port, world, is_master=False)
    try:
        listener = socket.create_server((host, port))
    except OSError as error:
        raise OSError(
            error.errno, f"learner rank 0 cannot listen on {host}:{port} ({error.strerror}): start the run again"
        ) from error
    port = listener.getsockname()[1]
    return TCPStore(host, port, world, is_master=True, master_listen_fd=listener.detach())


class Engine:
    """A model, its AdamW and their shares on this rank.

    Args:
        model: Hugging Face or peft model, the same on every rank.
        cfg: optimisation.
        device: from `join`.
    """

    def __init__(self, model: Any, cfg: LearnerConfig, device: torch.device) -> None:
        self._stage = _zero_stage(cfg)
        self._max_grad_norm = cfg.max_grad_norm
        # Dropout would make the policy that learns another one than the policy that is scored; checkpointing wants it.
        model.to(device).train(cfg.gradient_checkpointing)
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._adamw = torch.optim.AdamW(
            self._trained.values(), lr=cfg.lr, betas=cfg.betas, weight_decay=cfg.weight_decay
        )
        with _keeping_masters(self._trained):
            self._deepspeed: Any = deepspeed.initialize(
                model=model, optimizer=self._adamw, config=deepspeed_config(cfg), dist_init_required=False
            )[0]
        self._deepspeed.module.train(cfg.gradient_checkpointing)
        self.rank, self.world = comm.get_rank(), comm.get_world_size()
        self._parts: Sequence[Part] = ()
        self.state = State(
            self._trained, self._deepspeed.optimizer, zero_stage=self._stage, rank=self.rank, world=self.world
        )

    @property
    def model(self) -> Any:
        """What to call forward on."""
        return self._deepspeed

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        """Add the gradient of one micro-batch's share of the objective.

        Args:
            loss: scalar; the objective is the sum over micro-batches and ranks.
            is_last: whether `step` comes next; as many micro-batches on every rank.
        """
        self._deepspeed.set_gradient_accumulation_boundary(is_last)
        # DeepSpeed averages over ranks, and would over micro-batches; the objective is a sum.
        self._deepspeed.backward(loss * self.world, scale_wrt_gas=False)

    def step(self, lr: float) -> float:
        """Clip the gradient, update the weights and forget the gradient; returns its norm before clipping.

        Where that is not finite, on all ranks then, weights and moments stay as they are, bit for bit.
        """
        self.state.wait_until_written()
        for group in self._adamw.param_groups:
            group["lr"] = lr
        if self._deepspeed.zero_optimization():  # whose optimizers skip by themselves
            self._deepspeed.step()
            return float(self._deepspeed.get_global_grad_norm())
        norm = float(torch.nn.utils.clip_grad_norm_(self._trained.values(), self._max_grad_norm))
        if math.isfinite(norm):
            self._deepspeed.step()
        else:
            self._deepspeed.zero_grad()
        return norm

    def total(self, values: torch.Tensor, *, largest: bool = False) -> torch.Tensor:
        """Sum (or maximum) over all ranks."""
        values = values.detach().to(self._deepspeed.device, copy=True)
        comm.all_reduce(values, op=comm.ReduceOp.MAX if largest else comm.ReduceOp.SUM)
        return values.cpu()

    def gather(self, said: Any) -> list[Any]:
        """What each rank says, rank 0 first; every rank must call."""
        heard = [None] * self.world
        torch.distributed.all_gather_object(heard, said)
        return heard

    def copy(self) -> dict[str, torch.Tensor]:
        """What is trained, by name, as it is now on this rank; see `weights.holding`."""
        return {name: p.detach().clone() for name, p in self._trained.items()}

    @contextlib.contextmanager
    def gathered(self) -> Iterator[Any]:
        """The model with whole weights on rank 0, of an adapter the float32 ones; every rank must enter."""
        module = self._deepspeed.module
        exact = _masters(self._trained) if has_adapter(module) else {}
        with (
            deepspeed.zero.GatheredParameters(list(module.parameters()), enabled=self._stage == 3),
            holding(module, exact),
        ):
            yield module

    def changes(self, policy: Policy, num_bytes: int) -> Adapter | Weights | None:
        """What a sampler of the checkpoint lacks: the adapter (None but on rank 0), or all weights in buckets.

        Every rank must call, and go through the buckets. What they hold is on rank 0 alone, in the weights' own dtype:
        at most `num_bytes` each, or one tensor that is larger.
        """
        module = self._deepspeed.module
        if has_adapter(module):
            with self.gathered():
                return None if self.rank else take(module)
        if not self._parts:
            self._parts = policy.weight_parts(module)
        names = frozenset(name for part in self._parts for name in part.names)
        buckets = make_buckets(
            self._parts,
            num_bytes,
            lambda part: policy.named_weights(module, part),
            lambda parameters: deepspeed.zero.GatheredParameters(parameters, enabled=self._stage == 3),
        )
        is_view = self._stage != 3 and self._deepspeed.device.type == "cpu"
        return Weights(names=names, buckets=map(self._own, buckets), num_alive=2 if is_view else 1)

    def _own(self, bucket: Bucket) -> Bucket:
        return {} if self.rank else bucket

    def save_policy(self, policy: Policy, path: Path) -> None:
        """Write a checkpoint from rank 0; every rank must call."""
        with self.gathered() as module:
            if self.rank == 0:
                policy.save(module, path)
        comm.barrier()

    def close(self) -> None:
        """Leave the process group, once the state that is being written is."""
        self.state.wait_until_written()
        self._deepspeed.destroy()
        comm.destroy_process_group()


def poisoned(loss: torch.Tensor) -> torch.Tensor:
    """A loss that is not finite with a gradient that is NaN throughout; any other as it is.

    So that the sum of all ranks' gradients tells each of them, and none has to ask the others: a loss may be infinite
    while a mask, or a ratio that is clipped, keeps its gradient finite.
    """
    return loss * torch.where(torch.isfinite(loss.detach()), 1.0, math.nan)


def _zero_stage(cfg: LearnerConfig) -> int:
    """DeepSpeed keeps float32 masters of bfloat16 weights in its ZeRO optimizers only."""
    return 2 if cfg.dtype == "bfloat16" and cfg.zero_stage == 0 else cfg.zero_stage


def deepspeed_config(cfg: LearnerConfig) -> dict[str, Any]:
    """What `deepspeed.initialize` is told; the optimizer is ours."""
    return {
        "train_micro_batch_size_per_gpu": 1,  # DeepSpeed only counts with it
        "gradient_accumulation_steps": 1,
        "gradient_clipping": cfg.max_grad_norm,
        "bf16": {"enabled": cfg.dtype == "bfloat16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": {"stage": _zero_stage(cfg), "overlap_comm": False},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }


@contextlib.contextmanager
def _keeping_masters(trained: Mapping[str, torch.nn.Parameter]) -> Iterator[None]:
    """Start DeepSpeed's engine; float32 parameters of a bfloat16 model keep their bits in its float32 masters.

    It takes the masters from parameters that it has rounded before.
    """
    exact = {name: p.detach().clone() for name, p in trained.items() if p.dtype == torch.float32}
    yield
    for name, value in exact.items():
        if trained[name].dtype != torch.float32:
            safe_set_full_fp32_param(trained[name], value.to(trained[name].device))


def _masters(trained: Mapping[str, torch.nn.Parameter]) -> dict[str, torch.Tensor]:
    """Name -> float32 value, which the optimizer updates; not of ZeRO-3. Every rank must call."""
    full = {name: safe_get_full_fp32_param(p) for name, p in trained.items()}
    return {name: trained[name].detach() if value is None else value for name, value in full.items()}
