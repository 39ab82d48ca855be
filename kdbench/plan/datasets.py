"""Where data lies: ``$KDBENCH_DATA``, the user's cache, or its public origin; every file against its checksum."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from kdbench.errors import CardError, DataError, shown, unknown
from kdbench.hashing import digest, file_digest
from kdbench.plan.catalog import families, folder_of
from kdbench.plan.found import Found
from kdbench.plan.marked_yaml import line_of, read_yaml
from kdbench.plan.options import OptionError
from kdbench.plan.written import as_text


@dataclass(frozen=True)
class File:
    """One file of a data set. Without ``sha256`` it is of the user's own making, and its content is its fingerprint."""

    sha256: str | None = None
    url: str | None = None


@dataclass(frozen=True)
class Dataset:
    """A data set as a family's ``datasets.yaml`` describes it."""

    name: str
    family: str
    title: str
    licence: str
    generated: bool = False
    kind: str = ""
    """The kind of task that reads it; empty in a family of one kind."""
    folder: str = ""
    source: str = ""
    how: str = ""
    files: dict[str, File] = field(default_factory=dict)

    def places(self) -> list[Path]:
        """Folders to look in, in order: none where neither ``KDBENCH_DATA`` nor a cache is known."""
        return [root / self.folder for root in roots().values()]

    def state(self, name: str) -> tuple[str, Path | None]:
        """``present``, ``corrupt`` or ``missing``, and where the file is."""
        for place in self.places():
            path = place / name
            if path.is_file():
                wanted = self.files[name].sha256
                return ("present" if wanted in (None, file_digest(path)) else "corrupt"), path
        return "missing", None


def cache_root() -> Path | None:
    """The user's cache for downloaded data (``$KDBENCH_CACHE`` moves it); None for a user without a home."""
    if own := os.environ.get("KDBENCH_CACHE"):
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "kdbench"
    except RuntimeError:
        return None


def offline() -> bool:
    """Whether ``KDBENCH_OFFLINE`` forbids downloads: set to anything but ``0``, ``false``, ``no`` or nothing."""
    return os.environ.get("KDBENCH_OFFLINE", "").strip().lower() not in ("", "0", "false", "no")


def roots() -> dict[str, Path]:
    """The folders that data sets lie in, by name, in the order in which they are looked through."""
    home = os.environ.get("KDBENCH_DATA")
    given = {"$KDBENCH_DATA": Path(home) if home else None, "$KDBENCH_CACHE": cache_root()}
    return {name: root for name, root in given.items() if root is not None}


@functools.cache
def datasets() -> Found[str, Dataset]:
    """Every data set of every family, by name; ``faulty`` tells by family whose list cannot be read."""
    found: Found[str, Dataset] = Found()
    for family, package in families().items():
        with found.reading(family):
            path = folder_of(package) / "datasets.yaml"
            mine = read_datasets(path, family) if path.exists() else {}
            for name in mine.keys() & found.keys():
                raise CardError(f"{path}:1: data set '{name}' is also one of the {found[name].family} family.")
            found.update(mine)
    return found


def read_datasets(path: Path, family: str) -> dict[str, Dataset]:
    """The data sets that a family's ``datasets.yaml`` describes. Errors name the file, the line and the field."""
    content, lines = read_yaml(path)
    if not isinstance(content, dict):
        raise CardError(f"{path}:1: this is a mapping of data sets by name.")
    found = {}
    for name, entry in content.items():
        try:
            told = _checked(Dataset, entry, name)
            files = {file: _file(given, f"{name}.files.{file}") for file, given in told.pop("files", {}).items()}
        except OptionError as error:
            raise CardError(f"{path}:{line_of(lines, error.field)}: {error}") from None
        found[name] = Dataset(name=name, family=family, files=files, **told)
    return found


def _file(given: Any, place: str) -> File:
    file = File(**_checked(File, given, place))
    if file.sha256 is not None and not re.fullmatch("[0-9a-f]{64}", file.sha256):
        raise OptionError(f"{place}.sha256", f"{place}.sha256: this is no SHA-256 of 64 hexadecimal digits.")
    if file.url and not file.sha256:
        raise OptionError(place, f"{place}: a file with a url needs its sha256.")
    return file


def _checked(kind: type, given: Any, place: str) -> dict[str, Any]:
    """Fields of the dataclass, each of its type, texts as they were written. Quicker than pydantic, for a list."""
    if not isinstance(given, dict):
        raise OptionError(place, f"{place}: this is a mapping of fields.")
    valid = {f.name: f for f in fields(kind) if f.name not in ("name", "family")}
    checked: dict[str, Any] = {}
    for key, value in given.items():
        if key not in valid:
            raise OptionError(f"{place}.{key}", f"{shown(place)}: {unknown('field', key, valid)}")
        wanted = str(valid[key].type).partition("[")[0].removesuffix(" | None")
        checked[key] = as_text(value) if wanted == "str" else value
        if not isinstance(checked[key], {"str": str, "bool": bool, "dict": dict}[wanted]):
            said = {"str": "text", "bool": "true or false", "dict": "a mapping"}[wanted]
            raise OptionError(f"{place}.{key}", f"{place}.{key}: this is {said}.")
    for key, f in valid.items():
        if key not in given and f.default is MISSING and f.default_factory is MISSING:
            raise OptionError(place, f"{place}: field '{key}' is missing.")
    return checked


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
    where = " or ".join(str(place) for place in info.places()) or "no folder"
    missing = f"Data set '{info.name}' lacks {file} (looked in {where}). {info.how} See 'kdbench data {info.name}'."
    if not os.environ.get("KDBENCH_DATA"):
        missing += " KDBENCH_DATA is not set; it names the folder that holds the data sets."
    if told.url is None or offline():
        raise DataError(missing)
    cache = cache_root()
    if cache is None:
        raise DataError(f"{missing} This user has no home to download it to: set KDBENCH_CACHE to a folder.")
    import pooch

    try:
        got = pooch.retrieve(told.url, known_hash=f"sha256:{told.sha256}", fname=file, path=cache / info.folder)
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
