"""Commands for sweeps: many runs under one name, on this machine or a SLURM cluster."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kdbench.cli.shared import (
    data_sets_option,
    json_option,
    print_json,
    print_runs,
    print_tables,
    runs_option,
    stale_option,
)
from kdbench.errors import DamagedError, DataError, KdbenchError, UsageError

if TYPE_CHECKING:
    from rich.console import Group

    from kdbench.launch.endings import Ending
    from kdbench.launch.status import RunStatus
    from kdbench.launch.sweep import Run, Sweep

name_argument = click.argument("name", metavar="SWEEP")


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="KEY=VALUE…|FILE")
@runs_option
@data_sets_option
@json_option
@click.option("--dry-run", is_flag=True, help="Print the runs and start none.")
@click.option("--wait", is_flag=True, help="With launcher=slurm: stay until all runs ended, then print the tables.")
@click.option("--extend", is_flag=True, help="Add the runs to those that the sweep of this name has already.")
@stale_option
@click.option("--part", metavar="I/N", help="Do every N-th run from the I-th on (from 0): arrays submitted by hand.")
def sweep(
    words: tuple[str, ...],
    runs: Path,
    as_json: bool,
    dry_run: bool,
    wait: bool,
    extend: bool,
    keep_stale: bool,
    part: str | None,
) -> None:
    """Do many runs: every combination of the values, or the lines of a sweep file.

    Runs that are done are not started again; those that were killed go on from their last checkpoint. The exit code is
    1 when a run failed.

    \b
    kdbench sweep task=gnn method=alone,kd,lingugkd seed=0..9
    kdbench sweep task=gnn method=alone,kd seed=0..9 launcher=local local.workers=2 name=first
    kdbench sweep task=gnn/cora_text method=lingugkd seed=0..9 launcher=slurm profile=slurm/gpu.yaml slurm.time=30
    kdbench sweep slurm/example.yaml --dry-run
    """
    from kdbench.launch import sweep as sweeps

    asked = sweeps.from_words(words, runs)
    chosen = _part(list(asked.runs.values()), part)
    if dry_run:
        print_runs(chosen, as_json)
        return
    whole = sweeps.extended(asked, extend)
    if more := len(whole.runs) - len(asked.runs):
        _say(f"Sweep '{asked.name}': {more} runs that it had already stay in its list.")
    _start(whole, chosen, as_json, wait, keep_stale)


def _part(runs: list[Run], part: str | None) -> list[Run]:
    if part is None:
        return runs
    first, slash, count = part.partition("/")
    if not (slash and first.isdigit() and count.isdigit() and int(first) < int(count)):
        raise UsageError(f"--part {part}: it is I/N with I from 0 to N - 1, such as 3/10.")
    return runs[int(first) :: int(count)]


def _start(asked: Sweep, chosen: Sequence[Run], as_json: bool, wait: bool, keep_stale: bool) -> None:
    """Start what is neither done nor at work, and end with the tables unless the cluster goes on by itself."""
    from kdbench.launch import pool, slurm
    from kdbench.launch.local import ready
    from kdbench.launch.status import outdated, statuses
    from kdbench.plan.config import run_folder
    from kdbench.results.finished import set_aside

    on_cluster = asked.launcher == "slurm"
    if on_cluster:
        slurm.require()
        slurm.check(asked.slurm, chosen)
    else:
        pool.check(chosen)
    ready(asked.root)
    asked.save()
    known = {one.hash: one for one in statuses(asked)}
    for run in chosen:
        if known[run.hash].phase == "done" and (why := outdated(asked.root, run)):
            _say(f"{why} {'It is kept.' if keep_stale else 'The run is done again.'}")
            if not keep_stale:
                set_aside(run_folder(asked.root, run))
                known[run.hash] = replace(known[run.hash], phase="lost")
    left = [r for r in chosen if known[r.hash].phase != "done" and not (on_cluster and known[r.hash].active)]
    _say(f"Sweep '{asked.name}': {len(chosen)} runs, {len(left)} to do.")
    if not on_cluster:
        _pool(asked, left)
    elif left:
        slurm.submit(asked, left, _say)
    if not on_cluster or wait:
        if on_cluster:
            _watch(asked)
        _finish(asked, chosen, as_json)
    elif as_json:
        print_json({"sweep": asked.name, "submitted": [run.hash for run in left]})
    else:
        _say(f"How it goes: kdbench status {asked.name} --runs {asked.root}")


def _say(line: str) -> None:
    click.echo(line, err=True)


def _pool(asked: Sweep, left: Sequence[Run]) -> None:
    from kdbench.launch import pool
    from kdbench.launch.display import Bars
    from kdbench.launch.sweep import labels

    with pool.announced(asked.folder), Bars(labels(asked.runs.values()), len(left), asked.local.workers) as bars:

        def ended(run: Run, ending: Ending, worker: int) -> None:
            bars.end(run, f"FAILED: {ending.reason}" if ending.reason is not None else "done", worker)

        pool.launch(asked.root, left, asked.local, bars, ended, asked.folder)


def _watch(asked: Sweep) -> None:
    """Stay until no run is queued or at work: on a terminal with a table that moves, elsewhere with a line a change."""
    from rich.console import Console
    from rich.live import Live

    from kdbench.launch import pool
    from kdbench.launch.status import counts, statuses

    console = Console(stderr=True)
    before, began = "", time.monotonic()
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            listed = statuses(asked)
            if console.is_terminal:
                live.update(_shown(asked, listed, False), refresh=True)
            elif (summary := _in_words(counts(listed))) != before:
                _say(summary)
                before = summary
            if not any(one.active for one in listed) and not pool.at_work(asked.folder):
                return
            time.sleep(min(30.0, 1 + (time.monotonic() - began) / 30))  # a cluster's controller serves others too


def _finish(asked: Sweep, chosen: Sequence[Run], as_json: bool) -> None:
    """Print the tables; raise for runs that came to nothing."""
    from kdbench.launch.states import record_of
    from kdbench.launch.status import statuses
    from kdbench.plan.config import run_folder
    from kdbench.results.record import InvalidRecord, Record

    wanted = {run.hash for run in chosen}
    ended = [one for one in statuses(asked) if one.hash in wanted]
    records, missing = dict[str, Record](), dict[str, str]()
    for one in ended:
        try:
            record = record_of(asked.root, asked.runs[one.hash]) if one.phase == "done" else None
        except InvalidRecord as error:
            missing[one.command] = f"lost: {error.short}"
        else:
            if record is None:
                missing[one.command] = f"{one.phase}: {one.detail}"
            else:
                records[one.hash] = record
    print_tables(list(records.values()), as_json, [run_folder(asked.root, asked.runs[key]) for key in records])
    if missing:
        listed = [f"{command.removeprefix('kdbench run ')}: {why}" for command, why in missing.items()]
        raise KdbenchError("\n  ".join([f"{len(missing)} of {len(ended)} runs have no result:", *listed]))


@click.command()
@click.argument("name", required=False, metavar="[SWEEP]")
@runs_option
@json_option
@click.option("--watch", is_flag=True, help="Stay, and show what changes until all runs ended.")
@click.option("--all", "every", is_flag=True, help="List runs that are pending or done too.")
def status(name: str | None, runs: Path, as_json: bool, watch: bool, every: bool) -> None:
    """How a sweep goes, run by run: pending, running with its progress, done, failed with the reason, or lost.

    Without a name: all sweeps.

    \b
    kdbench status
    kdbench status first --watch
    kdbench status first --json
    """
    from kdbench.launch import sweep as sweeps
    from kdbench.launch.status import counts, statuses

    if name is None:
        by_sweep = {one.name: counts(statuses(one)) for one in _all(runs)}
        if as_json:
            print_json(by_sweep)
            return
        for one, numbers in by_sweep.items():
            click.echo(f"{one}: {_in_words(numbers)}")
        if not sweeps.names(runs):
            click.echo(f"No sweep under {runs}.")
        return
    asked = sweeps.load(name, runs)
    if watch:
        _watch(asked)
    listed = statuses(asked)
    if as_json:
        print_json({"sweep": name, "counts": counts(listed), "runs": [one.to_json() for one in listed]})
    else:
        from rich.console import Console

        here = Console()
        Console(width=None if here.is_terminal else 140).print(_shown(asked, listed, every))


def _all(runs: Path) -> Iterator[Sweep]:
    """Every sweep that can be read; the others are named."""
    from kdbench.launch import sweep as sweeps

    for name in sweeps.names(runs):
        try:
            yield sweeps.load(name, runs)
        except DamagedError as error:
            _say(f"{name}: {error} 'kdbench sweep' with its words writes it anew.")


def _in_words(numbers: dict[str, int]) -> str:
    return ", ".join(f"{number} {phase}" for phase, number in numbers.items())


def _shown(asked: Sweep, listed: Sequence[RunStatus], every: bool) -> Group:
    """The counts, and below them a table of the runs that there is something to say of."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from kdbench.launch.status import counts
    from kdbench.launch.sweep import labels

    table = Table("run", "hash", "phase", "job", "", box=None, padding=(0, 2, 0, 0))
    named = labels(asked.runs.values())
    for one in listed:
        if every or one.phase not in ("done", "pending"):
            table.add_row(*map(Text, (named[one.hash], one.hash[:16], one.phase, one.job or "", one.detail)))
    return Group(Text(f"{asked.name}: {_in_words(counts(listed))}"), *([table] if table.row_count else []))


