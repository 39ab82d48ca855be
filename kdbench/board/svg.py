"""What plots are drawn with: a canvas that escapes all it is given, scales, ticks, and the room that text takes.

Colours and fonts are the page's, by class; only positions and sizes stand in the drawing. No element has an id, so any
number of plots fits into one page.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from kdbench.board import safe
from kdbench.errors import unknown

KINDS = ("alone", "kd", "teacher", "control", *"01234567")
SIZE = 12.0
"""Height of letters, in units of the view box."""
LIMIT = 1e100
"""Larger numbers are not drawn: no real score or cost is, and their differences leave the range of floats."""
LONGEST = 300
SHAPES = {
    "alone": "M-4.5-4.5H4.5V4.5H-4.5Z",
    "kd": "M0-5.5 5.2 3.8H-5.2Z",
    "teacher": "M0-6 6 0 0 6-6 0Z",
    "control": "M-4.5-4.5 4.5 4.5M-4.5 4.5 4.5-4.5",
}
CIRCLE = "M-4.5 0A4.5 4.5 0 1 1 4.5 0 4.5 4.5 0 1 1-4.5 0Z"

_RELATIVE = re.compile(r"(?!/)[\w./#?=&%,~+-]{1,500}", re.ASCII)


def plain(text: str, longest: int = LONGEST) -> str:
    """Text on one line that XML can hold."""
    return " ".join(safe.cut(text, longest).split())


def width(text: str, size: float = SIZE) -> float:
    """About how wide a line of text is in a common sans-serif, rather too wide than too narrow."""
    return size * sum(map(_advance, text))


def _advance(character: str) -> float:
    if unicodedata.combining(character):
        return 0.0
    if unicodedata.east_asian_width(character) in "WF":
        return 1.05
    if character in "iljtfrI.,:;|!'()[]·-/ ":
        return 0.4
    return 0.98 if character in "mwMW%@…" else 0.84 if character in "=+<>−~" else 0.74 if character.isupper() else 0.635


def cut(text: str, room: float, size: float = SIZE) -> str:
    """The text, with "…" for a part of its middle where it is wider than ``room``; names differ at their ends."""
    if width(text, size) <= room:
        return text
    head, tail, used, longest = 0, 0, size, len(text)
    while head + tail < longest:
        more = text[head] if head <= tail else text[longest - tail - 1]
        used += size * _advance(more)
        if used > room:
            break
        head, tail = (head + 1, tail) if head <= tail else (head, tail + 1)
    return text[:head].rstrip() + "…" + text[longest - tail :].lstrip()


def drawable(value: float | None) -> bool:
    """Whether a value is a finite number of a size that can be drawn."""
    return value is not None and abs(value) <= LIMIT


def number(value: float, step: float | None = None) -> str:
    """A number for people: with the decimals that ``step`` has, else four significant digits; k, M, G, T when large.

    A dash for what cannot be drawn.
    """
    if not drawable(value):
        return "–"
    size = abs(value)
    if value and (size < 1e-4 or size >= 1e15) and not (step and step > 1e-5 > size):
        text = f"{value:.3g}"
    elif size >= 1e4:
        power = min(4, int(math.log10(size)) // 3)
        text = f"{value / 1000**power:.4g}{' kMGT'[power]}"
    elif step:
        text = f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"
    else:
        text = f"{value:.4g}"
    return (text if text.strip("-0.") else text.lstrip("-")).replace("-", "−")


@dataclass(frozen=True)
class Scale:
    """A map of the values from ``low`` to ``high`` to positions from ``start`` to ``end``, with values for ticks."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    step: float | None
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        share = ((math.log(value) if self.log else value) - low) / (high - low)
        return self.start + share * (self.end - self.start)

    def clamped(self, value: float) -> float:
        """The position of a value, at the nearer end where it lies outside."""
        return self(min(max(value, self.low), self.high))


def linear(values: Iterable[float], start: float, end: float, count: int = 6) -> Scale:
    """A scale that holds all values, with about ``count`` ticks at 1, 2 or 5 times a power of ten."""
    low, high = _range(values)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        half = abs(low) / 20 or 1.0
        low, high = low - half, high + half
    margin = (high - low) / 25
    low, high = low - margin, high + margin
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step), math.floor(high / step)
    ticks = [float(f"{index * step:.12g}") for index in range(first, last + 1)]
    return Scale(low, high, start, end, tuple(ticks), step)


def logarithmic(values: Iterable[float], start: float, end: float) -> Scale:
    """A logarithmic scale that holds all values, which are positive, with ticks at round numbers."""
    low, high = _range(values)
    margin = max((high / low) ** 0.1, 1.1)
    low, high = low / margin, high * margin
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        ticks = [f * 10.0**d for d in decades for f in factors if low <= f * 10.0**d <= high]
        if len(ticks) >= 3:
            return Scale(low, high, start, end, tuple(ticks[:: math.ceil(len(ticks) / 8)]), None, log=True)
    even = linear((low, high), start, end, 5)
    return Scale(low, high, start, end, tuple(tick for tick in even.ticks if low <= tick <= high), even.step, log=True)


def _range(values: Iterable[float]) -> tuple[float, float]:
    listed = list(values) or [0.0, 1.0]
    return min(listed), max(listed)


