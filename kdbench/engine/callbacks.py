"""Lightning callbacks of the protocol: streams per epoch, selection on validation, curves, progress, checkpoints."""

from __future__ import annotations

import hashlib
import logging
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor, nn

from kdbench.engine.seeds import axis
from kdbench.errors import KdbenchError, StoppedError
from kdbench.hashing import writing

log = logging.getLogger(__name__)
DIGEST = hashlib.sha256().digest_size  # bytes at the end of a checkpoint

stop_asked = threading.Event()
"""Set, from a signal handler say, to end what is being trained after its epoch, with a checkpoint."""


class StepStreams(pl.Callback):
    """Seeds torch before every step from (run seed, epoch, batch, process): resuming needs no saved random state.

    Not once an epoch, because making a loader's iterator draws from torch's global stream too.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        value = axis(self.seed, "training", trainer.current_epoch, batch_idx, trainer.global_rank)
        if module.device.type == "cpu":
            torch.default_generator.manual_seed(value)  # as torch.manual_seed, less the devices that it looks for
        else:
            torch.manual_seed(value)


class Selection(pl.Callback):
    """Keeps the weights of the best validation, in memory and beside the checkpoint; the first of equals.

    ``weights`` are the student's, ``networks`` those of what is trained beside it where these are ``wanted`` too.

    A validation whose score is not finite chooses nothing; if there is no other the fit ends with
    :class:`KdbenchError`. ``last`` keeps the weights of the last validation instead, whatever its score: for tasks
    whose protocol has no labels to choose by.
    """

    def __init__(self, metric: str, mode: str = "max", last: bool = False, wanted: bool = False) -> None:
        self.metric, self.mode, self.last, self.wanted = metric, mode, last, wanted
        self.epoch, self.value = -1, float("nan")
        self.weights: dict[str, Tensor] = {}
        self.networks: dict[str, Tensor] = {}

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        value = float(trainer.callback_metrics[f"val/{self.metric}"])
        better = value > self.value if self.mode == "max" else value < self.value
        if self.last or (math.isfinite(value) and (self.epoch < 0 or better)):
            self.keep(module, trainer.current_epoch, value)

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.epoch < 0:
            raise KdbenchError(
                f"No weights can be chosen: val/{self.metric} was not finite at any validation of the "
                f"{trainer.current_epoch} epochs. The metric is undefined on this split, or training diverged."
            )

    def keep(self, module: pl.LightningModule, epoch: int, value: float) -> None:
        """Take the weights as they are now."""
        self.epoch, self.value = epoch, value
        self.weights = _copied(module.get_submodule("student"))
        self.networks = _copied(module.get_submodule("networks")) if self.wanted else {}

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("epoch", "value", "weights", "networks")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            setattr(self, name, value)


def _copied(module: nn.Module) -> dict[str, Tensor]:
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in module.state_dict().items()
    }


class Curves(pl.Callback):
    """Collects every logged value at each validation, and seconds and optimiser steps; all survive a resume."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {"epoch": []}
        self.seconds, self.steps = 0.0, 0
        self._since = 0.0

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._since = time.perf_counter()

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.steps = trainer.global_step

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        now = time.perf_counter()
        self.seconds, self._since = self.seconds + now - self._since, now
        if (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1):
            return
        self.values["epoch"].append(float(trainer.current_epoch))
        for name, value in trainer.callback_metrics.items():
            if "/" in name:
                self.values.setdefault(name, []).append(float(value))

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.values, self.seconds = state_dict["values"], state_dict["seconds"]


class Progress(pl.Callback):
    """Reports ``(epochs done, epochs in all, newest validation value)`` after each epoch."""

    def __init__(self, report: Callable[[int, int, float | None], None], metric: str) -> None:
        self.report, self.metric = report, metric

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        value = trainer.callback_metrics.get(f"val/{self.metric}")
        self.report(trainer.current_epoch + 1, trainer.max_epochs or 0, None if value is None else float(value))


class Checkpoints(Checkpoint):
    """``folder/last.ckpt`` every ``every`` epochs, and once more when :data:`stop_asked` is set, which ends the fit.

    With ``steps`` also after so many optimiser steps within an epoch, where a stop that was asked for then takes place.
    Of several processes all stop at the same point, whichever was asked. Raises :class:`StoppedError`.
    """

    def __init__(self, folder: Path, every: int, steps: int | None = None) -> None:
        self.place, self.every, self.steps = folder / "last.ckpt", every, steps
        self._seen = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._seen = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.steps:
            return
        stepped, self._seen = trainer.global_step != self._seen, trainer.global_step
        ends = trainer.is_last_batch or trainer.should_stop  # a validation is still to come
        if stepped and trainer.global_step % self.steps == 0 and not ends:
            trainer.save_checkpoint(self.place)
            self._stop(trainer, f"step {trainer.global_step}")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epochs = trainer.current_epoch + 1
        if epochs % self.every == 0:
            trainer.save_checkpoint(self.place)
        self._stop(trainer, f"epoch {epochs}")

    def _stop(self, trainer: pl.Trainer, where: str) -> None:
        if trainer.strategy.reduce_boolean_decision(stop_asked.is_set(), all=False):
            trainer.save_checkpoint(self.place)
            raise StoppedError(f"Stopped after {where}; the checkpoint is written.")


