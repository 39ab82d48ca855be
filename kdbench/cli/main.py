"""The command line. Commands are thin; torch is imported when a run starts and not before."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import click

from kdbench import __version__
from kdbench.board.safe import cut, line
from kdbench.cli import audits as cli_audits
from kdbench.cli import board as cli_board
from kdbench.cli import measures as cli_measures
from kdbench.cli import sweeps as cli_sweeps
from kdbench.cli import tunes as cli_tunes
from kdbench.cli.shared import (
    Commands,
    cleaned,
    consent,
    data_sets_option,
    json_option,
    print_json,
    print_runs,
    print_tables,
    problems_json,
    raise_failures,
    runs_option,
    say,
    say_left_out,
    say_problems,
    stale_option,
    workers_option,
    yes_option,
)
from kdbench.errors import DISK_FULL, KdbenchError, UsageError


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="kdbench")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Which knowledge-distillation method helps on your task, and is its gain real?

    \b
    kdbench run task=gnn method=lingugkd              first contact, generated data
    kdbench list                                      tasks and methods
    kdbench show lingugkd                             equations, hyper-parameters, paper
    kdbench compare task=gnn method=kd,lingugkd       tables from the records
    """


@main.command()
@click.argument("overrides", nargs=-1, metavar="KEY=VALUE…")
@runs_option
@data_sets_option
@json_option
@click.option("--no-baselines", is_flag=True, help="Do not add the runs of alone and kd.")
@click.option("--dry-run", is_flag=True, help="Print the runs and do none.")
@stale_option
@workers_option
def run(
    overrides: tuple[str, ...],
    runs: Path,
    as_json: bool,
    no_baselines: bool,
    dry_run: bool,
    keep_stale: bool,
    workers: int | None,
) -> None:
    """Run methods on a task, with the baselines of the same seeds, and print the table.

    Any key takes several values; runs that are done are skipped, a killed run goes on from its last checkpoint.
    Runs on processors are done side by side in processes of their own, one thread each (trainer.threads); runs on a
    GPU or of several processes are done one after another.

    \b
    kdbench run task=gnn method=lingugkd
    kdbench run task=gnn/cora_text method=lingugkd seed=0..9 student.name=gcn,gat
    kdbench run task=gnn/cora_text method=lingugkd control=none,shuffled_teacher seed=0..9
    kdbench run task=gnn method=lingugkd method.temperature=0.1 trainer.max_epochs=50
    kdbench run task=./mine.yaml method=mirage          a card of your own, its data described in it
    """
    from kdbench.launch import local
    from kdbench.plan.config import expand, run_folder

    asked = expand(overrides)
    configs = asked if no_baselines else local.with_baselines(asked)
    if dry_run:
        print_runs(configs, as_json)
        return
    note = local.scale_note(asked, overrides)
    if note and not as_json:
        click.echo(note, err=True)
    report = local.launch(configs, runs, workers, keep_stale)
    if report.records or report.failures:  # neither: we are not the first of several processes
        folders = [run_folder(runs, config) for config in configs if config.hash in report.records]
        print_tables(list(report.records.values()), as_json, folders)
    raise_failures(report, len(configs))


@main.command(name="list")
@click.argument("pattern", default="*")
@json_option
def list_(pattern: str, as_json: bool) -> None:
    """List tasks and methods; PATTERN may hold wildcards.

    \b
    kdbench list
    kdbench list 'gnn/*'
    kdbench list kd --json
    """
    from kdbench.describe import listing

    listed = listing(pattern)
    if as_json:
        print_json(listed)
        return
    for heading, rows in listed.items():
        if rows:
            click.echo(f"{heading.capitalize()}:")
        for row in rows:
            traits = row["scales"] if "scales" in row else [row["family"], row["role"], f"teacher {row['teacher']}"]
            click.echo(f"  {row['name']:<16} {row['title']} ({', '.join(traits)})")


