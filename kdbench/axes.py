"""One number, many independent random streams: the same run seed pairs the arms of a comparison."""

from __future__ import annotations

import hashlib

AXES = ("split", "student", "method", "teacher", "data_order", "training", "control")


def axis(seed: int, name: str, *more: int) -> int:
    """The seed of one stream: the first 32 bits of SHA-256("name:seed:more…").

    Every step draws from ``axis(seed, "training", epoch, batch, …)``, so a resumed run repeats an uninterrupted one.
    """
    text = ":".join(map(str, (name, seed, *more)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def teacher_seed(asked: int | None, seed: int) -> int:
    """The seed of a teacher's own training: the one that is asked for, or that of the run's stream of teachers."""
    return axis(seed, "teacher") if asked is None else asked
