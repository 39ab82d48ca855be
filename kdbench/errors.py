"""Errors that a user can act on: one clear message, no traceback, and an exit code."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from pathlib import Path

DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Numbers of the system errors that more room would cure."""


class KdbenchError(Exception):
    """A failure with a message for the user. ``exit_code`` 1: the work failed."""

    exit_code = 1


class UsageError(KdbenchError):
    """A wrong name, type or value in what the user asked for. ``exit_code`` 2: nothing was started or written."""

    exit_code = 2


class DataError(KdbenchError):
    """Data that is missing or does not match its checksum."""


class MissingExtraError(UsageError):
    """An optional dependency that the request needs is not installed."""


class CardError(UsageError):
    """A task card or method file that does not parse; the message names file and line."""


class StaleCacheError(KdbenchError):
    """A teacher cache or stage whose key is not the one asked for."""


class DamagedError(KdbenchError):
    """A file of a sweep that cannot be read; the message names it."""

    def __init__(self, path: Path, error: Exception) -> None:
        super().__init__(f"{path} is damaged ({error}).")


class StoppedError(KdbenchError):
    """A run that was asked to stop and left a checkpoint to go on from."""


class NonFiniteLossError(KdbenchError):
    """A loss became NaN or infinite. ``step`` and ``terms`` say where."""

    def __init__(self, step: int, terms: dict[str, float]) -> None:
        self.step, self.terms = step, terms
        listed = ", ".join(f"{name} = {value:g}" for name, value in terms.items())
        super().__init__(f"The loss is not finite at step {step}: {listed}.")


def unknown(kind: str, name: str, valid: Iterable[str]) -> UsageError:
    """The error for a name that does not exist: the nearest valid one first, then all of them."""
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.3)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return UsageError(f"Unknown {kind} '{name}'.{hint} Valid: {', '.join(names) or 'none'}.")
