"""Where data lies: ``$KDBENCH_DATA``, the user's cache, or its public origin; every file against its checksum."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from kdbench.errors import CardError, DataError, shown, unknown
from kdbench.hashing import digest, file_digest
from kdbench.plan.catalog import kind_module, kinds
from kdbench.plan.collected import Collected
from kdbench.plan.family import family_files
from kdbench.plan.marked_yaml import line_of, read_yaml
from kdbench.plan.options import OptionError, build
from kdbench.plan.written import as_text


@dataclass(frozen=True)
class File:
    """One file of a data set. Without ``sha256`` it is of the user's own making, and its content is its fingerprint."""

    sha256: str | None = None
    url: str | None = None


@dataclass(frozen=True)
class Dataset:
    """A data set as a ``family.yaml``, a card or a file of data sets describes it."""

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
    reader: str = ""
    """The function of its kind's package that reads it."""
    options: dict[str, Any] = field(default_factory=dict)
    """What the reader is told of this data set."""
    files: dict[str, File] = field(default_factory=dict)
    """Its files; without them it is what lies in its folder."""
    beside: Path | None = None
    """The folder of the user's file that describes it: its own folder is below."""

    def places(self) -> list[Path]:
        """Folders to look in, in order: none where neither ``KDBENCH_DATA`` nor a cache is known."""
        mine = [] if self.beside is None else [self.beside]
        return [root / self.folder for root in (*mine, *roots().values())]

    def state(self, name: str) -> tuple[str, Path | None]:
        """``present``, ``corrupt`` or ``missing``, and where the file is."""
        for place in self.places():
            path = place / name
            if path.is_file():
                wanted = self.files.get(name, File()).sha256
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


_own: dict[str, Dataset] = {}
"""Data sets that users' cards describe, by :func:`address`."""


def datasets() -> Collected[str, Dataset]:
    """Every data set by name: those of the families, and of the file that ``KDBENCH_DATA_SETS`` names.

    ``faulty`` tells by family whose list cannot be read.
    """
    return _datasets(os.environ.get("KDBENCH_DATA_SETS", ""))


@functools.cache
def _datasets(own: str) -> Collected[str, Dataset]:
    listed: Collected[str, Dataset] = Collected()
    for family, file in family_files().items():
        with listed.reading(family):
            add(listed, described(file.content.get("datasets", {}), file.lines, file.path, family), file.path)
    listed.faulty.update(family_files().faulty)
    if own:
        content, lines = read_yaml(Path(own))
        add(listed, described(content, lines, Path(own), None, beside=Path(own).parent, prefix=""), Path(own))
    return listed


def add(listed: dict[str, Dataset], more: Mapping[str, Dataset], path: Path) -> None:
    """Add data sets that a file describes. Raises :class:`CardError` for a name that is taken."""
    for name in more.keys() & listed.keys():
        raise CardError(f"{path}:1: data set '{name}' is also one of the {listed[name].family} family.")
    listed.update(more)


def own(mine: Mapping[str, Dataset], card: Path) -> dict[str, str]:
    """Make what a user's card describes known to this process; the address of each, by name."""
    addresses = {name: f"{card.resolve()}:{name}:{digest(described_as(one))}" for name, one in mine.items()}
    _own.update({addresses[name]: one for name, one in mine.items()})
    return addresses


def described_as(data: Dataset) -> dict[str, Any]:
    """What a description says of a data set's content: how it is read, from which files."""
    files = {name: file.sha256 for name, file in data.files.items()}
    return {"kind": data.kind, "reader": data.reader, "options": data.options, "files": files}


def described(
    content: Any,
    lines: Mapping[str, int],
    path: Path,
    family: str | None,
    beside: Path | None = None,
    prefix: str = "datasets.",
    kind: str = "",
) -> dict[str, Dataset]:
    """The data sets that a part of a file describes. Errors name the file, the line and the field.

    Each names its family where none is given. ``kind``: theirs, unless they name one.
    """
    known = {}
    try:
        if not isinstance(content, dict):
            raise OptionError(prefix.rstrip("."), "this is a mapping of data sets by name.")
        for name, entry in content.items():
            place, unwritten = f"{prefix}{name}", ("name", "beside", *(() if family is None else ("family",)))
            given = {"family": family, "kind": kind, **_checked(Dataset, entry, place, unwritten)}
            files = {file: _file(one, f"{place}.files.{file}") for file, one in given.pop("files", {}).items()}
            known[name] = Dataset(name=name, files=files, beside=beside, **given)
    except OptionError as error:
        raise CardError(f"{path}:{line_of(lines, error.field)}: {error}") from None
    return known


