"""What commands share: their group, options, JSON for machines, tables for people."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from kdbench.board.safe import clean, line
from kdbench.errors import KdbenchError, UsageError, unknown

if TYPE_CHECKING:
    from kdbench.launch.local import Report
    from kdbench.results.agree import Fault
    from kdbench.results.compare import Comparison
    from kdbench.results.record import Record


class Commands(click.Group):
    """Answers an unknown command with the nearest one."""

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and self.get_command(context, args[0]) is None:
            raise unknown("command", args[0], self.list_commands(context))
        return super().resolve_command(context, args)


runs_option = click.option(
    "--runs",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    envvar="KDBENCH_RUNS",
    show_default=True,
    help="Folder of runs, stages and caches ($KDBENCH_RUNS).",
)
yes_option = click.option("--yes", is_flag=True, help="Do not ask before what a record brings is used.")


def _name_data_sets(context: click.Context, parameter: click.Parameter, given: Path | None) -> None:
    """Processes that this one starts hear of the file by the same variable."""
    if given is not None:
        os.environ["KDBENCH_DATA_SETS"] = str(given)


data_sets_option = click.option(
    "--data-sets",
    type=click.Path(path_type=Path),
    callback=_name_data_sets,
    expose_value=False,
    help="YAML file that describes data sets of your own ($KDBENCH_DATA_SETS).",
)
workers_option = click.option(
    "--workers",
    type=click.IntRange(min=1),
    envvar="KDBENCH_WORKERS",
    help="Runs at a time; as many as processor cores by default ($KDBENCH_WORKERS).",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")

stale_option = click.option(
    "--keep-stale", is_flag=True, help="Keep finished runs that other code, data or teacher files made."
)


def print_json(value: Any) -> None:
    """Print JSON for machines."""
    click.echo(json.dumps(value, indent=1))


MOST_TOLD = 20


def say(text: str, err: bool = False) -> None:
    """Print text that may hold strangers' words: nothing in it steers the terminal."""
    click.echo(clean(text), err=err)


def say_problems(faults: Iterable[Fault]) -> None:
    """Print what is wrong with records, one line for each fault."""
    for fault in faults:
        click.echo(line(f"{fault.path}: {fault.field}: {fault.message}"), err=True)


def say_left_out(others: Sequence[Path], unchecked: Mapping[str, int]) -> None:
    """Print which JSON files are no records, and what could not be checked."""
    for path in others[:MOST_TOLD]:
        click.echo(line(f"note: {path} is no record"), err=True)
    if len(others) > MOST_TOLD:
        click.echo(f"note: {len(others) - MOST_TOLD} more files are no records; --json names all", err=True)
    for why, count in unchecked.items():
        click.echo(line(f"note: {count} records could not be checked in all: {why}"), err=True)


def consent(brought: Sequence[str], yes: bool) -> None:
    """Ask before what a record brings is used. UsageError for a no, and where nobody is there to ask."""
    if not brought or yes:
        return
    listed = "\n".join(f"  {line(one)}" for one in brought)
    click.echo(f"This record brings what the task's defaults do not:\n{listed}", err=True)
    if not sys.stdin.isatty():
        raise UsageError("Nothing was run. --yes runs it without asking.")
    if not click.confirm("Run it?", err=True):
        raise UsageError("Nothing was run.")


class Named(Protocol):
    """A run, by its hash and the line that repeats it."""

    @property
    def hash(self) -> str: ...

    @property
    def command(self) -> str: ...


def print_runs(runs: Iterable[Named], as_json: bool) -> None:
    """Print runs that are asked for and not started."""
    lines = [{"command": run.command, "hash": run.hash} for run in runs]
    print_json(lines) if as_json else click.echo("\n".join(f"{one['hash'][:16]}  {one['command']}" for one in lines))


def problems_json(faults: Iterable[Fault]) -> list[dict[str, str]]:
    """What is wrong with records, for machines."""
    return [{"path": str(fault.path), "field": fault.field, "message": fault.message} for fault in faults]


def print_tables(
    records: Sequence[Record], as_json: bool, folders: Sequence[Path] = (), metric: str | None = None
) -> None:
    """Print the comparisons of records, and where the records are."""
    from kdbench.results import compare

    comparisons = compare.compare(records, metric)
    if as_json:
        places = [str(folder / "record.json") for folder in folders]
        print_json({"comparisons": [compare.to_json(c) for c in comparisons], "records": places})
        return
    print_comparisons(comparisons)
    if folders:
        click.echo(f"Records: {len(folders)} under {os.path.commonpath(folders)}")


def raise_failures(report: Report, asked: int) -> None:
    """Raise one error that names every run that failed; nothing where none did."""
    if not report.failures:
        return
    listed = "\n  ".join([f"{len(report.failures)} of {asked} runs failed:", *report.reasons])
    errors = [error for _, error in report.failures.values()]
    kind = UsageError if all(isinstance(error, UsageError) for error in errors) else KdbenchError
    raise kind(listed) from ExceptionGroup("failed runs", errors)


def print_comparisons(comparisons: Iterable[Comparison]) -> None:
    """Print tables for people."""
    from rich.console import Console

    from kdbench.results import render

    here = Console()
    width = max(112, min(140, here.width)) if here.is_terminal else 140
    for comparison in comparisons:
        Console(width=width).print(render.table(cleaned(comparison)))


def cleaned(value: Any) -> Any:
    """A comparison with every text in it made safe for a terminal."""
    if isinstance(value, str):
        return line(value)
    if isinstance(value, tuple):
        return tuple(map(cleaned, value))
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{one.name: cleaned(getattr(value, one.name)) for one in fields(value)})
    return value
