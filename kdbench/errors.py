"""Errors that a user can act on: one clear message, no traceback, and an exit code."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

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

    told = False
    """Whether stderr has it already."""


class StaleCacheError(KdbenchError):
    """A teacher cache or stage whose key is not the one asked for."""


class StoppedError(KdbenchError):
    """A run that was asked to stop and left a checkpoint to go on from."""


class NonFiniteLossError(KdbenchError):
    """A loss became NaN or infinite. ``step`` and ``terms`` say where."""

    def __init__(self, step: int, terms: dict[str, float]) -> None:
        self.step, self.terms = step, terms
        listed = ", ".join(f"{name} = {value:g}" for name, value in terms.items())
        super().__init__(f"The loss is not finite at step {step}: {listed}.")


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
