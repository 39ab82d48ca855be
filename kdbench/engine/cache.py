"""The teacher cache: every output of a frozen teacher for every row of the data, in one memory map."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from kdbench.errors import KdbenchError, StaleCacheError
from kdbench.hashing import digest, file_digest, remove_unfinished, write_atomic, writing

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheKey:
    """What a cached row depends on; any difference makes another cache."""

    teacher: str
    """SHA-256 of the teacher's weights and architecture."""
    outputs: tuple[str, ...]
    """Names of the outputs, in order."""
    data: str
    """Fingerprint of the data."""
    rows: int
    """Number of rows."""
    dtype: str = "float32"
    code: str = ""
    """SHA-256 of the code that computes the outputs from weights and data."""
    device: str = "cpu"
    """Type of the device that computes them: each rounds in its own way."""

    @property
    def hash(self) -> str:
        """SHA-256 over what the outputs are of: all parts but the code and the device."""
        parts = {name: _plain(value) for name, value in asdict(self).items() if name not in ("code", "device")}
        return digest({**parts, "view_seed": None})  # a part that there was: records hold hashes of random teachers

    @property
    def address(self) -> str:
        """SHA-256 over all parts: names the cache."""
        return digest({"outputs": self.hash, "code": self.code, "device": self.device})


class DamagedCacheError(KdbenchError):
    """A teacher cache whose files are not those that were written."""


class TeacherCache:
    """Rows of named outputs, stored side by side so that one row is one contiguous read.

    The map holds ``[rows, sum of widths]`` values of ``key.dtype``; an output of shape ``[rows, *s]`` takes ``prod(s)``
    columns. float32 rows come back bit for bit.
    """

    def __init__(self, folder: Path, key: CacheKey) -> None:
        """Open a finished cache.

        Raises :class:`StaleCacheError` when it was written for another key, :class:`DamagedCacheError` when its files
        are not those that were written.
        """
        manifest = _manifest(folder / "cache.json")
        if manifest["key"] != key.address:
            differs = [name for name, value in asdict(key).items() if _plain(value) != manifest["parts"].get(name)]
            raise StaleCacheError(
                f"The teacher cache in {folder} was made for another {', '.join(differs) or 'key'}; "
                "delete the folder to make it again."
            )
        rows = folder / "rows.bin"
        if not rows.exists() or file_digest(rows) != manifest["rows"]:
            raise DamagedCacheError(f"{rows} is damaged: its digest is not the one in cache.json.")
        self.key = key
        self.shapes: dict[str, tuple[int, ...]] = {name: tuple(shape) for name, shape in manifest["shapes"].items()}
        self._widths = [math.prod(shape) for shape in self.shapes.values()]
        data = np.memmap(rows, dtype=key.dtype, mode="c", shape=(key.rows, sum(self._widths)))
        self._rows = torch.from_numpy(data)

    @classmethod
    def ensure(cls, root: Path, key: CacheKey, chunks: Iterable[Mapping[str, Tensor]]) -> TeacherCache:
        """Open the cache of ``key`` under ``root``, first writing it from ``chunks`` (rows in order) if need be.

        A lock keeps two processes from writing it twice; a killed writer leaves nothing that opens, and a damaged cache
        is made again.
        """
        folder = root / key.address[:16]
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):
            remove_unfinished(folder)
            if (folder / "cache.json").exists():
                try:
                    return cls(folder, key)
                except DamagedCacheError as error:
                    log.warning("%s The teacher cache is made again.", error)
            cls._write(folder, key, chunks)
        return cls(folder, key)

    @staticmethod
    def _write(folder: Path, key: CacheKey, chunks: Iterable[Mapping[str, Tensor]]) -> None:
        shapes: dict[str, tuple[int, ...]] = {}
        rows, seen = 0, hashlib.sha256()
        with writing(folder / "rows.bin") as stream:
            for chunk in chunks:
                if tuple(chunk) != key.outputs:
                    raise StaleCacheError(
                        f"The teacher gives {', '.join(chunk)}; the cache is for {', '.join(key.outputs)}."
                    )
                shapes = {name: tuple(value.shape[1:]) for name, value in chunk.items()}
                flat = torch.cat([value.detach().cpu().flatten(1) for value in chunk.values()], dim=1)
                content = np.ascontiguousarray(flat.numpy(), dtype=key.dtype).tobytes()
                seen.update(content)
                stream.write(content)
                rows += len(flat)
            if rows != key.rows:
                raise StaleCacheError(f"The teacher gave {rows} rows for data of {key.rows}.")
        parts = {name: _plain(value) for name, value in asdict(key).items()}
        told = {"key": key.address, "parts": parts, "shapes": shapes, "rows": seen.hexdigest()}
        write_atomic(folder / "cache.json", json.dumps({**told, "sha256": digest(told)}, indent=1))

    def read(self, rows: Tensor) -> dict[str, Tensor]:
        """The outputs of ``rows`` (int64 ``[b]``): name -> ``[b, *shape]``."""
        block = self._rows.index_select(0, rows)
        parts = torch.split(block, self._widths, dim=1)
        return {n: part.reshape(-1, *shape) for (n, shape), part in zip(self.shapes.items(), parts, strict=True)}


def _manifest(path: Path) -> dict[str, Any]:
    """What a cache says of itself, checked against its own digest."""
    try:
        told: dict[str, Any] = json.loads(path.read_bytes())
        if told.pop("sha256") != digest(told):
            raise ValueError("its digest is not that of its content")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCacheError(f"{path} is damaged ({error}), or of an older kdbench.") from None
    return told


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
