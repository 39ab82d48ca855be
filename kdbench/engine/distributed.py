"""Several processes: who we are, and rows gathered with their gradients."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.distributed.nn.functional import all_gather

from kdbench.errors import UsageError
from kdbench.plan.options import Trainer

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID")


def rank(processes: int) -> int:
    """Our number among the ``processes`` of this run: the process group's, else the launcher's, else 0.

    A run of one process does not ask: a shell may have kept the variables of a launcher that ended long ago.
    """
    if processes == 1:
        return 0
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    return next((int(os.environ[name]) for name in RANK_VARIABLES if name in os.environ), 0)


def started() -> int:
    """Processes that ``srun`` started together with this one, itself included; 1 elsewhere."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))


@contextmanager
def processor_threads(count: int) -> Iterator[None]:
    """Compute with so many threads, in torch and in the libraries of linear algebra that other packages bring."""
    before, known = torch.get_num_threads(), {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(count)))  # for libraries that are not loaded yet
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count):
            yield
    finally:
        torch.set_num_threads(before)
        for name, value in known.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def check_started(options: Trainer) -> None:
    """UsageError where ``srun`` started several processes, but not those that the trainer's options ask for.

    Each would do the whole run by itself, all of them in one folder.
    """
    if started() not in (1, options.processes):
        raise UsageError(
            f"srun started {started()} processes, but trainer.num_nodes={options.num_nodes} times "
            f"trainer.devices={options.devices} makes {options.processes}. One run on several: "
            "srun --nodes=N --ntasks-per-node=D kdbench run trainer.num_nodes=N trainer.devices=D trainer.strategy=ddp"
        )


def check_place(options: Trainer) -> None:
    """UsageError where this machine lacks what the trainer's options ask for; it tells what there is."""
    gpus = torch.cuda.device_count() or int(torch.backends.mps.is_available())
    wanted = {"cpu": 0, "gpu": options.devices, "auto": options.devices if gpus else 0}[options.accelerator]
    if wanted > gpus:
        raise UsageError(
            f"trainer.accelerator={options.accelerator} and trainer.devices={options.devices} ask for as many GPUs; "
            f"torch finds {gpus or 'none'} here, beside {os.cpu_count()} processor cores. "
            f"Choose {f'trainer.devices={gpus} or ' if gpus else ''}trainer.accelerator=cpu."
        )
    if options.precision == "16-mixed" and not wanted:
        raise UsageError(
            "trainer.precision=16-mixed needs a GPU: processors have no half-precision training. "
            "Choose trainer.precision=bf16-mixed or 32-true."
        )


def in_all(mine: Tensor) -> bool:
    """Whether ``mine`` (a bool scalar) is true in every process of a fit; all of them must ask."""
    verdict = mine.to(torch.uint8)
    dist.all_reduce(verdict, dist.ReduceOp.MIN)
    return bool(verdict)


def of_all(value: Any) -> list[Any]:
    """What each process of a fit gives, in rank order; all of them must ask."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def first_decides(tensors: Iterable[Tensor]) -> None:
    """Overwrite ``tensors`` by those of the first process of a fit; all of them must ask."""
    for tensor in tensors:
        dist.broadcast(tensor, 0)


def gather(rows: Tensor) -> tuple[Tensor, int]:
    """All processes' rows ``[W·b, *]`` in rank order, and the offset of ours; gradients flow back to every process.

    A loss over gathered rows, averaged over local anchors, equals under DDP the same loss of one process on the global
    batch. Every process must hold the same number of rows.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows, 0
    parts = all_gather(rows) if rows.requires_grad else _all_gather(rows)  # type: ignore[no-untyped-call]
    return torch.cat(list(parts)), dist.get_rank() * len(rows)


def _all_gather(rows: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows.contiguous())
    return parts
