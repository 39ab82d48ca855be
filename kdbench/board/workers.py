"""Work spread over processes that inherit their input."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_inherited: tuple[Callable[[Any], Any], Sequence[Any]] | None = None


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spread(function: Callable[[Item], Result], items: Sequence[Item], jobs: int) -> Iterator[Result]:
    """``map(function, items)`` in ``jobs`` forked processes, in order; one process where nothing can be forked.

    Function and items are inherited, so only results are sent. Nested use is not possible.
    """
    global _inherited
    if jobs <= 1 or len(items) <= 1 or "fork" not in multiprocessing.get_all_start_methods():
        yield from map(function, items)
        return
    _inherited = (function, items)
    gc.freeze()  # else the first collection of a process looks at all that it inherits, and so copies it
    try:
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("fork"), _begin) as pool:
            yield from pool.map(_call, range(len(items)))
    finally:
        _inherited = None


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends them
    gc.enable()


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Keep Python from looking for garbage among what is kept anyway, which with many records is most of the work."""
    enabled = gc.isenabled()
    gc.disable()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()


def _call(index: int) -> Any:
    assert _inherited is not None
    function, items = _inherited
    return function(items[index])