class StepBudget(pl.Callback):
    """Ends the fit after ``steps`` optimiser steps, with a validation of what it has come to."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step >= self.steps:
            trainer.should_stop, trainer.check_val_every_n_epoch = True, 1


SELECTION = Selection.__qualname__
"""Where a checkpoint holds the state of a :class:`Selection`."""


class CheckedCheckpoints(TorchCheckpointIO):
    """Checkpoints that appear whole or not at all, end with their SHA-256, and are read without running what they hold.

    Written beside the place and renamed; Lightning's own detour over ``$TMPDIR`` copies between file systems. Selected
    weights lie beside the checkpoint, ``selected-EPOCH.ckpt``, written when the selection changes: the checkpoint holds
    their SHA-256, and is damaged without them.
    """

    def __init__(self) -> None:
        self._checked: dict[str, Any] | None = None
        self._selected = -1, ""  # epoch and SHA-256 of the selected weights on the disk

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        place, callbacks = Path(path), checkpoint.get("callbacks", {})
        state = callbacks.get(SELECTION, {"epoch": -1})
        if (epoch := state["epoch"]) >= 0:
            slim = {name: value for name, value in state.items() if name not in ("weights", "networks")}
            if epoch != self._selected[0]:
                weights = {name: value for name, value in state.items() if name not in slim}
                self._selected = epoch, _write(weights, _selected(place, epoch))
            slim["sha256"] = self._selected[1]
            checkpoint = {**checkpoint, "callbacks": {**callbacks, SELECTION: slim}}
        _write(checkpoint, place)
        for held in place.parent.glob("selected-*.ckpt"):
            if held != _selected(place, epoch):
                held.unlink()

    def start(self, path: Path, set_aside: bool) -> str | None:
        """The checkpoint to go on from, read and checked; None where there is none.

        One that cannot be used counts as none; with ``set_aside`` it is renamed to ``…damaged`` and the user is told.
        """
        if not path.exists():
            return None
        try:
            self._checked = self._read(path)
        except ValueError as error:
            if set_aside:
                aside = path.rename(path.with_name(f"{path.name}.damaged"))
                log.warning("%s: %s It is set aside as %s; its training starts over.", path, error, aside.name)
            return None
        return str(path)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        checkpoint, self._checked = self._checked, None
        return checkpoint or self._read(Path(path))

    def _read(self, path: Path) -> dict[str, Any]:
        checkpoint, _ = _content(path)
        state = checkpoint.get("callbacks", {}).get(SELECTION, {})
        if "sha256" in state:
            selected = _selected(path, state["epoch"])
            weights, sha256 = _content(selected) if selected.exists() else ({}, "")
            if sha256 != state.pop("sha256"):
                raise ValueError(f"the checkpoint is damaged: {selected.name} is not what it was written with.")
            state |= weights
            self._selected = state["epoch"], sha256
        return checkpoint


def remove_checkpoint(folder: Path) -> None:
    """Remove the checkpoint of a fit that is done, or that is not gone on with."""
    for path in (folder / "last.ckpt", *folder.glob("selected-*.ckpt")):
        path.unlink(missing_ok=True)


def _selected(checkpoint: Path, epoch: int) -> Path:
    return checkpoint.with_name(f"selected-{epoch}.ckpt")


def _write(content: dict[str, Any], path: Path) -> str:
    """Write a file that ends with the SHA-256 of its content, which is returned in hexadecimal digits."""
    with writing(path) as stream:
        hashed = _Hashed(stream)
        torch.save(content, hashed)  # type: ignore[arg-type]
        stream.write(hashed.digest.digest())
    return hashed.digest.hexdigest()


class _Hashed:
    """Passes bytes on to a stream and hashes them, so that a checkpoint is never whole in memory."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.digest = stream, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.stream.write(data)

    def flush(self) -> None:
        self.stream.flush()


def _content(path: Path) -> tuple[dict[str, Any], str]:
    """What :func:`_write` wrote, and its SHA-256; never whole in memory as bytes too."""
    digest, left = hashlib.sha256(), path.stat().st_size - DIGEST
    with path.open("rb") as stream:
        while left > 0:
            block = stream.read(min(left, 1 << 20))
            digest.update(block)
            left -= len(block)
        if stream.read() != digest.digest():
            raise ValueError(
                "the checkpoint is damaged, or of an older kdbench: its digest is not that of its content."
            )
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ValueError("the checkpoint holds other than tensors, numbers, texts, lists and mappings.") from error
    return content, digest.hexdigest()
