"""The folder of the site: only ever all of a build, and never a folder that is not ours."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from kdbench.errors import UsageError

MARKER = ".kdbench-site"
_TOLD = "This folder is made by 'kdbench leaderboard build', which replaces all of it.\n"


_RECORD = re.compile(r"record/[^/]+/[0-9a-f]{16}\.(?:html|json|safetensors)")
"""Pages of records: there may be very many, and their names are their runs', so the marker does not list them."""


def refuse_foreign(site: Path) -> None:
    """Raise UsageError where ``site`` is a file, or a folder with anything in it that no build has made."""
    if site.exists() and not site.is_dir():
        raise UsageError(f"{site} is a file; name a folder for the site.")
    if not site.is_dir() or not any(site.iterdir()):
        return
    try:
        ours = set((site / MARKER).read_text(encoding="utf-8").splitlines()[1:])
    except (OSError, ValueError):
        raise UsageError(f"{site} holds files of another kind; name an empty or a new folder.") from None
    for name in _files(site):
        if name != MARKER and name not in ours and not _RECORD.fullmatch(name):
            raise UsageError(
                f"{site / name} was not made by a build of this version, which would remove it; move it away, or name "
                "an empty or a new folder."
            )


def seal(site: Path) -> None:
    """Write the marker: what it says to people, and the files of the site, so that a later build knows its own."""
    listed = sorted(name for name in _files(site) if not _RECORD.fullmatch(name))
    (site / MARKER).write_text(_TOLD + "".join(f"{name}\n" for name in listed), encoding="utf-8")


def _files(site: Path) -> Iterator[str]:
    """Everything below a site that is no folder, and links to folders, as paths relative to it."""
    for folder, below, names in os.walk(site):
        links = [name for name in below if os.path.islink(os.path.join(folder, name))]
        for name in (*names, *links):
            yield os.path.relpath(os.path.join(folder, name), site).replace(os.sep, "/")


@contextlib.contextmanager
def replaced(site: Path) -> Iterator[Path]:
    """A new folder that takes the place of ``site`` when the block ends well, and is removed when it does not.

    A build that is killed leaves the old site; the next one removes what else it left. Raises UsageError while another
    build writes the same site.
    """
    site = site.resolve()
    refuse_foreign(site)
    missing = [parent for parent in site.parents if not parent.exists()]
    site.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _alone(site):
            yield from _swapped(site)
    except BaseException:
        for parent in missing:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


@contextlib.contextmanager
def _alone(site: Path) -> Iterator[None]:
    path = _beside(site, "lock")
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(f"Another build is writing {site}.") from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


def _swapped(site: Path) -> Iterator[Path]:
    new, old = _beside(site, "new"), _beside(site, "old")
    _recover(site, new, old)
    new.mkdir()
    try:
        yield new
        if site.exists():
            os.replace(site, old)
        os.replace(new, site)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _recover(site: Path, new: Path, old: Path) -> None:
    """Undo what a killed build left: a half of a new site, or an old one that was about to be replaced."""
    if old.is_dir() and not site.exists():
        os.replace(old, site)
    for left in (new, old):
        if left.is_dir():
            shutil.rmtree(left)


def _beside(site: Path, what: str) -> Path:
    return site.parent / f".{site.name}.kdbench-{what}"
