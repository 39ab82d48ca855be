"""What a run costs: parameters, floating-point operations, latency, peak memory; and what it ran on."""

from __future__ import annotations

import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import kdbench
from kdbench.plan.family import recorded_packages

PACKAGES = ("torch", "pytorch-lightning", "torchmetrics", "numpy", "scipy")
"""Packages that the numbers of every family depend on."""


def parameters(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def flops(forward: Callable[[], Any]) -> int:
    """Floating-point operations of one forward pass: the products and convolutions that torch's FlopCounterMode counts,
    and sparse products, ``2 · stored values · width``.

    A sum of messages by index is a product with a sparse matrix, and counts as one: 2 operations for each number of a
    message.
    """
    with FlopCounterMode(display=False, custom_mapping=_SPARSE) as counter, torch.no_grad():
        forward()
    return int(counter.get_total_flops())


def _product(first: Tensor, second: Tensor, **rest: Any) -> int:
    """``first @ second``, either of them sparse or dense."""
    for one, other in ((first, second.shape[-1]), (second, first.shape[0])):
        if one.layout != torch.strided:
            return 2 * one._nnz() * other
    return 2 * math.prod(first.shape) * second.shape[-1]


def _sum_product(added: Tensor, first: Tensor, second: Tensor, **rest: Any) -> int:
    return _product(first, second)


def _summed(into: Tensor, dim: int, index: Tensor, messages: Tensor, *rest: Any, **named: Any) -> int:
    return 2 * messages.numel()


def _reduced(into: Tensor, dim: int, index: Tensor, messages: Tensor, reduce: str, **named: Any) -> int:
    return 2 * messages.numel() if reduce in ("sum", "mean") else 0


_aten = torch.ops.aten
_SPARSE: dict[Any, Callable[..., int]] = {
    _aten.mm: _product,
    _aten.addmm: _sum_product,
    _aten._sparse_addmm: _sum_product,
    **dict.fromkeys((_aten.index_add, _aten.index_add_, _aten.scatter_add, _aten.scatter_add_), _summed),
    **dict.fromkeys((_aten.scatter_reduce, _aten.scatter_reduce_), _reduced),
}
for _count in _SPARSE.values():
    _count._get_raw = True  # type: ignore[attr-defined]  # tensors, not their shapes


def latency_ms(forward: Callable[[], Any], device: torch.device, repeats: int = 15) -> float:
    """Median milliseconds of one forward pass after three to warm up."""

    def once() -> float:
        start = time.perf_counter()
        forward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    with torch.no_grad():
        for _ in range(3):
            once()
        return 1e3 * statistics.median(once() for _ in range(repeats))


class PeakMemory:
    """Peak memory of this process from here to :meth:`bytes`: CUDA's own count, else Linux's resident peak."""

    def __init__(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self._resets = True
        except OSError:
            self._resets = False

    def bytes(self) -> int | None:
        """The peak so far; None where the system cannot reset it."""
        if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
            return int(torch.cuda.max_memory_allocated())
        if not self._resets:
            return None
        lines = Path("/proc/self/status").read_text().splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)


def versions() -> dict[str, str]:
    """Versions of kdbench, Python and the packages that numbers depend on."""
    installed = {"kdbench": kdbench.__version__, "python": platform.python_version()}
    for name in (*PACKAGES, *recorded_packages()):
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed


def hardware(device: torch.device) -> dict[str, Any]:
    """Processor, cores, threads, memory and accelerator."""
    return {
        "cpu": processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else "none",
        "os": platform.platform(terse=True),
    }


def processor() -> str:
    """The processor's name, with family, model and stepping where the system tells: names are shared by several."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    first = info.read_text().partition("\n\n")[0].splitlines()
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first)}
    name = told.get("model name") or platform.processor() or platform.machine()
    exact = {"family": "cpu family", "model": "model", "stepping": "stepping"}
    numbers = [f"{word} {told[key]}" for word, key in exact.items() if key in told]
    return f"{name}, {' '.join(numbers)}" if numbers else name


def load() -> float | None:
    """Processes that ran or waited, averaged over the last minute; None where the system does not tell."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def git_state() -> dict[str, Any]:
    """Commit and dirty flag of the checkout that kdbench runs from; None for both outside one."""
    here = Path(kdbench.__file__).parent.parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(here), *words], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    if git("ls-files", "--error-unmatch", "pyproject.toml") is None:
        return {"commit": None, "dirty": None}
    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
