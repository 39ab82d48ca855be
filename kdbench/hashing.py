"""Content addresses: canonical JSON, SHA-256 digests, and files that appear whole or not at all."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar, TypeVarTuple

A = TypeVarTuple("A")
R = TypeVar("R")

UNFINISHED = ".unfinished"

_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, ASCII, NaN and infinities refused (ValueError)."""
    return _CANONICAL.encode(value)


def digest(value: Any) -> str:
    """SHA-256 (64 hexadecimal digits) of a JSON-able value's canonical text."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


_digested: ContextVar[dict[Path, str] | None] = ContextVar("digested", default=None)


def file_digest(path: Path) -> str:
    """SHA-256 (64 hexadecimal digits) of a file's bytes."""
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    if (digested := _digested.get()) is not None:
        digested[path] = sha256
    return sha256


@contextmanager
def collected_digests() -> Iterator[dict[Path, str]]:
    """Every :func:`file_digest` inside the block, by path: what it read."""
    digested: dict[Path, str] = {}
    token = _digested.set(digested)
    try:
        yield digested
    finally:
        _digested.reset(token)


class Remembered(Generic[*A, R]):
    """A function whose last results are kept; the files that a call digested count as read whenever it is called."""

    def __init__(self, function: Callable[[*A], R], size: int) -> None:
        def call(*args: *A) -> tuple[R, dict[Path, str]]:
            with collected_digests() as read:
                return function(*args), read

        functools.update_wrapper(self, function)
        self._call = functools.lru_cache(maxsize=size)(call)
        self.cache_clear = self._call.cache_clear

    def __call__(self, *args: *A) -> R:
        value, read = self._call(*args)
        if (digested := _digested.get()) is not None:
            digested.update(read)
        return value


def remembered(size: int) -> Callable[[Callable[[*A], R]], Remembered[*A, R]]:
    """``functools.lru_cache`` for functions that read files (:class:`Remembered`)."""
    return lambda function: Remembered(function, size)


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A stream whose bytes become ``path`` when the block ends: whole, or after an error or ``kill -9`` not at all.

    A killed writer leaves its bytes beside ``path``: see :func:`remove_unfinished`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write ``data`` so that ``path`` holds either its old content or all of the new one, even after ``kill -9``."""
    with writing(path) as stream:
        stream.write(data.encode() if isinstance(data, str) else data)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed writers left in ``folder``. Nobody else may be writing there: hold its lock."""
    for path in folder.glob(f".*{UNFINISHED}"):
        path.unlink(missing_ok=True)
