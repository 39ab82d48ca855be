"""The folder of the site: only ever all of a build, and never a folder that is not ours."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kdbench.errors import UsageError

MARKER = ".kdbench-site"
_TOLD = "This folder is made by 'kdbench leaderboard build', which replaces all of it.\n"


def refuse_foreign(site: Path) -> None:
    """Raise UsageError where ``site`` is a file, or a folder with content that no build has made."""
    if site.exists() and not site.is_dir():
        raise UsageError(f"{site} is a file; name a folder for the site.")
    if site.is_dir() and any(site.iterdir()) and not (site / MARKER).is_file():
        raise UsageError(f"{site} holds files of another kind; name an empty or a new folder.")


@contextlib.contextmanager
def replaced(site: Path) -> Iterator[Path]:
    """A new folder that takes the place of ``site`` when the block ends well, and is removed when it does not.

    A build that is killed leaves the old site; the next build removes what it left beside it.
    """
    site = site.resolve()
    refuse_foreign(site)
    missing = [parent for parent in site.parents if not parent.exists()]
    site.parent.mkdir(parents=True, exist_ok=True)
    old = site.parent / f".{site.name}.old"
    _recover(site, old)
    folder = Path(tempfile.mkdtemp(dir=site.parent, prefix=f".{site.name}.new-"))
    try:
        (folder / MARKER).write_text(_TOLD, encoding="utf-8")
        yield folder
        folder.chmod(0o755)
        if site.exists():
            os.replace(site, old)
        os.replace(folder, site)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in missing:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)


def _recover(site: Path, old: Path) -> None:
    """Put back the site that a build was killed while replacing."""
    if (old / MARKER).is_file() and not site.exists():
        os.replace(old, site)
    elif old.is_dir() and ((old / MARKER).is_file() or not any(old.iterdir())):
        shutil.rmtree(old)