@main.command()
@click.argument("name")
@data_sets_option
@json_option
def show(name: str, as_json: bool) -> None:
    """Show one task, method or record file.

    \b
    kdbench show lingugkd
    kdbench show gnn/cora_text
    kdbench show runs/gnn/lingugkd/*/record.json
    """
    from kdbench import describe
    from kdbench.cli import present

    described = describe.description(name)
    print_json(described) if as_json else say(present.description(described))


@main.command()
@click.argument("filters", nargs=-1, metavar="KEY=VALUE…")
@click.option("--from", "sources", multiple=True, type=click.Path(path_type=Path), help="Folder or file of records.")
@runs_option
@click.option("--metric", help="Another metric of the records than the task's own.")
@click.option("--markdown", is_flag=True, help="Print Markdown tables.")
@json_option
def compare(
    filters: tuple[str, ...], sources: tuple[Path, ...], runs: Path, metric: str | None, markdown: bool, as_json: bool
) -> None:
    """Compare methods on a task from the records; alone and kd always stand beside them.

    \b
    kdbench compare task=gnn method=kd,lingugkd
    kdbench compare task=gnn/cora_text data.words=100 --from leaderboard/records --markdown
    """
    from kdbench.results import compare as comparing
    from kdbench.results import render, store
    from kdbench.results.select import matching

    places = list(sources or [runs])
    matches = matching(store.read(places), filters)
    if not matches:
        raise UsageError(f"No record in {', '.join(map(str, places))} matches {' '.join(filters) or 'anything'}.")
    if markdown:
        click.echo("\n".join(render.markdown(cleaned(c)) for c in comparing.compare(matches, metric)))
    else:
        print_tables(matches, as_json, metric=metric)


@main.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@json_option
def validate(paths: tuple[Path, ...], as_json: bool) -> None:
    """Check records one by one and against each other; every wrong field is named.

    \b
    kdbench validate leaderboard/records
    """
    from kdbench.results import store

    report = store.validate(paths)
    if as_json:
        print_json(
            {
                "read": report.read,
                "valid": report.valid,
                "problems": problems_json(report.problems),
                "others": [str(path) for path in report.others],
                "unchecked": dict(report.unchecked),
            }
        )
    else:
        say_problems(report.problems)
        say_left_out(report.others, report.unchecked)
        wrong = len({problem.path for problem in report.problems})
        click.echo(f"{report.read} files read: {report.valid} valid, {wrong} with problems")
    if report.problems or not report.valid:
        sys.exit(1)


@main.command()
@click.argument("record", type=click.Path(path_type=Path))
@runs_option
@yes_option
@json_option
def reproduce(record: Path, runs: Path, yes: bool, as_json: bool) -> None:
    """Run a record again from its JSON alone and report whether the numbers match (exit code 1 when they do not).

    Asks before it uses what the record brings: files, downloads, several processes, more threads than cores.

    \b
    kdbench reproduce leaderboard/records/gnn/cora_text/….json
    """
    from kdbench.launch.reproduce import reproduce as again

    outcome = again(record, runs, lambda brought: consent(brought, yes))
    if as_json:
        print_json(outcome)
    else:
        click.echo(f"{'match' if outcome['match'] else 'DIFFERENCE'}: {record}")
        for one in outcome["differences"] + outcome["environment"]:
            click.echo(line(f"  {one}"))
    if not outcome["match"]:
        sys.exit(1)


@main.command()
@click.argument("task")
@click.option("--scale", help="One of the task's scales; all of them by default.")
@data_sets_option
@json_option
def check(task: str, scale: str | None, as_json: bool) -> None:
    """Whether a task's card, files, splits and labels are sound, and which methods will run on it.

    The first fault is named by file and row, and makes the exit code 2. Nothing is trained.

    \b
    kdbench check ./mine.yaml
    kdbench check hippocampus --scale small --json
    """
    from kdbench.cli import present
    from kdbench.launch.check import check

    checked = check(task, scale)
    print_json(checked) if as_json else say(present.checked(checked))


