"""Stages: pieces of work with a content address, done once and shared by every run that needs them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from kdbench.errors import StaleCacheError
from kdbench.hashing import digest, source_digest, write_atomic


@dataclass(frozen=True)
class StageResult:
    """A finished stage: where its files are, what it reported, and what it cost when it was done."""

    name: str
    key: str
    folder: Path
    info: Mapping[str, Any]
    seconds: float
    reused: bool


@dataclass(frozen=True)
class Stage:
    """One piece of work. Its address is the SHA-256 of its name, inputs, source files and upstream addresses."""

    name: str
    inputs: Mapping[str, Any]
    """JSON values that the result depends on (options, seeds, data fingerprint)."""
    run: Callable[[Path, Mapping[str, StageResult]], Mapping[str, Any]]
    """Does the work in the given folder, from the upstream results, and returns JSON values to report.

    The folder may hold what a killed attempt left; go on from it where that is exact, else overwrite it.
    """
    code: Sequence[Path] = ()
    """Source files that the result depends on."""
    needs: tuple[str, ...] = ()
    """Names of upstream stages."""

    def key(self, upstream: Mapping[str, StageResult]) -> str:
        """The content address."""
        keys = {name: upstream[name].key for name in self.needs}
        return digest({"name": self.name, "inputs": dict(self.inputs), "code": source_digest(self.code), "needs": keys})


@dataclass
class StageStore:
    """Finished stages under one folder, each in ``<root>/<name>-<key>``."""

    root: Path
    results: dict[str, StageResult] = field(default_factory=dict)

    def ensure(self, stage: Stage) -> StageResult:
        """The result of ``stage``, doing the work unless it is done; a lock makes parallel runs wait for one worker."""
        key = stage.key(self.results)
        folder = self.root / f"{stage.name}-{key[:16]}"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):
            done = folder / "stage.json"
            reused = done.exists()
            if not reused:
                started = time.perf_counter()
                info = dict(stage.run(folder, self.results))
                seconds = time.perf_counter() - started
                write_atomic(done, json.dumps({"key": key, "info": info, "seconds": seconds}, indent=1))
            told = json.loads(done.read_text())
        if told["key"] != key:
            raise StaleCacheError(f"The stage in {folder} has another address; delete the folder to do it again.")
        result = StageResult(stage.name, key, folder, told["info"], told["seconds"], reused)
        self.results[stage.name] = result
        return result
