"""Teachers and their lifetimes.

A frozen teacher is no submodule of anything that trains, so it is in no optimiser, checkpoint or DDP wrapper, and
nothing switches it to train mode. An EMA teacher is a callback, because it moves and must survive a resume.
"""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from kdbench.engine.cache import TeacherCache, jagged, select
from kdbench.engine.distributed import first_decides
from kdbench.engine.seeds import axis
from kdbench.errors import UnknownNameError, unknown

T = TypeVar("T")
Outputs = dict[str, Tensor]
OUTPUT = "teacher output"


class Named(dict[str, T]):
    """Values by name; for a name that is not there :class:`UnknownNameError` tells those that are."""

    def __init__(self, kind: str, values: Mapping[str, T]) -> None:
        super().__init__(values)
        self.kind = kind

    def __missing__(self, name: str) -> T:
        raise UnknownNameError(str(unknown(self.kind, name, self)))


def weights_digest(module: nn.Module) -> str:
    """SHA-256 over names, shapes, types and bytes of a module's state, and its printed architecture."""
    digest = hashlib.sha256(repr(module).encode())
    for name, value in module.state_dict().items():
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Teacher(ABC):
    """Gives named outputs whose rows are the rows of a batch."""

    sha256: str

    @abstractmethod
    def __call__(self, batch: Any) -> Outputs:
        """Outputs for a batch, without gradient.

        Each is ``[b, *]``, jagged ``[b, j, *]`` where its rows differ in length, or one for all rows, of any shape.
        """

    def to(self, device: torch.device) -> None:  # noqa: B027
        """Be ready for batches on this device: the engine says so when a fit starts."""


class FrozenTeacher(Teacher):
    """A network in eval mode without gradients. ``forward(network, batch)`` gives its outputs.

    ``sha256`` is that of the network's weights, unless it is given; ``shared`` names outputs that are one for all rows.
    """

    def __init__(
        self,
        network: nn.Module,
        forward: Callable[[nn.Module, Any], Outputs],
        sha256: str | None = None,
        shared: tuple[str, ...] = (),
    ) -> None:
        self.shared = shared
        self.network = network.eval().requires_grad_(False)
        self.sha256 = sha256 or weights_digest(network)
        self.module: str = getattr(forward, "__module__", type(forward).__module__)
        """Where ``forward`` is written."""
        self._forward = forward

    def to(self, device: torch.device) -> None:
        self.network.to(device)

    def __call__(self, batch: Any) -> Outputs:
        with torch.no_grad():
            return Named(OUTPUT, self._forward(self.network, batch))


class CachedTeacher(Teacher):
    """The cached rows of a frozen teacher. ``rows(batch)`` gives the row numbers; ``order`` re-maps them (controls)."""

    def __init__(
        self, cache: TeacherCache, rows: Callable[[Any], Tensor], sha256: str, order: Tensor | None = None
    ) -> None:
        self.cache, self.sha256 = cache, sha256
        self._rows, self._order = rows, order
        self._last: tuple[Tensor, Outputs] | None = None

    def __call__(self, batch: Any) -> Outputs:
        rows = self._rows(batch)
        if self._last is None or not torch.equal(self._last[0], rows):  # full batches ask for the same rows each step
            at = rows.cpu() if self._order is None else self._order[rows.cpu()]
            outputs = {name: value.to(rows.device) for name, value in self.cache.read(at).items()}
            self._last = (rows, Named(OUTPUT, outputs))
        return self._last[1]


class RandomTeacher(Teacher):
    """Control: outputs drawn once per row from a normal law with each column's own mean and standard deviation.

    ``number`` tells the draws of several teachers apart.
    """

    def __init__(self, cache: TeacherCache, rows: Callable[[Any], Tensor], seed: int, number: int = 0) -> None:
        self.sha256 = hashlib.sha256(f"random {cache.key.hash} {seed}".encode()).hexdigest()
        self._rows = rows
        stream = axis(seed, "control", number) if number else axis(seed, "control")
        generator = torch.Generator().manual_seed(stream)
        self._table: Outputs = {}
        for name, value in cache.read(torch.arange(cache.key.rows)).items():
            real = jagged(value)[0] if value.is_nested else value
            noise = torch.randn(real.shape, generator=generator)
            drawn = noise * real.std(dim=0, keepdim=True) + real.mean(dim=0, keepdim=True)
            nested = torch.nested.nested_tensor_from_jagged
            self._table[name] = nested(drawn, jagged(value)[1]) if value.is_nested else drawn
        self._shared = cache.key.shared

    def __call__(self, batch: Any) -> Outputs:
        rows = self._rows(batch)
        at = rows.cpu()
        outputs = {n: value if n in self._shared else select(value, at) for n, value in self._table.items()}
        return Named(OUTPUT, {name: value.to(rows.device) for name, value in outputs.items()})


