"""The teacher cache: every output of a frozen teacher for every row of the data, in one memory map."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from kdbench.errors import KdbenchError, StaleCacheError
from kdbench.hashing import digest, file_digest, remove_unfinished, write_atomic, writing

log = logging.getLogger(__name__)


ROWS, OFFSETS, SHARED = "rows.bin", "offsets.bin", "shared.bin"
APART = ("code", "device", "shared")


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
    shared: tuple[str, ...] = ()
    """Names of the outputs that are one for all rows."""
    device: str = "cpu"
    """Type of the device that computes them: each rounds in its own way."""

    @property
    def hash(self) -> str:
        """SHA-256 over what the outputs are of: all parts but those that say how they come."""
        parts = {name: _plain(value) for name, value in asdict(self).items() if name not in APART}
        return digest({**parts, "view_seed": None})  # a part that there was: records hold hashes of random teachers

    @property
    def address(self) -> str:
        """SHA-256 over all parts: names the cache."""
        return digest({"outputs": self.hash, **{name: _plain(getattr(self, name)) for name in APART}})


class DamagedCacheError(KdbenchError):
    """A teacher cache whose files are not those that were written."""


class TeacherCache:
    """Rows of named outputs, stored side by side so that one row is one contiguous read.

    ``rows.bin`` holds ``[rows, sum of widths]`` values of ``key.dtype``; an output of shape ``[rows, *s]`` takes
    ``prod(s)`` columns. float32 rows come back bit for bit. Rows of different lengths (jagged nested tensors
    ``[rows, j, *s]``) lie one after the other in a file for each such output, with their offsets in another; what is
    one for all rows (``key.shared``, of any shape) is kept once.
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
        for name, sha256 in {ROWS: manifest["rows"], **manifest.get("files", {})}.items():
            if not (folder / name).exists() or file_digest(folder / name) != sha256:
                raise DamagedCacheError(f"{folder / name} is damaged: its digest is not the one in cache.json.")
        self.key = key
        self.shapes: dict[str, tuple[int, ...]] = {name: tuple(shape) for name, shape in manifest["shapes"].items()}
        self._widths = [math.prod(shape) for shape in self.shapes.values()]
        self._rows = _mapped(folder / ROWS, key.dtype, (key.rows, sum(self._widths)))
        self._ragged: dict[str, tuple[Tensor, Tensor]] = {}
        ragged: dict[str, list[int]] = manifest.get("ragged", {})
        offsets = _mapped(folder / OFFSETS, "int64", (len(ragged), key.rows + 1)) if ragged else torch.empty(0)
        for bounds, (name, shape) in zip(offsets, ragged.items(), strict=True):
            file = folder / _file(key, name)
            self._ragged[name] = _mapped(file, key.dtype, (int(bounds[-1]), *shape)), bounds
        self._shared: dict[str, Tensor] = {}
        if shared := manifest.get("shared", {}):
            sizes = [math.prod(shape) for shape in shared.values()]
            parts = torch.split(_mapped(folder / SHARED, key.dtype, (sum(sizes),)), sizes)
            self._shared = {n: part.reshape(shape) for (n, shape), part in zip(shared.items(), parts, strict=True)}

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
        ragged: dict[str, tuple[int, ...]] = {}
        bounds: dict[str, list[int]] = {}
        shared: dict[str, Tensor] = {}
        rows = 0
        with ExitStack() as open_files:
            files: dict[str, _Digested] = {}

            def write(name: str, values: Tensor) -> None:
                if name not in files:
                    files[name] = _Digested(open_files.enter_context(writing(folder / name)))
                files[name].write(np.ascontiguousarray(values.numpy(), dtype=key.dtype).tobytes())

            for chunk in chunks:
                count = 0
                if tuple(chunk) != key.outputs:
                    raise StaleCacheError(
                        f"The teacher gives {', '.join(chunk)}; the cache is for {', '.join(key.outputs)}."
                    )
                own = {name: value.detach().cpu() for name, value in chunk.items()}
                for name in key.shared:
                    if not torch.equal(shared.setdefault(name, own[name]), own.pop(name)):
                        raise StaleCacheError(f"The output '{name}' is said to be one for all rows, and differs.")
                for name in [name for name, value in own.items() if value.is_nested]:
                    values, offsets = jagged(own[name])
                    ragged[name], past = tuple(values.shape[1:]), bounds.setdefault(name, [0])
                    past += (past[-1] + offsets[1:]).tolist()
                    write(_file(key, name), values)
                    count = own.pop(name).size(0)
                shapes = {name: tuple(value.shape[1:]) for name, value in own.items()}
                if own:
                    flat = torch.cat([value.flatten(1) for value in own.values()], dim=1)
                    write(ROWS, flat)
                    count = len(flat)
                rows += count
            if rows != key.rows:
                raise StaleCacheError(f"The teacher gave {rows} rows for data of {key.rows}.")
            if not shapes:
                write(ROWS, torch.empty(0))
            if shared:
                write(SHARED, torch.cat([value.flatten() for value in shared.values()]))
            if ragged:
                files[OFFSETS] = _Digested(open_files.enter_context(writing(folder / OFFSETS)))
                files[OFFSETS].write(np.array(list(bounds.values()), dtype=np.int64).tobytes())
        digests = {name: file.hexdigest() for name, file in files.items()}
        parts = {name: _plain(value) for name, value in asdict(key).items()}
        manifest = {"key": key.address, "parts": parts, "shapes": shapes, "rows": digests.pop(ROWS)}
        if digests:
            manifest |= {"files": digests, "ragged": ragged, "shared": {n: tuple(v.shape) for n, v in shared.items()}}
        write_atomic(folder / "cache.json", json.dumps({**manifest, "sha256": digest(manifest)}, indent=1))

    def read(self, rows: Tensor) -> dict[str, Tensor]:
        """The outputs of ``rows`` (int64 ``[b]``): name -> ``[b, *shape]``, or as they were written."""
        outputs = {name: _gathered(values, bounds, rows) for name, (values, bounds) in self._ragged.items()}
        outputs |= self._shared
        if self.shapes:
            block = self._rows.index_select(0, rows)
            parts = torch.split(block, self._widths, dim=1)
            outputs |= {
                n: part.reshape(-1, *shape) for (n, shape), part in zip(self.shapes.items(), parts, strict=True)
            }
        return {name: outputs[name] for name in self.key.outputs}


