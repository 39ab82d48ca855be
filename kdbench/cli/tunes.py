"""``kdbench tune``: the same small validation search for every arm of a task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kdbench.cli.shared import (
    data_sets_option,
    json_option,
    print_json,
    print_runs,
    raise_failures,
    runs_option,
    stale_option,
    workers_option,
)
from kdbench.hashing import write_atomic

if TYPE_CHECKING:
    from rich.table import Table

    from kdbench.launch.local import Report
    from kdbench.plan.config import RunConfig
    from kdbench.results.searches import Search


@click.command()
@click.argument("task")
@click.argument("overrides", nargs=-1, metavar="KEY=VALUE…")
@runs_option
@data_sets_option
@json_option
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder for the logs; RUNS/search by default.")
@click.option("--dry-run", is_flag=True, help="Print the runs and do none.")
@stale_option
@workers_option
def tune(
    task: str,
    overrides: tuple[str, ...],
    runs: Path,
    as_json: bool,
    output: Path | None,
    dry_run: bool,
    keep_stale: bool,
    workers: int | None,
) -> None:
    """Search each arm's options on validation data, as the task's card says under 'search'.

    Every point is run with two seeds apart from published ones at the card's primary setting; the best mean validation
    score is chosen, the first of several. Test scores are neither read nor shown. Printed are a table and the lines for
    the card; TASK/ARM.json is the log of each arm. Runs that are done are not done again.

    \b
    kdbench tune graph_classification/nci1
    kdbench tune gnn/cora_text method=alone,kd student.name=gat --workers 2
    kdbench tune graph_classification/nci1 -o leaderboard/search
    """
    from kdbench.launch import local, tuning
    from kdbench.plan import cards
    from kdbench.results.searches import log_path

    arms = tuning.arms(task, overrides)
    configs = [run for arm in arms for runs_of_point in arm.runs for run in runs_of_point]
    if dry_run:
        print_runs(configs, as_json)
        return
    report = local.launch(configs, runs, workers, keep_stale, split="val")
    if not report.records and not report.failures:  # we are not the first of several processes
        return
    raise_failures(_unrecorded(report, configs, runs), len(configs))
    searched = {arm.name: tuning.search_of(arm, report.records) for arm in arms}
    folder = output or runs / "search"
    for name, search in searched.items():
        write_atomic(log_path(folder, search.task, name), search.text)
    if as_json:
        print_json({name: json.loads(search.text) for name, search in searched.items()})
        return
    _show(searched)
    click.echo(f"\nFor the card:\n\n{tuning.lines(searched)}\n\nLogs: {folder / cards.card(task).name}")


def _unrecorded(report: Report, configs: list[RunConfig], root: Path) -> Report:
    """The failures but those on record: a loss that was not finite tells against the point, any other error of us."""
    from kdbench.launch import local
    from kdbench.launch.states import record_of
    from kdbench.launch.sweep import Run

    failed = {config.hash: config for config in configs if config.hash in report.failures}
    known = {key for key, config in failed.items() if (r := record_of(root, Run.of(config))) and r.status == "failed"}
    return local.Report(failures={key: failure for key, failure in report.failures.items() if key not in known})


def _show(searched: dict[str, Search]) -> None:
    from rich.console import Console

    for name, search in searched.items():
        Console(width=112).print(_table(name, search))


def _table(name: str, search: Search) -> Table:
    from rich.table import Table

    keys = list(search.chosen)
    names = [key.removeprefix("method.") for key in keys]
    seeds = [f"seed {seed}" for seed in search.seeds]
    title = f"{search.task} {search.scale}, {name}: {search.metric} on validation data"
    table = Table(*names, *seeds, "mean", "", title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for point in search.points:
        scores = ["failed" if score is None else f"{score:.4f}" for score in (*point.scores, point.mean)]
        mark = "chosen" if point.options == search.chosen else ""
        table.add_row(*(json.dumps(point.options[key]) for key in keys), *scores, mark)
    return table


COMMANDS = (tune,)