@click.command()
@name_argument
@runs_option
@json_option
@click.option("--wait", is_flag=True, help="On a cluster: stay until all runs ended.")
def retry(name: str, runs: Path, as_json: bool, wait: bool) -> None:
    """Start those runs of a sweep again that failed or were lost; the others are left alone.

    \b
    kdbench retry first
    """
    from kdbench.launch import sweep as sweeps
    from kdbench.launch.status import statuses

    asked = sweeps.load(name, runs)
    again = [asked.runs[one.hash] for one in statuses(asked) if one.phase in ("failed", "lost")]
    if not again:
        click.echo(f"No run of '{name}' failed or was lost.")
        return
    _start(asked, again, as_json, wait, keep_stale=True)


@click.command()
@name_argument
@runs_option
@json_option
def cancel(name: str, runs: Path, as_json: bool) -> None:
    """Stop a sweep: queued runs are taken back, those at work stop, on this machine with a checkpoint.

    \b
    kdbench cancel first
    """
    from kdbench.launch import pool, slurm
    from kdbench.launch import sweep as sweeps

    asked = sweeps.load(name, runs)
    jobs = slurm.submitted(asked)
    cancelled, stopped = slurm.cancel(jobs) if jobs else [], pool.stop(asked.folder)
    if as_json:
        print_json({"jobs": cancelled, "processes": stopped})
    else:
        click.echo(f"Cancelled {len(cancelled)} jobs; told {len(stopped)} processes to stop.")