def select(value: Tensor, rows: Tensor) -> Tensor:
    """Rows of an output, be they of one length or of several."""
    return _gathered(*jagged(value), rows) if value.is_nested else value[rows]


def jagged(value: Any) -> tuple[Tensor, Tensor]:
    """Values ``[sum of lengths, *s]`` and offsets ``[b + 1]`` of a nested tensor of the jagged layout."""
    return value.values(), value.offsets()


def _gathered(values: Tensor, bounds: Tensor, rows: Tensor) -> Tensor:
    """``values[bounds[r] : bounds[r + 1]]`` for each row r, as one jagged tensor."""
    starts, lengths = bounds[rows], bounds[rows + 1] - bounds[rows]
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    at = torch.arange(int(offsets[-1])) + (starts - offsets[:-1]).repeat_interleave(lengths)
    return torch.nested.nested_tensor_from_jagged(values[at], offsets)


def _file(key: CacheKey, name: str) -> str:
    return f"ragged-{key.outputs.index(name)}.bin"


def _mapped(path: Path, dtype: str, shape: tuple[int, ...]) -> Tensor:
    """A private memory map of a file; no map of an empty one."""
    if not math.prod(shape):
        return torch.from_numpy(np.empty(shape, dtype))
    return torch.from_numpy(np.memmap(path, dtype=dtype, mode="c", shape=shape))


class _Digested:
    """A stream that knows the SHA-256 of what was written."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._seen = stream, hashlib.sha256()

    def write(self, content: bytes) -> None:
        self._seen.update(content)
        self._stream.write(content)

    def hexdigest(self) -> str:
        """SHA-256 of all of it."""
        return self._seen.hexdigest()


def _manifest(path: Path) -> dict[str, Any]:
    """What a cache says of itself, checked against its own digest."""
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        if manifest.pop("sha256") != digest(manifest):
            raise ValueError("its digest is not that of its content")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCacheError(f"{path} is damaged ({error}), or of an older kdbench.") from None
    return manifest


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