class Canvas:
    """An SVG image under construction; everything given to it is escaped.

    With ``linked`` marks it is a group, for what an image holds cannot be reached by keyboard.
    """

    def __init__(self, extent: tuple[float, float], title: str, words: Sequence[str], linked: bool) -> None:
        box = f"0 0 {_place(extent[0])} {_place(extent[1])}"
        role = "group" if linked else "img"
        space = "http://www.w3.org/2000/svg"
        self.wide = extent[0]
        self.root = ElementTree.Element(
            "svg", {"xmlns": space, "viewBox": box, "role": role, "font-size": _place(SIZE)}
        )
        ElementTree.SubElement(self.root, "title").text = plain(title)
        ElementTree.SubElement(self.root, "desc").text = " ".join(plain(word, 2 * LONGEST) for word in words)

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str, **more: str) -> None:
        """A straight line; ``kind`` is its class."""
        ends = zip(("x1", "y1", "x2", "y2"), map(_place, (x1, y1, x2, y2)), strict=True)
        ElementTree.SubElement(self.root, "line", {"class": kind, **dict(ends), **more})

    def path(self, points: Sequence[tuple[float, float]], kind: str, **more: str) -> None:
        """An open line through points."""
        d = "M" + " ".join(f"{_place(x)},{_place(y)}" for x, y in points)
        ElementTree.SubElement(self.root, "path", {"class": kind, "d": d, "fill": "none", **more})

    def text(
        self,
        x: float,
        y: float,
        text: str,
        kind: str = "label",
        anchor: str = "start",
        room: float = math.inf,
        tooltip: str = "",
        href: str | None = None,
        **more: str,
    ) -> None:
        """A line of text whose base line is at ``y``, cut to ``room`` with the whole of it as its tooltip."""
        whole = plain(text)
        shown = cut(whole, room)
        node = ElementTree.SubElement(self._link(href), "text", {"class": kind, "x": _place(x), "y": _place(y), **more})
        if anchor != "start":
            node.set("text-anchor", anchor)
        if tooltip or shown != whole:
            title = ElementTree.SubElement(node, "title")
            title.text, title.tail = plain(tooltip or text), shown
        else:
            node.text = shown

    def mark(self, x: float, y: float, kind: str, tooltip: str, href: str | None = None, size: float = 1.0) -> None:
        """A mark whose shape tells its kind as its class does."""
        place = f"translate({_place(x)} {_place(y)})" + (f" scale({_place(size)})" if size != 1 else "")
        attributes = {"class": f"mark mark-{known(kind)}", "transform": place, "d": SHAPES.get(kind, CIRCLE)}
        if kind == "control":
            attributes["stroke-width"] = "2"
        node = ElementTree.SubElement(self._link(href), "path", attributes)
        ElementTree.SubElement(node, "title").text = plain(tooltip)

    def rectangle(self, x: float, y: float, wide: float, high: float, kind: str) -> None:
        """A filled rectangle."""
        sides = zip(("x", "y", "width", "height"), map(_place, (x, y, wide, high)), strict=True)
        ElementTree.SubElement(self.root, "rect", {"class": kind, **dict(sides)})

    def _link(self, href: str | None) -> ElementTree.Element:
        """Where to put what leads to ``href``: only places within the site are linked."""
        if href is None or not _RELATIVE.fullmatch(href):
            return self.root
        return ElementTree.SubElement(self.root, "a", {"href": href})

    def bottom(self, scale: Scale, top: float, y: float, title: str) -> None:
        """A horizontal axis at ``y`` with grid lines up to ``top`` and its title below."""
        for value in scale.ticks:
            x = scale(value)
            self.line(x, top, x, y, "grid")
            self.text(x, y + 16, number(value, scale.step), "axis", "middle")
        self.line(scale.start, y, scale.end, y, "axis")
        self._title(scale, y + 34, title)

    def _title(self, scale: Scale, y: float, title: str) -> None:
        middle = (scale.start + scale.end) / 2
        self.text(middle, y, title, "label", "middle", room=2 * min(middle, self.wide - middle))

    def left(self, scale: Scale, x: float, right: float, title: str) -> None:
        """A vertical axis at ``x`` with grid lines up to ``right`` and its title above."""
        for value in scale.ticks:
            y = scale(value)
            self.line(x, y, right, y, "grid")
            self.text(x - 7, y + 4, number(value, scale.step), "axis", "end")
        self.line(x, scale.start, x, scale.end, "axis")
        self.text(4, min(scale.start, scale.end) - 12, title, "label", room=right - 4)

    def finish(self) -> str:
        """The image as text."""
        return ElementTree.tostring(self.root, encoding="unicode")


def known(kind: str) -> str:
    """The kind itself. Raises UsageError for one that there is not."""
    if kind not in KINDS:
        raise unknown("kind of mark", kind, KINDS)
    return kind


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions at least ``gap`` apart near those wanted, in their order; they overrun ``high`` where they must."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    placed = [0.0] * len(wanted)
    at = low - gap
    for index in order:
        at = placed[index] = max(wanted[index], at + gap)
    limit = max(high, low + gap * (len(wanted) - 1)) + gap
    for index in reversed(order):
        limit = placed[index] = min(placed[index], limit - gap)
    return placed


def _place(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}".rstrip("0").rstrip(".")
