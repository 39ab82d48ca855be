"""Content addresses: canonical JSON, SHA-256 digests, and files that appear whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

UNFINISHED = ".unfinished"

_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, ASCII, NaN and infinities refused (ValueError)."""
    return _CANONICAL.encode(value)


def digest(value: Any) -> str:
    """SHA-256 (64 hexadecimal digits) of a JSON-able value's canonical text."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 (64 hexadecimal digits) of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def source_digest(paths: Iterable[Path]) -> str:
    """SHA-256 over the names and bytes of source files, in name order."""
    return digest(sorted((path.name, file_digest(path)) for path in set(paths)))


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
