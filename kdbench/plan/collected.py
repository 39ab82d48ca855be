"""What reading many files gave: a faulty one is reported on stderr, and the others are there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import click

from kdbench.errors import CardError

K = TypeVar("K")
V = TypeVar("V")


class Collected(dict[K, V]):
    """What was read, by name. ``faulty`` tells, by name, why something is not here."""

    def __init__(self) -> None:
        super().__init__()
        self.faulty: dict[K, CardError] = {}

    @contextmanager
    def reading(self, name: K) -> Iterator[None]:
        """A fault of what is read under this name is reported and kept, and goes no further."""
        try:
            yield
        except CardError as error:
            self.faulty.setdefault(name, error)
            if not error.reported:
                click.echo(f"Left out: {error}", err=True)
            error.reported = True

    def check(self, *names: K) -> None:
        """Raise the fault of the first of these names that has one: it is asked for."""
        for name in names:
            if name in self.faulty:
                raise self.faulty[name]
