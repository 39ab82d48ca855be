"""Runs one after another in this process; what is done is skipped, and a failed run does not stop the others."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors import SafetensorError

from kdbench.cards import card
from kdbench.catalog import require_extra
from kdbench.config import RunConfig, expand_baselines
from kdbench.errors import DISK_FULL, KdbenchError, UsageError

if TYPE_CHECKING:
    from kdbench.engine.runner import Outcome

RUN_ERRORS = (KdbenchError, ArithmeticError, LookupError, RuntimeError, SafetensorError, TypeError, ValueError)
"""What one run may die of while the next one begins: our own errors, and those of a method's or a library's code."""


@dataclass
class Report:
    """What became of the runs; a failure is a run's label and its error."""

    outcomes: list[Outcome] = field(default_factory=list)
    failures: list[tuple[str, Exception]] = field(default_factory=list)

    @property
    def told(self) -> list[str]:
        """One line a failure."""
        return [f"{label}: {told(error)}" for label, error in self.failures]


def told(error: Exception) -> str:
    """An error in words; one that nobody foresaw also by its kind."""
    return str(error) if isinstance(error, KdbenchError) else f"{type(error).__name__}: {error}"


def with_baselines(configs: Sequence[RunConfig]) -> list[RunConfig]:
    """The runs and, before each, its ``alone`` and ``kd`` with the same seed and settings."""
    planned: dict[str, RunConfig] = {}
    for config in configs:
        for one in (*expand_baselines(config), config):
            planned.setdefault(one.hash, one)
    return list(planned.values())


def progress_bars() -> Progress:
    """Bars on a terminal's stderr, for tasks with a field ``told``; elsewhere nothing but what is printed."""
    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[told]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
        refresh_per_second=5,
    )


class Bars:
    """Progress on a terminal: all runs, and the epochs of the one at work. Elsewhere one line a run.

    A run is labelled by what tells it from the others: settings that all of them share are left out.
    """

    def __init__(self, configs: Sequence[RunConfig]) -> None:
        self.shared = set.intersection(*(set(config.overrides) for config in configs)) if configs else set()
        self.progress = progress_bars()
        self.console = self.progress.console
        self.all = self.progress.add_task("runs", total=len(configs), told="")
        self.now = self.progress.add_task("", total=None, told="")

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def label(self, config: RunConfig) -> str:
        """A short name of a run among the others."""
        control = [] if config.control == "none" else [config.control]
        settings = [word for word in config.overrides if word not in self.shared]
        return " ".join([config.task, config.scale, config.method, *control, *settings, f"seed={config.seed}"])

    def begin(self, config: RunConfig) -> None:
        """A run begins."""
        self.progress.reset(self.now, description=self.label(config), total=config.trainer.max_epochs, told="")

    def end(self, config: RunConfig, told: str) -> None:
        """A run is over."""
        self.progress.advance(self.all)
        self.console.print(f"{self.label(config)}: {told}", soft_wrap=True)

    def stage(self, name: str) -> None:
        """A stage of the run begins."""
        self.progress.update(self.now, told=f"stage {name}")

    def epoch(self, done: int, total: int, value: float | None) -> None:
        """An epoch of the run is done."""
        self.progress.update(self.now, completed=done, total=total, told="" if value is None else f"val {value:.4f}")

    def note(self, text: str) -> None:
        """Something the user should know."""
        self.console.print(text, style="yellow", soft_wrap=True)


def launch(configs: Sequence[RunConfig], root: Path) -> Report:
    """Do the runs in order. A run that fails is reported and the next one begins; a full disk stops them all."""
    for family in {config.family for config in configs}:
        require_extra(family)
    ready(root)
    report = Report()
    with Bars(configs) as bars:
        from kdbench.engine.runner import run

        for config in configs:
            bars.begin(config)
            try:
                outcome = run(config, root, bars)
            except RUN_ERRORS as error:
                if (behind := _system_error(error)) is not None:
                    raise behind from error
                report.failures.append((bars.label(config), error))
                bars.end(config, f"FAILED: {told(error)}")
                continue
            if outcome is None or outcome.record.metrics is None:
                continue  # not the first of several processes
            report.outcomes.append(outcome)
            score = outcome.record.metrics.test[config.metric]
            bars.end(config, f"test {config.metric} {score:.4f}" + (" (done earlier)" if outcome.reused else ""))
    return report


def ready(root: Path) -> None:
    """Make the folder of runs, and a file in it that goes at once: a folder of no use is refused before any work."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=root).close()
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        raise UsageError(
            f"Cannot write to the run folder '{root}': {error.strerror}. Choose another by --runs."
        ) from None


def _system_error(error: Exception) -> OSError | None:
    """The OSError behind an error of safetensors, which tells its number in the text alone."""
    number = re.search(r"os error (\d+)", str(error)) if isinstance(error, SafetensorError) else None
    return OSError(int(number[1]), str(error)) if number else None


def scale_note(configs: Sequence[RunConfig], given: Sequence[str]) -> str | None:
    """Says which scale was taken when the user named none."""
    if any(word.startswith("scale=") for word in given) or not configs:
        return None
    task = card(configs[0].task)
    others = [scale for scale in task.scales if scale != configs[0].scale]
    more = f"; others: {', '.join(others)}" if others else ""
    data = " on generated data" if configs[0].scale == "tiny" else ""
    return f"No scale was given: running {task.name} at scale={configs[0].scale}{data}{more}."
