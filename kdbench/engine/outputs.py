"""A teacher's outputs that were computed elsewhere: read from a file, checked row by row, and served as a teacher.

The file is ``.npz`` or ``.safetensors`` and holds arrays: ``ids`` (int ``[n]``, the rows that ``kdbench data rows
TASK`` lists, in any order), ``logits`` ``[n, C, …]``, and any further output by its name, such as ``hop0`` ``[n, d]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import Tensor, nn

from kdbench.engine import inputs
from kdbench.engine.teachers import FrozenTeacher, Outputs
from kdbench.errors import DataError, UsageError
from kdbench.hashing import file_digest

IDS = "ids"
DESCRIPTION = "outputs computed elsewhere"


class Table(nn.Module):
    """The outputs of every row, kept where they were read: a frozen network whose forward pass looks them up."""

    def __init__(self, outputs: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, rows: Tensor) -> Outputs:
        """The outputs of ``rows`` (int64 ``[b]``), on their device."""
        return {name: value[rows.cpu()].to(rows.device) for name, value in self.outputs.items()}


def teacher(path: str | None, rows: int, shape: tuple[int, ...], rows_of: Callable[[Any], Tensor]) -> FrozenTeacher:
    """The teacher whose outputs a file holds; its hash is that of the file.

    ``rows``: how many the task has; ``shape``: of the logits of one. Raises :class:`UsageError` or :class:`DataError`
    for a file that is missing, is damaged or is of other rows, shapes or classes.
    """
    if path is None:
        raise UsageError("teacher.source=outputs reads teacher.path=FILE (.npz or .safetensors), and none is given.")
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"teacher.path={path}: there is no such file.")
    sha256, outputs = file_digest(file), read(file, rows, shape)

    def forward(table: nn.Module, batch: Any) -> Outputs:
        by_row: Outputs = table(rows_of(batch))
        return by_row

    return FrozenTeacher(Table(outputs), forward, sha256)


def read(path: Path, rows: int, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """The outputs in the order of the rows, float32, by name; :class:`DataError` names the first fault."""
    arrays = _arrays(path)
    if IDS not in arrays or "logits" not in arrays:
        held = ", ".join(arrays) or "nothing"
        raise DataError(
            f"{path} holds {held}; it must hold '{IDS}' [n] and 'logits' {['n', *shape]}.".replace("'n'", "n")
        )
    place = _places(path, arrays.pop(IDS), rows)
    outputs = {}
    for name, values in arrays.items():
        wanted = (rows, *shape) if name == "logits" else (rows, *[None] * (values.ndim - 1))
        if name == "logits" and values.ndim == len(wanted) and values.shape[1] != shape[0]:
            raise DataError(f"{path}: its logits are of {values.shape[1]} classes, the task has {shape[0]}.")
        inputs.numbers(values, f"{path}: '{name}'", wanted)
        outputs[name] = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[place]
    return outputs


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with inputs.reading(path):
        if path.suffix == ".npz":
            with np.load(path) as archive:
                return dict(archive)
        if path.suffix == ".safetensors":
            try:
                return dict(load_file(path))
            except SafetensorError as error:
                raise ValueError(error) from None
    raise UsageError(f"teacher.path={path}: outputs are read from .npz and .safetensors files.")


def _places(path: Path, ids: np.ndarray, rows: int) -> Tensor:
    """Where the file has each row, int64 ``[rows]``."""
    again = f"'kdbench data rows' lists the {rows} rows of the task"
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise DataError(
            f"{path}: '{IDS}' are {ids.dtype} of shape {list(ids.shape)}, not one whole number a row; {again}."
        )
    extra = ids[(ids < 0) | (ids >= rows)]
    if len(extra):
        raise DataError(f"{path}: {len(extra)} of its ids are no rows of the task, such as {extra[0]}; {again}.")
    counts = np.bincount(ids.astype(np.int64), minlength=rows)
    if (counts == 0).any():
        missing = np.flatnonzero(counts == 0)
        raise DataError(f"{path}: {len(missing)} rows of the task are missing, such as {missing[0]}; {again}.")
    if (counts > 1).any():
        raise DataError(f"{path}: id {int((counts > 1).argmax())} comes twice; {again}.")
    return torch.from_numpy(np.argsort(ids))
