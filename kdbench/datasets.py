"""Where data lies: ``$KDBENCH_DATA``, the user's cache, or its public origin; every file against its checksum."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdbench.catalog import families, folder_of
from kdbench.errors import CardError, DataError, unknown
from kdbench.hashing import digest, file_digest
from kdbench.marked_yaml import read_yaml


@dataclass(frozen=True)
class File:
    """One file of a data set. Without ``sha256`` it is of the user's own making, and its content is its fingerprint."""

    sha256: str | None = None
    url: str | None = None

    def __post_init__(self) -> None:
        if self.url and not self.sha256:
            raise TypeError("a file with a url needs its sha256")


@dataclass(frozen=True)
class Dataset:
    """A data set as a family's ``datasets.yaml`` describes it."""

    name: str
    family: str
    title: str
    licence: str
    generated: bool = False
    folder: str = ""
    source: str = ""
    how: str = ""
    files: dict[str, File] = field(default_factory=dict)

    def places(self) -> list[Path]:
        """Folders to look in, in order."""
        return [root / self.folder for root in roots().values()]

    def state(self, name: str) -> tuple[str, Path | None]:
        """``present``, ``corrupt`` or ``missing``, and where the file is."""
        for place in self.places():
            path = place / name
            if path.is_file():
                wanted = self.files[name].sha256
                return ("present" if wanted in (None, file_digest(path)) else "corrupt"), path
        return "missing", None


def cache_root() -> Path:
    """The user's cache for downloaded data (``$KDBENCH_CACHE`` moves it)."""
    own = os.environ.get("KDBENCH_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "kdbench"


def roots() -> dict[str, Path]:
    """The folders that data sets lie in, by name, in the order in which they are looked through."""
    home = os.environ.get("KDBENCH_DATA")
    return {**({"$KDBENCH_DATA": Path(home)} if home else {}), "$KDBENCH_CACHE": cache_root()}


@functools.cache
def datasets() -> dict[str, Dataset]:
    """Every data set of every family, by name."""
    found: dict[str, Dataset] = {}
    for family, package in families().items():
        path = folder_of(package) / "datasets.yaml"
        for name, entry in read_datasets(path, family).items() if path.exists() else ():
            if name in found:
                raise CardError(f"{path}:1: data set '{name}' is also one of the {found[name].family} family.")
            found[name] = entry
    return found


def read_datasets(path: Path, family: str) -> dict[str, Dataset]:
    """The data sets that a family's ``datasets.yaml`` describes."""
    content, lines = read_yaml(path)
    if not isinstance(content, dict):
        raise CardError(f"{path}:1: this is a mapping of data sets by name.")
    found = {}
    for name, entry in content.items():
        try:
            files = {file: File(**told) for file, told in entry.get("files", {}).items()}
            found[name] = Dataset(**{**entry, "name": name, "family": family, "files": files})
        except (AttributeError, TypeError) as error:
            raise CardError(f"{path}:{lines[name]}: {name}: {error}.") from None
    return found


def dataset(name: str) -> Dataset:
    """The data set of that name."""
    if name not in datasets():
        raise unknown("data set", name, datasets())
    return datasets()[name]


def fetch(name: str, wanted: Sequence[str] = ()) -> tuple[dict[str, Path], str]:
    """Paths of a data set's files (all, or those ``wanted``) and the SHA-256 fingerprint over them.

    Raises :class:`DataError` for a file whose checksum is wrong, or which is not here and cannot be downloaded.
    """
    info = dataset(name)
    paths: dict[str, Path] = {}
    for file in wanted or info.files:
        state, path = info.state(file)
        if state == "corrupt":
            assert path is not None
            raise DataError(
                f"{path} is corrupt: its SHA-256 is {file_digest(path)}, not {info.files[file].sha256}. "
                "Delete it and fetch it again."
            )
        paths[file] = path or _download(info, file)
    return paths, digest({file: info.files[file].sha256 or file_digest(path) for file, path in paths.items()})


def _download(info: Dataset, file: str) -> Path:
    told = info.files[file]
    where = " or ".join(str(place) for place in info.places())
    missing = f"Data set '{info.name}' lacks {file} (looked in {where}). {info.how} See 'kdbench data {info.name}'."
    if not os.environ.get("KDBENCH_DATA"):
        missing += " KDBENCH_DATA is not set; it names the folder that holds the data sets."
    if told.url is None or os.environ.get("KDBENCH_OFFLINE"):
        raise DataError(missing)
    import pooch

    try:
        got = pooch.retrieve(told.url, known_hash=f"sha256:{told.sha256}", fname=file, path=cache_root() / info.folder)
    except (OSError, ValueError) as error:
        raise DataError(f"{missing} Downloading it failed: {error}") from None
    return Path(got)


def inventory(info: Dataset) -> dict[str, Any]:
    """What is here of a data set: its own state and that of every file.

    One without a list of files is the user's own copy: present when its folder is there.
    """
    files = []
    for name, file in info.files.items():
        state, path = info.state(name)
        files.append(
            {"name": name, "state": state, "path": str(path) if path else None, "sha256": file.sha256, "url": file.url}
        )
    own = "present" if any(place.is_dir() for place in info.places()) else "missing"
    states = {str(file["state"]) for file in files} or {own}
    state = "generated" if info.generated else next(s for s in ("corrupt", "missing", "present") if s in states)
    told = {name: getattr(info, name) for name in ("name", "family", "title", "licence", "source", "how")}
    return {**told, "state": state, "files": files}
