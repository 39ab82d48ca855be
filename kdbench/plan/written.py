"""Numbers that know how they were written: an option of text takes ``1e3`` or ``0123`` as it stands."""

from __future__ import annotations

from typing import Any

LONGEST_NUMBER = 1_000
"""Most characters of a number; Python refuses to read or print some more (and quadratic time is behind that)."""


class _Written:
    text: str

    def __repr__(self) -> str:
        return self.text


class WrittenInt(_Written, int):
    """An integer; ``str`` gives what was written."""


class WrittenFloat(_Written, float):
    """A floating-point number; ``str`` gives what was written."""


def number(text: str, base: int | None = None) -> int | float:
    """The number that a text writes: an integer of a base, or a floating-point number without one.

    It keeps the text where Python would write it otherwise. Raises ValueError for one that is too long.
    """
    if len(text) > LONGEST_NUMBER:
        raise ValueError(f"a number of {len(text)} characters is more than the {LONGEST_NUMBER} that are read")
    value = float(text) if base is None else int(text, base)
    if str(value) == text:
        return value
    kept = WrittenFloat(value) if isinstance(value, float) else WrittenInt(value)
    kept.text = text
    return kept


def as_text(value: Any) -> str | None:
    """What was written where a text or a number is; None for anything else."""
    return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else None
