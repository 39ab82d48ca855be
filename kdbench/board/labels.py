"""Where the labels of a scatter plot stand: beside their marks, and on nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

from kdbench.board.svg import SIZE, Canvas, cut, plain, width

Place = tuple[float, float]
Box = tuple[float, float, float, float]
WIDEST = 200.0
"""The most room that a label takes."""
AROUND = ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (1, 1), (-1, -1), (-1, 1))


def put_label(
    canvas: Canvas, label: str, at: Place, marks: Sequence[Place], taken: list[Box], lines: Sequence[Box], inside: Box
) -> None:
    """Write a label at the first free place around its mark at ``at``, near before far, and add it to those ``taken``.

    It covers none of the boxes ``taken``, and ``lines`` only where it finds no other place ``inside`` the plot. A near
    label is nearest to its own of all ``marks``, and a far one is tied to it by a line. Without a place it is left out.
    """
    wide, high = width(cut(plain(label), WIDEST)), SIZE
    for avoided, far, (across, down) in product((lines, ()), (10.0, 18.0, 30.0, 45.0, 60.0, 80.0), AROUND):
        reach = far * 0.8 if across and down else far
        x = at[0] + across * reach - (wide if across < 0 else 0 if across else wide / 2)
        y = at[1] + down * (reach if across else reach + 4) - high / 2
        box = (x, y, x + wide, y + high)
        if x < inside[0] or y < inside[1] or x + wide > inside[2] or y + high > inside[3]:
            continue
        if any(_overlap(box, other) for other in taken) or any(_overlap(box, line) for line in avoided):
            continue
        tied = far > 18
        apart = 20.0 if tied else _distance(box, at) + 4
        near = (min(max(at[0], x), x + wide), min(max(at[1], y), y + high))
        if any(mark != at and _distance(box, mark) < apart for mark in marks):
            continue
        # A line may pass marks that all but cover its own.
        if tied and any(math.dist(mark, at) > 10 and _beside(mark, at, near) < 6 for mark in marks):
            continue
        taken.append(box)
        if tied:
            canvas.line(*at, *near, "axis")
        canvas.text(x, y + high - 2.5, label, room=WIDEST)
        return


def _distance(box: Box, at: Place) -> float:
    return math.hypot(max(box[0] - at[0], 0, at[0] - box[2]), max(box[1] - at[1], 0, at[1] - box[3]))


def _beside(place: Place, a: Place, b: Place) -> float:
    """The distance of a place from the line between two different ones."""
    (px, py), dx, dy = (place[0] - a[0], place[1] - a[1]), b[0] - a[0], b[1] - a[1]
    along = min(1.0, max(0.0, (px * dx + py * dy) / (dx * dx + dy * dy)))
    return math.hypot(px - along * dx, py - along * dy)


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