@main.command()
@click.argument("name", required=False)
@click.argument("words", nargs=-1, metavar="[TASK KEY=VALUE…]")
@data_sets_option
@click.option("--fetch", "get", is_flag=True, help="Download what has a public origin.")
@json_option
def data(name: str | None, words: tuple[str, ...], get: bool, as_json: bool) -> None:
    """What data is here, what is missing and how it is got; licences and checksums.

    'kdbench data rows TASK' lists the rows that a teacher of the task has outputs for, as CSV: what a file for
    teacher.source=outputs must hold.

    \b
    kdbench data
    kdbench data cora_text --json
    kdbench data cora --fetch
    kdbench data rows gnn seed=0 data.words=60
    """
    from kdbench.cli import present
    from kdbench.plan import datasets

    if name == "rows":
        from kdbench import describe

        listed = describe.rows(words)
        print_json(listed) if as_json else click.echo(present.rows(listed["rows"]))
        return
    if words:
        raise UsageError(f"'{words[0]}': one data set at a time.")
    if get and name:
        datasets.fetch(datasets.dataset(name))
    elif get:
        raise UsageError("--fetch needs the name of a data set.")
    names = [name] if name else list(datasets.datasets())
    inventories = [datasets.inventory(datasets.dataset(one)) for one in names]
    print_json(inventories) if as_json else click.echo(present.inventory(inventories))


@main.command()
@json_option
def doctor(as_json: bool) -> None:
    """Versions, devices, extras, and what each missing extra would enable.

    \b
    kdbench doctor
    kdbench doctor --json
    """
    from kdbench import describe
    from kdbench.cli import present

    installation = describe.doctor()
    print_json(installation) if as_json else click.echo(present.doctor(installation))


for _command in (
    *cli_audits.COMMANDS,
    *cli_tunes.COMMANDS,
    *cli_measures.COMMANDS,
    *cli_sweeps.COMMANDS,
    cli_board.leaderboard,
):
    main.add_command(_command)


def entry(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; every error is one message on stderr."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        main.main(args=words, prog_name="kdbench", standalone_mode=False)
    except click.exceptions.Exit as error:
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _fail("Interrupted. The same command goes on from the last checkpoint.", 130, debug)
    except click.ClickException as error:
        return _fail(error.format_message(), 2, debug)
    except KdbenchError as error:
        return _fail(str(error), error.exit_code, debug)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except BrokenPipeError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(_os_message(error), 1, debug)
    return 0


def _os_message(error: OSError) -> str:
    where = f" '{error.filename}'" if error.filename else ""
    if error.errno in DISK_FULL:
        return f"The disk is full{where}. Finished runs are safe; free some room and run the same command again."
    return f"{error.strerror or error}{where}."


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    click.echo(f"Error: {cut(message, 20_000)}", err=True)
    return code


def _unexpected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Stands in for Python's traceback, which ``--debug`` brings back. The exit code stays 1."""
    message = cut(str(error), 20_000)
    click.echo(
        f"Error: {kind.__name__}: {message}\nNobody foresaw this one: 'kdbench --debug …' shows where.", err=True
    )


_STAND_INS = {"Δ": "D", "−": "-", "–": "-", "±": "+-", "×": "x", "·": "*", "²": "2", "…": "...", "→": "->", "≤": "<="}


def _stand_in(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_STAND_INS.get(c) or ascii(c)[1:-1] for c in text), error.end


def _write_anywhere() -> None:
    """What the terminal's encoding lacks is written otherwise: no table is lost for a Δ after its training."""
    codecs.register_error("kdbench", _stand_in)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="kdbench")


def console() -> None:
    """Entry point of the ``kdbench`` command.

    OpenMP threads that wait are told to sleep, not to spin: on a machine that others use too, spinning made small
    networks a hundred times slower. It changes no number.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _write_anywhere()
    if "--debug" not in sys.argv:
        sys.excepthook = _unexpected
    sys.exit(entry())
