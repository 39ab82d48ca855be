"""What commands share: their group, options, JSON for machines, tables for people."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from kdbench.errors import unknown

if TYPE_CHECKING:
    from kdbench.results.compare import Comparison
    from kdbench.results.record import Record
    from kdbench.results.store import Fault


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
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")

stale_option = click.option(
    "--keep-stale", is_flag=True, help="Keep finished runs that other code, data or teacher files made."
)


def print_json(value: Any) -> None:
    """Print JSON for machines."""
    click.echo(json.dumps(value, indent=1))


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


def problems_json(found: Iterable[Fault]) -> list[dict[str, str]]:
    """What is wrong with records, for machines."""
    return [{"path": str(fault.path), "field": fault.field, "message": fault.message} for fault in found]


def print_tables(
    found: Sequence[Record], as_json: bool, folders: Sequence[Path] = (), metric: str | None = None
) -> None:
    """Print the comparisons of records, and where the records are."""
    from kdbench.results import compare

    comparisons = compare.compare(found, metric)
    if as_json:
        places = [str(folder / "record.json") for folder in folders]
        print_json({"comparisons": [compare.to_json(c) for c in comparisons], "records": places})
        return
    print_comparisons(comparisons)
    if folders:
        click.echo(f"Records: {len(folders)} under {os.path.commonpath(folders)}")


def print_comparisons(comparisons: Iterable[Comparison]) -> None:
    """Print tables for people."""
    from rich.console import Console

    from kdbench.results import render

    here = Console()
    width = max(112, min(140, here.width)) if here.is_terminal else 140
    for comparison in comparisons:
        Console(width=width).print(render.table(comparison))
