"""Runs one after another in this process; what is done is skipped, and a failed run does not stop the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from kdbench.catalog import card
from kdbench.config import RunConfig, expand_baselines
from kdbench.errors import KdbenchError

if TYPE_CHECKING:
    from kdbench.engine.runner import Outcome


@dataclass
class Report:
    """What became of the runs."""

    outcomes: list[Outcome] = field(default_factory=list)
    failures: list[tuple[RunConfig, str]] = field(default_factory=list)


def with_baselines(configs: Sequence[RunConfig]) -> list[RunConfig]:
    """The runs and, before each, its ``alone`` and ``kd`` with the same seed and settings."""
    planned: dict[str, RunConfig] = {}
    for config in configs:
        for one in (*expand_baselines(config), config):
            planned.setdefault(one.hash, one)
    return list(planned.values())


def label(config: RunConfig) -> str:
    """A short name for a progress line."""
    settings = [word for word in config.overrides if not word.startswith("trainer.")]
    control = [] if config.control == "none" else [config.control]
    return " ".join([config.task, config.method, *control, *settings, f"seed={config.seed}"])


class Bars:
    """Progress on a terminal: all runs, and the epochs of the one at work. Elsewhere one line a run."""

    def __init__(self, total: int) -> None:
        self.console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description}", table_column=None),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[told]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
            refresh_per_second=5,
        )
        self.all: TaskID = self.progress.add_task("runs", total=total, told="")
        self.now: TaskID = self.progress.add_task("", total=None, told="")

    def begin(self, config: RunConfig) -> None:
        """A run begins."""
        self.progress.reset(self.now, description=label(config), total=config.trainer.max_epochs, told="")

    def end(self, config: RunConfig, told: str) -> None:
        """A run is over."""
        self.progress.advance(self.all)
        self.console.print(f"{label(config)}: {told}", highlight=False, soft_wrap=True)

    def stage(self, name: str) -> None:
        self.progress.update(self.now, told=f"stage {name}")

    def epoch(self, done: int, total: int, value: float | None) -> None:
        told = "" if value is None else f"val {value:.4f}"
        self.progress.update(self.now, completed=done, total=total, told=told)

    def note(self, text: str) -> None:
        self.console.print(text, style="yellow", highlight=False, soft_wrap=True)


def launch(configs: Sequence[RunConfig], root: Path) -> Report:
    """Do the runs in order. A run that fails is reported and the next one begins; a full disk stops them all."""
    report, bars = Report(), Bars(len(configs))
    with bars.progress:
        from kdbench.engine.runner import run

        for config in configs:
            bars.begin(config)
            try:
                outcome = run(config, root, bars)
            except KdbenchError as error:
                if len(configs) == 1 or error.exit_code == 2:
                    raise
                report.failures.append((config, str(error)))
                bars.end(config, f"FAILED: {error}")
                continue
            report.outcomes.append(outcome)
            metrics = outcome.record.metrics
            score = metrics.test[config.metric] if metrics else float("nan")
            bars.end(config, f"test {config.metric} {score:.4f}" + (" (done earlier)" if outcome.reused else ""))
    return report


def scale_note(configs: Sequence[RunConfig], given: Sequence[str]) -> str | None:
    """Says which scale was taken when the user named none."""
    if any(word.startswith("scale=") for word in given) or not configs:
        return None
    task = card(configs[0].task)
    others = [scale for scale in task.scales if scale != configs[0].scale]
    more = f"; others: {', '.join(others)}" if others else ""
    data = " on generated data" if configs[0].scale == "tiny" else ""
    return f"No scale was given: running {task.name} at scale={configs[0].scale}{data}{more}."
