"""How a run ended, in words and as a worker tells it; which errors end all runs."""

from __future__ import annotations

import re
import traceback
from dataclasses import dataclass
from typing import Self

from safetensors import SafetensorError

from kdbench.errors import DISK_FULL, KdbenchError, UsageError


@dataclass(frozen=True)
class Ending:
    """How a run ended: well, or with the ``reason`` of its failure."""

    reused: bool = False
    """Whether it was done earlier."""
    reason: str | None = None
    usage: bool = False
    """Whether the failure is a mistake in what the user asked for."""
    trace: str = ""
    full: tuple[int, str | None] | None = None
    """Where the disk is full: the system's number of the error, and the file."""

    @classmethod
    def of(cls, error: Exception) -> Self:
        """What a run that died of ``error`` tells."""
        full = disk_full(error)
        where = (full.errno, full.filename) if full and full.errno else None
        return cls(
            False, in_one_line(error), isinstance(error, UsageError), "".join(traceback.format_exception(error)), where
        )

    def error(self) -> KdbenchError:
        """The failure as an error of this process; ``--debug`` shows where it happened."""
        error = (UsageError if self.usage else KdbenchError)(self.reason)
        error.add_note(self.trace)
        return error

    def check_disk(self) -> None:
        """Raise OSError where the disk is full: with that no other run gets further."""
        if self.full:
            number, file = self.full
            raise OSError(number, self.reason, file)


def in_one_line(error: Exception) -> str:
    """An error in words; one that nobody foresaw also by its kind."""
    return str(error) if isinstance(error, KdbenchError) else f"{type(error).__name__}: {error}"


def disk_full(error: BaseException | None) -> OSError | None:
    """The full disk that is the error, or behind it. safetensors tells the system's number in its text alone."""
    while error is not None:
        number = re.search(r"os error (\d+)", str(error)) if isinstance(error, SafetensorError) else None
        system = OSError(int(number[1]), str(error)) if number else error
        if isinstance(system, OSError) and system.errno in DISK_FULL:
            return system
        error = error.__cause__ or error.__context__
    return None
