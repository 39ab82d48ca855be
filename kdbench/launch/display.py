"""What a user sees of runs at work: bars on a terminal, elsewhere one line a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from kdbench.plan.config import NamedRun, RunConfig


def names_of(configs: Sequence[RunConfig]) -> dict[str, str]:
    """A short name for each run by its hash: what tells it from the others; settings that all share are left out."""
    shared = set.intersection(*(set(config.overrides) for config in configs)) if configs else set()

    def name(config: RunConfig) -> str:
        control = [] if config.control == "none" else [config.control]
        settings = [word for word in config.overrides if word not in shared]
        return " ".join([config.task, config.scale, config.method, *control, *settings, f"seed={config.seed}"])

    return {config.hash: name(config) for config in configs}


class Bars:
    """Progress on a terminal's stderr: all runs, and a line for each worker with the epochs of its run.

    Elsewhere one line a run. Methods take the number of the worker; as an engine's reporter it is that of the first.
    """

    def __init__(self, names: Mapping[str, str], total: int | None = None, workers: int = 1) -> None:
        self.names = names
        self.console = Console(stderr=True, markup=False, emoji=False, highlight=False)
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
            refresh_per_second=5,
        )
        self.all = self.progress.add_task("runs", total=len(names) if total is None else total, state="")
        self.lines = [self.progress.add_task("", total=None, state="", visible=False) for _ in range(workers)]

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def begin(self, run: NamedRun, worker: int = 0) -> None:
        """A run begins."""
        self.progress.reset(self.lines[worker], description=self.names[run.hash], state="", visible=True)

    def end(self, run: NamedRun, ending: str, worker: int = 0) -> None:
        """A run is over."""
        self.progress.update(self.lines[worker], visible=False)
        self.progress.advance(self.all)
        self.console.print(f"{self.names[run.hash]}: {ending}", soft_wrap=True)

    def stage(self, name: str, worker: int = 0) -> None:
        """A stage of the run begins."""
        self.progress.update(self.lines[worker], state=f"stage {name}")

    def epoch(self, done: int, total: int, value: float | None, worker: int = 0) -> None:
        """An epoch of the run is done."""
        state = "" if value is None else f"val {value:.4f}"
        self.progress.update(self.lines[worker], completed=done, total=total, state=state)

    def note(self, text: str) -> None:
        """Something the user should know."""
        self.console.print(text, style="yellow", soft_wrap=True)
