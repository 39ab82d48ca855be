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


class DataError(UsageError):
    """Data that is missing, does not match its checksum, or is not what its kind of task asks for."""


class MissingExtraError(UsageError):
    """An optional dependency that the request needs is not installed."""


class CardError(UsageError):
    """A task card or method file that does not parse; the message names file and line."""

    reported = False
    """Whether stderr has it already."""


class StaleCacheError(KdbenchError):
    """A teacher cache or stage whose key is not the one asked for."""


class DamagedError(KdbenchError):
    """A file of a sweep that cannot be read; the message names it."""

    def __init__(self, path: Path, error: Exception) -> None:
        super().__init__(f"{path} is damaged ({error}).")


class StoppedError(KdbenchError):
    """A run that was asked to stop and left a checkpoint to go on from."""


class UnknownNameError(KdbenchError):
    """A teacher, an output or a tapped feature that a method asks for and that is not there."""


class NonFiniteLossError(KdbenchError):
    """A loss became NaN or infinite. ``step`` and ``terms`` say where."""

    def __init__(self, step: int, terms: dict[str, float]) -> None:
        self.step, self.terms = step, terms
        listed = ", ".join(f"{name} = {value:g}" for name, value in terms.items())
        super().__init__(f"The loss is not finite at step {step}: {listed}.")


class UndefinedMetricError(KdbenchError):
    """The metric that a run is judged by has no value on a split."""

    def __init__(self, name: str, split: str, why: str) -> None:
        self.name, self.split, self.why = name, split, why
        super().__init__(f"{name} is not defined on the {split} split: {why}.")


LONGEST_SHOWN = 200
"""Characters that a message repeats of what was given."""


def shown(text: str) -> str:
    """A text as a message shows it: in one line, and the beginning of a long one."""
    more = f"… ({len(text):,} characters)" if len(text) > LONGEST_SHOWN else ""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:LONGEST_SHOWN]) + more


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name that a wrong one may have been meant for, whatever its case; None when none is like it."""
    folded, typed = {one.casefold(): one for one in valid}, name[:LONGEST_SHOWN].casefold()
    near = difflib.get_close_matches(typed, folded, n=1, cutoff=0.6)
    near = near or [one for one in folded if sorted(one) == sorted(typed)]  # letters of a short word in another order
    return folded[near[0]] if near else None


def unknown(kind: str, name: str, valid: Iterable[str], note: str | None = None) -> UsageError:
    """The error for a name that does not exist: the nearest valid one, or a note in its stead, then all names."""
    names = sorted(set(valid))
    if note is None and (near := nearest(name, names)):
        note = f"Did you mean '{near}'?"
    hint = f" {note}" if note else ""
    return UsageError(f"Unknown {kind} '{shown(name)}'.{hint} Valid: {', '.join(names) or 'none'}.")