@click.command()
@name_argument
@runs_option
@json_option
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder for the records.")
def collect(name: str, runs: Path, as_json: bool, output: Path) -> None:
    """Copy the records that a sweep has so far, as TASK/METHOD/HASH.json, with their outcomes beside them.

    \b
    kdbench collect first -o records
    """
    from kdbench.launch import sweep as sweeps
    from kdbench.launch.states import record_of
    from kdbench.launch.status import outdated
    from kdbench.results import store
    from kdbench.results.record import InvalidRecord

    asked = sweeps.load(name, runs)
    written = []
    for run in asked.runs.values():
        try:
            record = record_of(asked.root, run)
            if record is None or record.status != "done":
                continue
            path = output / run.task / run.method / f"{run.hash[:16]}.json"
            store.write(record, path)
        except (InvalidRecord, DataError) as error:
            _say(f"Left out: {error.short if isinstance(error, InvalidRecord) else error}")
            continue
        if why := outdated(asked.root, run):
            _say(why)
        written.append(str(path))
    if as_json:
        print_json({"records": written, "runs": len(asked.runs)})
    else:
        click.echo(f"{len(written)} records of {len(asked.runs)} runs in {output}")


@click.command()
@click.argument("run", metavar="RUN")
@runs_option
@click.option("--sweep", "name", help="Of this sweep; else of the sweep that worked on it last.")
def logs(run: str, runs: Path, name: str | None) -> None:
    """Print the log of a run, which is named by its hash as 'kdbench status' shows it, or the beginning of it.

    \b
    kdbench logs 3f2a91
    """
    from kdbench.launch import sweep as sweeps
    from kdbench.launch.status import log_files

    files = log_files([sweeps.load(name, runs)] if name else _all(runs), run)
    if not files:
        raise UsageError(f"No sweep under {runs} has a log of a run '{run}'.")
    several = sorted({key[:16] for key, _ in files})
    if len(several) > 1:
        raise UsageError(f"'{run}' is the beginning of several runs: {', '.join(several)}.")
    newest = max((path for _, path in files), key=lambda path: path.stat().st_mtime)
    click.echo(newest.read_text(errors="replace"), nl=False)


COMMANDS = (sweep, status, retry, cancel, collect, logs)