def _file(given: Any, place: str) -> File:
    file = File(**_checked(File, given, place))
    if file.sha256 is not None and not re.fullmatch("[0-9a-f]{64}", file.sha256):
        raise OptionError(f"{place}.sha256", f"{place}.sha256: this is no SHA-256 of 64 hexadecimal digits.")
    if file.url and not file.sha256:
        raise OptionError(place, f"{place}: a file with a url needs its sha256.")
    return file


def _checked(kind: type, given: Any, place: str, unwritten: Sequence[str] = ()) -> dict[str, Any]:
    """Fields of the dataclass but those ``unwritten``, each of its type, texts as they were written.

    Quicker than pydantic, for a list.
    """
    if not isinstance(given, dict):
        raise OptionError(place, f"{place}: this is a mapping of fields.")
    valid = {f.name: f for f in fields(kind) if f.name not in unwritten}
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
    """The data set of that name, or of that :func:`own` address."""
    if name in _own:
        return _own[name]
    if name not in datasets():
        raise unknown("data set", name, datasets())
    return datasets()[name]


def reading_options(data: Dataset) -> Any:
    """The options of a data set's reader, from the kind's ``READERS``. Raises :class:`OptionError` for faulty ones."""
    kind = data.kind or kinds(data.family)[0]
    readers: Mapping[str, type] = getattr(kind_module(data.family, kind, "options"), "READERS", {})
    if not data.reader and not readers:
        return None
    if data.reader not in readers:
        said = unknown(f"reader of {kind.replace('_', ' ')}", data.reader, readers) if data.reader else "is missing."
        raise OptionError("reader", f"data set '{data.name}': reader: {said}")
    try:
        return build(readers[data.reader], data.options, "options")
    except OptionError as error:
        raise OptionError(error.field, f"data set '{data.name}': {error}") from None


def folder_of(data: Dataset) -> Path:
    """The folder of a data set that is here. Raises :class:`DataError` where none is."""
    for place in data.places():
        if place.is_dir():
            return place
    raise DataError(_missing(data, "is not here"))


def fetch(data: Dataset, wanted: Sequence[str] = ()) -> tuple[dict[str, Path], str]:
    """Paths of a data set's files (all, or those ``wanted``) and the SHA-256 fingerprint over them.

    ``wanted`` may be files that the description does not list: they are of the user's own making. Raises
    :class:`DataError` for a file whose checksum is wrong, or which is not here and cannot be downloaded.
    """
    paths: dict[str, Path] = {}
    for file in wanted or data.files:
        state, path = data.state(file)
        if state == "corrupt":
            assert path is not None
            raise DataError(
                f"{path} is corrupt: its SHA-256 is {file_digest(path)}, not {data.files[file].sha256}. "
                "Delete it and fetch it again."
            )
        paths[file] = path or _download(data, file)
    known = {file: data.files.get(file, File()).sha256 for file in paths}
    return paths, digest({file: known[file] or file_digest(path) for file, path in paths.items()})


def _missing(data: Dataset, what: str) -> str:
    where = " or ".join(str(place) for place in data.places()) or "no folder"
    if data.beside is not None:
        return f"Data set '{data.name}' {what} (looked in {where}). {data.how}".rstrip()
    said = f"Data set '{data.name}' {what} (looked in {where}). {data.how} See 'kdbench data {data.name}'."
    if not os.environ.get("KDBENCH_DATA"):
        said += " KDBENCH_DATA is not set; it names the folder that holds the data sets."
    return said


def _download(data: Dataset, file: str) -> Path:
    origin, missing = data.files.get(file, File()), _missing(data, f"lacks {file}")
    if origin.url is None or offline():
        raise DataError(missing)
    cache = cache_root()
    if cache is None:
        raise DataError(f"{missing} This user has no home to download it to: set KDBENCH_CACHE to a folder.")
    import pooch

    try:
        got = pooch.retrieve(origin.url, known_hash=f"sha256:{origin.sha256}", fname=file, path=cache / data.folder)
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
    texts = {name: getattr(info, name) for name in ("name", "family", "title", "licence", "source", "how")}
    return {**texts, "state": state, "files": files}
