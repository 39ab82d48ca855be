"""The board's plots as SVG text: intervals, cost against score, seeds, curves, and ranks with a critical difference.

Each is a function of its data alone, byte for byte, whose numbers also stand in words in ``<desc>``. A missing or
absurd number (not finite, or beyond 1e100) is named there and not drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from kdbench.board.labels import Box, put_label
from kdbench.board.svg import (
    SIZE,
    Canvas,
    Scale,
    cut,
    drawable,
    known,
    linear,
    logarithmic,
    number,
    plain,
    spread,
    width,
)

WIDE = 640.0
ROW = 24.0
PAD = 12.0
LABELS = 0.34
"""Largest share of the width that labels beside lines may take."""
NARROWEST = 230.0
"""The width that labels and numbers beside rows leave to what is drawn."""
NAMED = 60
"""The most marks beside those on the front that get a label."""
DASHES = ("", "7 3", "2 3", "8 3 2 3")


@dataclass(frozen=True)
class Interval:
    """A mean with its interval, if it has one; ``note`` stands behind the numbers, such as an adjusted p."""

    label: str
    kind: str
    mean: float
    low: float | None
    high: float | None
    href: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Point:
    """A score ``y``, with its interval, at a cost ``x``."""

    label: str
    kind: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    href: str | None = None


@dataclass(frozen=True)
class Series:
    """Values of one arm: one for each seed, or one for each place on the x axis."""

    label: str
    kind: str
    values: tuple[float, ...]


def intervals(rows: Sequence[Interval], title: str, axis: str, zero: bool = True, groups: Sequence[str] = ()) -> str:
    """Means with their intervals, one below the other, and the numbers beside them (a forest plot).

    ``groups`` names the group of each row; a heading stands above the rows of one group that follow one another. What
    lies far from everything else ends in an arrow at the border, its numbers beside it. Raises ValueError for groups of
    another number than rows.
    """
    if groups and len(groups) != len(rows):
        raise ValueError(f"{len(rows)} rows cannot have the groups of {len(groups)}.")
    shown = [row for row in rows if drawable(row.mean)]
    ends = [end for row in shown for end in (row.low, row.high) if end is not None and drawable(end)]
    domain = _core([*(row.mean for row in shown), *ends], [0.0] if zero else [])
    step = linear(domain, 0, 1).step or 1.0
    estimates = [_estimate(row.mean, row.low, row.high, step / 100) for row in rows]
    notes = [
        f"{row.label}: {numbers}{f', {row.note}' if row.note else ''}."
        for row, numbers in zip(rows, estimates, strict=True)
    ]
    headings = [index for index, group in enumerate(groups) if not index or group != groups[index - 1]]
    table = _Rows(
        [row.label for row in rows],
        [(numbers, row.note) for row, numbers in zip(rows, estimates, strict=True)],
        domain,
        headings,
    )
    canvas = table.canvas(title, notes, any(row.href for row in rows))
    scale = table.axis(canvas, axis)
    if zero:
        canvas.line(scale(0), table.top, scale(0), table.bottom, "zero")
    for index, (row, numbers, note) in enumerate(zip(rows, estimates, notes, strict=True)):
        if index in headings:
            canvas.text(0, table.y[index] - ROW + 4, groups[index], "label", room=WIDE, **{"font-weight": "bold"})
        table.words(canvas, index, row.label, (numbers, row.note), row.href)
        if drawable(row.mean):
            low, high = (end if drawable(end) else None for end in (row.low, row.high))
            _whisker(canvas, scale, table.y[index], low, high, row.kind)
            _mark_or_arrow(canvas, scale, table.y[index], row.mean, row.kind, note, row.href)
    return canvas.finish()


def dots(rows: Sequence[Series], title: str, axis: str) -> str:
    """One dot for each seed and a bar at their mean, one arm below the other; equal values are drawn side by side."""
    shown = [[value for value in row.values if drawable(value)] for row in rows]
    domain = _span([value for values in shown for value in values])
    step = (linear(domain, 0, 1).step or 1.0) / 100
    means = [math.fsum(values) / len(values) if values else None for values in shown]
    estimates = [_estimate(mean, None, None, step) for mean in means]
    notes = [
        f"{row.label}: mean {numbers} of {', '.join(number(value, step) for value in row.values) or 'no values'}."
        for row, numbers in zip(rows, estimates, strict=True)
    ]
    table = _Rows(
        [row.label for row in rows], [(text, f"n = {len(v)}") for text, v in zip(estimates, shown, strict=True)], domain
    )
    canvas = table.canvas(title, notes, False)
    scale = table.axis(canvas, axis)
    for index, (row, values, mean) in enumerate(zip(rows, shown, means, strict=True)):
        table.words(canvas, index, row.label, (estimates[index], f"n = {len(values)}"))
        taken: dict[int, int] = {}
        for seed, value in enumerate(row.values):
            if drawable(value):
                x = scale(value)
                count = taken[round(x / 5)] = taken.get(round(x / 5), -1) + 1
                shift = min((count + 1) // 2 * 3.5, 9.0) * (1 if count % 2 else -1)
                canvas.mark(x, table.y[index] + shift, row.kind, f"{row.label}, {seed + 1}: {number(value)}", size=0.7)
        if mean is not None:
            y = table.y[index]
            canvas.line(scale(mean), y - 9, scale(mean), y + 9, f"interval mark-{row.kind}", **{"stroke-width": "2.5"})
    return canvas.finish()


def pareto(
    points: Sequence[Point], title: str, x_axis: str, y_axis: str, log_x: bool = True, maximise: bool = True
) -> str:
    """Scores against a cost, with the front of those that no other beats in both; lower costs are better.

    Labels stand where they cover no mark and no other label; a mark without room for one keeps it as its tooltip. A
    logarithmic axis leaves out costs that are not positive.
    """
    shown = [p for p in points if drawable(p.x) and drawable(p.y) and (p.x > 0 or not log_x)]
    ends = [end for p in shown for end in (p.low, p.high) if end is not None and drawable(end)]
    high = 400.0
    y = linear([*(p.y for p in shown), *ends], high - 48, 34)
    left = 16 + max((width(number(tick, y.step)) for tick in y.ticks), default=0.0)
    costs = [p.x for p in shown]
    x = (logarithmic(costs or [1.0, 10.0], left, WIDE - PAD)) if log_x else linear(costs, left, WIDE - PAD)
    best = _front(shown, maximise)
    words = [
        f"{p.label}: {number(p.x)}, {_estimate(p.y, p.low, p.high, (y.step or 1) / 100)}"
        + ("." if p in shown else ", not drawn.")
        + (" On the front." if p in best else "")
        for p in points
    ]
    canvas = Canvas((WIDE, high), title, words, any(p.href for p in shown))
    canvas.left(y, left, WIDE - PAD, y_axis)
    canvas.bottom(x, 34, high - 48, x_axis)
    steps = [(x(best[0].x), y(best[0].y))] if best else []
    for before, after in pairwise(best):
        steps += [(x(after.x), y(before.y)), (x(after.x), y(after.y))]
    if best:
        steps.append((WIDE - PAD, steps[-1][1]))
        canvas.path(steps, "interval", **{"stroke-dasharray": "5 4"})
    lines: list[Box] = [(min(a, c), min(b, d), max(a, c), max(b, d)) for (a, b), (c, d) in pairwise(steps)]
    taken: list[Box] = []
    for p in shown:
        at = x(p.x)
        low, up = (y.clamped(end) if end is not None and drawable(end) else y(p.y) for end in (p.low, p.high))
        if low != up:
            canvas.line(at, low, at, up, f"interval mark-{known(p.kind)}")
        lines.append((at - 1, min(low, up), at + 1, max(low, up)))
        taken.append((at - 6, y(p.y) - 6, at + 6, y(p.y) + 6))
    tooltips = {p: word for p, word in zip(points, words, strict=True)}
    for p in shown:
        canvas.mark(x(p.x), y(p.y), p.kind, tooltips[p], p.href)
    marks = [(x(p.x), y(p.y)) for p in shown]
    for p in [*best, *[p for p in shown if p not in best][:NAMED]]:
        put_label(canvas, p.label, (x(p.x), y(p.y)), marks, taken, lines, (left + 2, 36, WIDE, high - 50))
    return canvas.finish()


def curves(x: Sequence[float], lines: Sequence[Series], title: str, x_axis: str, y_axis: str) -> str:
    """Lines over a common x axis, each with its label at its end; a missing value breaks its line.

    Lines of one label are of one colour and share their label. Raises ValueError for a line of another length than x.
    """
    if any(len(line.values) != len(x) for line in lines):
        raise ValueError(f"A line does not have the {len(x)} values of the x axis.")
    places = [place for place in x if drawable(place)]
    values = [value for line in lines for value in line.values if drawable(value)]
    high = 300.0
    y = linear(values, high - 48, 34)
    left = 16 + max((width(number(tick, y.step)) for tick in y.ticks), default=0.0)
    labels = list(dict.fromkeys(line.label for line in lines))
    room = min(WIDE * LABELS, max((width(plain(label)) for label in labels), default=0.0) + 4)
    across = _fit(linear(places, left, WIDE - room - 16), places)
    words = [f"{line.label}: {_course(x, line.values)}." for line in lines]
    canvas = Canvas((WIDE, high), title, words, False)
    canvas.left(y, left, WIDE - room - 16, y_axis)
    canvas.bottom(across, 34, high - 48, x_axis)
    ends: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        dash = DASHES[labels.index(line.label) % len(DASHES)]
        style = {"stroke-dasharray": dash} if dash else {}
        for piece in _pieces(x, line.values):
            drawn = [(across(place), y(value)) for place, value in piece]
            canvas.path(drawn if len(drawn) > 1 else drawn * 2, f"interval mark-{known(line.kind)}", **style)
            ends.setdefault(line.label, []).append(drawn[-1])
    kinds = {line.label: line.kind for line in lines}
    wanted = [math.fsum(at for _, at in points) / len(points) for points in ends.values()]
    for label, at in zip(ends, spread(wanted, SIZE + 2, 40, high - 52), strict=True):
        canvas.mark(WIDE - room - 8, at, kinds[label], label, size=0.6)
        canvas.text(WIDE - room, at + 4, label, room=room)
    return canvas.finish()


def critical_difference_diagram(ranks: Mapping[str, float], cd: float, title: str) -> str:
    """Mean ranks on a line, 1 = best, with bars over methods whose ranks differ by less than the critical difference.

    ``ranks`` are those of all methods that were ranked together, so each lies between 1 and their number.
    Source: Demšar (2006), Journal of Machine Learning Research 7, 1-30, section 3.2.2.
    """
    last = max(2, len(ranks))
    ranked = sorted((rank, label) for label, rank in ranks.items() if 1 <= rank <= last)
    groups = _alike([rank for rank, _ in ranked], cd)
    side = (len(ranked) + 1) // 2
    start, end, line = WIDE * 0.34, WIDE * 0.66, 64.0
    first_row = line + 18 + 9 * len(groups)
    words = [f"{label}: mean rank {number(rank, 0.01)}." for rank, label in ranked]
    words += [f"{label}: not drawn." for label, rank in ranks.items() if not 1 <= rank <= last]
    words.append(f"Critical difference {number(cd, 0.01)}.")
    words += [f"Not told apart: {', '.join(label for _, label in ranked[a : b + 1])}." for a, b in groups]
    canvas = Canvas((WIDE, first_row + ROW * max(1, side) + 4), title, words, False)
    ticks = tuple(map(float, range(1, last + 1, math.ceil(last / 10))))
    scale = Scale(1.0, float(last), start, end, ticks, 1.0)
    _rank_axis(canvas, scale, line, cd)
    for index, (a, b) in enumerate(groups):
        y = line + 10 + 9 * index
        canvas.line(scale(ranked[a][0]) - 4, y, scale(ranked[b][0]) + 4, y, "interval", **{"stroke-width": "4"})
    for index, (rank, label) in enumerate(ranked):
        left = index < side
        y = first_row + ROW * (index if left else len(ranked) - 1 - index) + 10
        x, edge = scale(rank), start - 14 if left else end + 14
        canvas.path([(x, line), (x, y), (edge, y)], "axis")
        tooltip = f"{label}: mean rank {number(rank, 0.01)}"
        rank_text = number(rank, 0.01)
        canvas.text(
            edge - 4 if left else edge + 4,
            y + 4,
            f"{cut(plain(label), start - 20 - width(rank_text) - 12)}  {rank_text}",
            anchor="end" if left else "start",
            tooltip=tooltip,
        )
    return canvas.finish()


def _rank_axis(canvas: Canvas, scale: Scale, y: float, cd: float) -> None:
    """The axis of ranks, with the critical difference above it as a rule that starts at the best rank."""
    canvas.line(scale.start, y, scale.end, y, "axis")
    for tick in scale.ticks:
        canvas.line(scale(tick), y - 5, scale(tick), y, "axis")
        canvas.text(scale(tick), y - 9, number(tick, 1.0), "axis", "middle")
    if not (drawable(cd) and cd > 0):
        return
    stop = scale.clamped(1 + cd)
    canvas.line(scale.start, 24, stop, 24, "axis")
    for x in (scale.start, stop) if 1 + cd <= scale.high else (scale.start,):
        canvas.line(x, 20, x, 28, "axis")
    canvas.text(scale.start, 14, f"critical difference {number(cd, 0.01)}")


class _Rows:
    """The frame of a plot with one row for each arm: labels left, numbers right, an axis below."""

    def __init__(
        self,
        labels: Sequence[str],
        numbers: Sequence[tuple[str, str]],
        domain: Sequence[float],
        headings: Sequence[int] = (),
    ) -> None:
        self.top = 8.0
        first, second = (max((width(plain(pair[i])) for pair in numbers), default=0.0) for i in (0, 1))
        self.second = min(second, WIDE * 0.2)
        self.first = min(first, WIDE * 0.3)
        self.right = WIDE - self.first - (self.second + PAD if self.second else 0.0) - PAD
        widest = max((width(plain(label)) for label in labels), default=0.0) + PAD + 2
        self.left = min(widest, self.right - NARROWEST)
        self.domain = domain
        self.y: list[float] = []
        at = self.top - ROW / 2
        for index in range(len(labels)):
            at += ROW * (2 if index in headings else 1)
            self.y.append(at)
        self.bottom = at + ROW * 0.75 if labels else ROW

    def canvas(self, title: str, words: Sequence[str], linked: bool) -> Canvas:
        return Canvas((WIDE, self.bottom + 42), title, words, linked)

    def axis(self, canvas: Canvas, title: str) -> Scale:
        scale = linear(self.domain, self.left, self.right, max(2, int((self.right - self.left) / 42)))
        canvas.bottom(scale, self.top, self.bottom, title)
        return scale

    def words(self, canvas: Canvas, index: int, label: str, numbers: tuple[str, str], href: str | None = None) -> None:
        y = self.y[index] + 4
        canvas.text(self.left - PAD, y, label, anchor="end", room=self.left - PAD - 2, href=href)
        x = WIDE - (self.second + PAD if self.second else 0.0)
        canvas.text(x, y, numbers[0], anchor="end", room=self.first)
        if numbers[1]:
            canvas.text(WIDE, y, numbers[1], "axis", anchor="end", room=self.second)


def _estimate(mean: float | None, low: float | None, high: float | None, step: float) -> str:
    if mean is None or not drawable(mean):
        return "–"
    if low is None or high is None:
        return number(mean, step)
    return f"{number(mean, step)} [{', '.join(number(end, step) if drawable(end) else '–' for end in (low, high))}]"


def _span(values: Sequence[float]) -> list[float]:
    return [min(values), max(values)] if values else [0.0, 1.0]


def _core(values: Sequence[float], always: Sequence[float]) -> list[float]:
    """The span of the values, but for those more than three interquartile ranges outside the quartiles."""
    ordered = sorted(values)
    if not ordered:
        return _span(always)
    lower, upper = ordered[len(ordered) // 4], ordered[(3 * len(ordered)) // 4]
    reach = 3 * (upper - lower) or math.inf
    return _span([*(value for value in ordered if lower - reach <= value <= upper + reach), *always])


def _whisker(canvas: Canvas, scale: Scale, y: float, low: float | None, high: float | None, kind: str) -> None:
    """An interval with caps; an end outside the axis is an arrow head instead."""
    if low is None or high is None or high < scale.low or low > scale.high:
        return
    drawn = f"interval mark-{known(kind)}"
    canvas.line(scale.clamped(low), y, scale.clamped(high), y, drawn)
    for end, outward in ((low, -1), (high, 1)):
        x = scale.clamped(end)
        if scale.low <= end <= scale.high:
            canvas.line(x, y - 4, x, y + 4, drawn)
        else:
            canvas.path([(x - outward * 6, y - 4), (x, y), (x - outward * 6, y + 4)], drawn)


def _mark_or_arrow(
    canvas: Canvas, scale: Scale, y: float, value: float, kind: str, tooltip: str, href: str | None
) -> None:
    if scale.low <= value <= scale.high:
        canvas.mark(scale(value), y, kind, tooltip, href)
        return
    outward, x = (1, scale.end) if value > scale.high else (-1, scale.start)
    canvas.path([(x - outward * 14, y), (x, y)], f"interval mark-{known(kind)}")
    canvas.path([(x - outward * 6, y - 4), (x, y), (x - outward * 6, y + 4)], f"interval mark-{kind}")


def _front(points: Sequence[Point], maximise: bool) -> list[Point]:
    """Points that none beats: of rising cost, each better than all that cost no more."""
    sign = 1 if maximise else -1
    best: list[Point] = []
    for p in sorted(points, key=lambda p: (p.x, -sign * p.y)):
        if not best or sign * p.y > sign * best[-1].y:
            best.append(p)
    return best


def _fit(scale: Scale, values: Sequence[float]) -> Scale:
    """The scale without margins, where the values span a range."""
    low, high = _span(values)
    if low == high:
        return scale
    ticks = tuple(tick for tick in scale.ticks if low <= tick <= high)
    return Scale(low, high, scale.start, scale.end, ticks, scale.step)


def _pieces(x: Sequence[float], values: Sequence[float]) -> list[list[tuple[float, float]]]:
    """The runs of places at which both numbers can be drawn."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for place, value in zip(x, values, strict=True):
        if drawable(place) and drawable(value):
            pieces[-1].append((place, value))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _course(x: Sequence[float], values: Sequence[float]) -> str:
    piece = [point for part in _pieces(x, values) for point in part]
    if not piece:
        return "no values"
    low, high = (edge(value for _, value in piece) for edge in (min, max))
    course = f"from {number(piece[0][1])} at {number(piece[0][0])} to {number(piece[-1][1])} at {number(piece[-1][0])}"
    missing = len(values) - len(piece)
    return f"{course}, between {number(low)} and {number(high)}" + (f", {missing} not drawn" if missing else "")


def _alike(ranks: Sequence[float], cd: float) -> list[tuple[int, int]]:
    """First and last of each largest run of sorted ranks that lie within less than the critical difference."""
    groups: list[tuple[int, int]] = []
    for first, rank in enumerate(ranks):
        last = max(index for index in range(first, len(ranks)) if ranks[index] - rank < cd or index == first)
        if last > first and (not groups or last > groups[-1][1]):
            groups.append((first, last))
    return groups
