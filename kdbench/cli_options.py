"""What commands share: options, JSON for machines, tables for people."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import click

runs_option = click.option(
    "--runs",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    envvar="KDBENCH_RUNS",
    show_default=True,
    help="Folder of runs, stages and caches ($KDBENCH_RUNS).",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")


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


def print_tables(found: Sequence[Any], as_json: bool, folders: Sequence[Path] = (), metric: str | None = None) -> None:
    """Print the comparisons of records, and where the records are."""
    from kdbench.results import compare, render

    comparisons = compare.compare(found, metric)
    if as_json:
        places = [str(folder / "record.json") for folder in folders]
        print_json({"comparisons": [compare.to_json(c) for c in comparisons], "records": places})
        return
    from rich.console import Console

    here = Console()
    width = max(112, min(140, here.width)) if here.is_terminal else 140
    for comparison in comparisons:
        Console(width=width).print(render.table(comparison))
    if folders:
        click.echo(f"Records: {len(folders)} under {os.path.commonpath(folders)}")