def shuffled(groups: Tensor, seed: int) -> Tensor:
    """Control: a permutation of the rows inside each group (``groups``: int ``[rows]``, e.g. train, val, test).

    Inside groups, because a tuned teacher's rows are distributed differently on the nodes that it was tuned on.
    """
    generator = torch.Generator().manual_seed(axis(seed, "control"))
    order = torch.arange(len(groups))
    for group in sorted(set(groups.tolist())):
        members = (groups == group).nonzero().flatten()
        order[members] = members[torch.randperm(len(members), generator=generator)]
    return order


class EMATeacher(pl.Callback, Teacher):
    """A moving average of the student: ``t ← keep · t + (1 − keep) · s`` after every ``every`` optimiser steps.

    Floating-point parameters and buffers move; integer buffers are copied. Its state travels in the checkpoint, where
    ``name`` tells teachers of the same settings apart. With ``deploy`` the average is what is validated, selected and
    deployed, in the student's place.
    """

    sha256 = ""

    def __init__(
        self,
        keep: float,
        forward: Callable[[nn.Module, Any], Outputs],
        every: int = 1,
        deploy: bool = False,
        name: str = "teacher",
    ) -> None:
        self.keep, self.every, self.deploy, self.name = keep, every, deploy, name
        self._forward, self._steps = forward, 0
        self.network: nn.Module | None = None
        self._restored: Mapping[str, Tensor] | None = None

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.network = copy.deepcopy(module.get_submodule("student")).eval().requires_grad_(False)
        if self._restored is not None:
            self.network.load_state_dict(self._restored)

    @property
    def state_key(self) -> str:
        """The place of its state in a checkpoint, its own beside other moving averages."""
        return self._generate_state_key(name=self.name, keep=self.keep, every=self.every)

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        self._steps = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step // self.every > self._steps // self.every:
            student = module.get_submodule("student")
            if trainer.world_size > 1:
                first_decides(student.buffers())  # running statistics differ until the next forward pass
            self.update(student)

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.deploy:
            self._exchange(module.get_submodule("student"))

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.deploy:
            self._exchange(module.get_submodule("student"))

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert self.network is not None
        self.sha256 = weights_digest(self.network)

    @torch.no_grad()
    def _exchange(self, student: nn.Module) -> None:
        """Swap weights with the student; done twice around a validation, after the selection has looked."""
        for mine, theirs in self._pairs(student):
            kept = mine.clone()
            mine.copy_(theirs)
            theirs.copy_(kept)

    @torch.no_grad()
    def update(self, student: nn.Module) -> None:
        """Move once towards ``student``."""
        # torch's AveragedModel rounds otherwise (a lerp) and copies at its first update: other bits than records hold
        for mine, theirs in self._pairs(student):
            if mine.is_floating_point():
                mine.mul_(self.keep).add_(theirs, alpha=1 - self.keep)
            else:
                mine.copy_(theirs)

    def _pairs(self, student: nn.Module) -> Iterable[tuple[Tensor, Tensor]]:
        """The average's tensors and the student's; one that several names share comes once."""
        assert self.network is not None
        mine, theirs = (network.state_dict(keep_vars=True).values() for network in (self.network, student))
        return {id(one): (one, other) for one, other in zip(mine, theirs, strict=True)}.values()

    def __call__(self, batch: Any) -> Outputs:
        assert self.network is not None
        with torch.no_grad():
            return Named(OUTPUT, self._forward(self.network, batch))

    def state_dict(self) -> dict[str, Any]:
        return {} if self.network is None else {"network": self.network.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict.get("network")
