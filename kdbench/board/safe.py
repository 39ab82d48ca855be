"""What strangers' text may become: visible text without control characters, file names, identifiers, finite numbers."""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from urllib.parse import urlsplit

# C0 and C1 controls, zero-width and direction marks, line separators, surrogates, non-characters, byte order mark.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\ud800-\udfff\ufdd0-\ufdef\ufe00-\ufe0f\ufeff\ufff0-\ufffb\ufffe\uffff\U000e0000-\U000e0fff]"
)
_PLAIN = re.compile(r"[a-z0-9_](?:[a-z0-9_.-]{0,79}[a-z0-9_])?")
LONGEST = 600


def clean(text: str) -> str:
    """``text`` with every character that is not seen, or that turns what is seen around, shown as U+FFFD."""
    return text if text.isascii() and text.isprintable() else _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", text)


def line(text: str, longest: int = 4000) -> str:
    """Text of strangers for one line of a terminal: cleaned, without line ends and tabs, and cut."""
    return cut(re.sub("[\t\n]", "\N{REPLACEMENT CHARACTER}", text[: longest + 1]), longest)


def cut(text: str, longest: int = LONGEST) -> str:
    """The first ``longest`` characters, cleaned; an ellipsis says that there are more."""
    if len(text) > longest:
        return clean(text[: longest - 1]) + "…"
    return text if text.isascii() and text.isprintable() else clean(text)


def name(text: str) -> str:
    """A name in at most 80 characters; an empty or blank one is told as such."""
    return cut(text, 80) if text.strip() else "(no name)"


def slug(text: str) -> str:
    """A file name for one part of a name: itself where it is plain, otherwise what is plain in it and a digest.

    Different texts have different slugs: a plain one holds neither ``~`` nor ``--``.
    """
    if _PLAIN.fullmatch(text) and "--" not in text and ".." not in text:
        return text
    plain = re.sub(r"[^a-z0-9]+", "-", text[:40].lower()).strip("-")
    return f"{plain}~{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:32]}"


def task_slug(task: str) -> str:
    """A file name for a task: its parts joined by ``--``; where one of them is not plain, a slug of the whole."""
    parts = task.split("/")
    plain = all(slug(part) == part for part in parts) and len(task) <= 120
    return "--".join(parts) if plain else slug(task)


def identifier(*parts: str) -> str:
    """An HTML identifier of lower-case letters, digits and hyphens; not necessarily unique."""
    text = re.sub(r"[^a-z0-9]+", "-", "-".join(part[:40] for part in parts).lower()).strip("-")
    return text if text[:1].isalpha() else f"t-{text}"


def key(text: str) -> str:
    """A short text that names a row: itself, or where that is long or unclean its beginning and a digest."""
    shown = cut(text, 80)
    return text if shown == text else f"{shown}~{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:8]}"


def finite(value: float | None) -> float | None:
    """A number that can be shown: None for one that is missing, infinite, not a number, or an integer beyond floats."""
    try:
        return None if value is None or not math.isfinite(value) else abs(value) if value == 0 else value
    except OverflowError:
        return None


def link(address: str) -> str | None:
    """An address that a page may link to: http or https with a host, and nothing else."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return None
    sound = parts.scheme in ("http", "https") and parts.hostname and clean(address) == address and " " not in address
    return address if sound else None


def spreadsheet(text: str) -> str:
    """Text for a CSV cell: cleaned, cut, and with an apostrophe before what a spreadsheet would run as a formula.

    Spreadsheets look past white space, and take full-width and small signs for the plain ones.
    """
    shown = cut(text)
    first = unicodedata.normalize("NFKC", shown.lstrip()[:1])
    return f"'{shown}" if first in tuple("=+-@") or shown[:1] in ("\t", "\n", "\r") else shown
