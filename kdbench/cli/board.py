"""Commands for the leaderboard: its static site, and contributions to it."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kdbench.board.safe import line
from kdbench.cli.shared import (
    Commands,
    consent,
    json_option,
    print_comparisons,
    print_json,
    problems_json,
    runs_option,
    say_left_out,
    say_problems,
    yes_option,
)

if TYPE_CHECKING:
    from kdbench.results.agree import Fault
    from kdbench.results.record import Record


@click.group(cls=Commands)
def leaderboard() -> None:
    """Build, show and add to the static site of the records.

    \b
    kdbench leaderboard build leaderboard/records -o build/site
    kdbench leaderboard serve build/site
    kdbench leaderboard submit runs
    """


@leaderboard.command(name="build")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RECORDS…")
@click.option("--output", "-o", "site", required=True, type=click.Path(path_type=Path), help="Folder of the site.")
@json_option
def build_site(paths: tuple[Path, ...], site: Path, as_json: bool) -> None:
    """Make the site of all records; with one that does not hold, list every problem and write nothing.

    \b
    kdbench leaderboard build leaderboard/records -o build/site
    kdbench leaderboard build leaderboard/records runs -o build/site --json
    """
    from kdbench.board.build import build

    report = build(paths, site)
    if as_json:
        done = {"records": report.records, "tasks": report.tasks, "pages": report.pages}
        left = {"others": [str(path) for path in report.others], "unchecked": dict(report.unchecked)}
        problems = problems_json(report.problems)
        print_json({"site": None if report.problems else str(site), **done, **left, "problems": problems})
    else:
        say_left_out(report.others, report.unchecked)
        say_problems(report.problems)
    if report.problems and not as_json:
        click.echo(f"Nothing was written: {len(report.problems)} problems in {report.records} records.", err=True)
    elif not as_json:
        click.echo(f"{report.records} records of {report.tasks} tasks on {report.pages} pages: {site / 'index.html'}")
    if report.problems:
        sys.exit(1)


@leaderboard.command()
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path), metavar="[RECORDS…]")
@click.option("--into", type=click.Path(path_type=Path, dir_okay=False), help="Put it between the marks of a file.")
def gains(paths: tuple[Path, ...], into: Path | None) -> None:
    """What each method gains in its tasks' primary comparisons, as a Markdown table; of leaderboard/records by default.

    \b
    kdbench leaderboard gains
    kdbench leaderboard gains leaderboard/records --into README.md
    """
    from kdbench.board import gains as gaining
    from kdbench.results import store

    text = gaining.table(store.read(list(paths) or [Path("leaderboard/records")]))
    if into is None:
        click.echo(text, nl=False)
    else:
        click.echo(f"{into}: {'changed' if gaining.insert(text, into) else 'as it was'}")


@leaderboard.command()
@click.argument("site", type=click.Path(path_type=Path))
@click.option("--open", "show", is_flag=True, help="Open it in the browser.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 for a free one.")
def serve(site: Path, port: int, show: bool) -> None:
    """Show a site that was built, on this machine alone, until Ctrl-C.

    \b
    kdbench leaderboard serve build/site
    kdbench leaderboard serve build/site --port 0 --open
    """
    from kdbench.board.serve import serve as serving

    def tell(address: str) -> None:
        click.echo(f"{address}  (Ctrl-C ends)")
        if show:
            click.launch(address)

    serving(site, port, tell)


@leaderboard.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RECORD…")
@click.option(
    "--to",
    "published",
    default=Path("leaderboard/records"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder of the published records.",
)
@click.option("--write", "write", is_flag=True, help="Write the records to their places below it.")
@click.option("--rerun", default=0, type=click.IntRange(0), help="Run so many of the new records again first, by lot.")
@runs_option
@yes_option
@json_option
def submit(
    paths: tuple[Path, ...], published: Path, write: bool, rerun: int, runs: Path, yes: bool, as_json: bool
) -> None:
    """Prepare a contribution: check records, alone and against the published ones, and compare them.

    \b
    kdbench leaderboard submit runs
    kdbench leaderboard submit runs/gnn/lingugkd --write
    kdbench leaderboard submit runs --rerun 1 --write
    """
    from kdbench.board import submit as submitting

    contribution = submitting.prepare(paths, published)
    if rerun and contribution.fresh:
        contribution = contribution.with_problems(_rerun(contribution.fresh, rerun, runs, yes))
    written = submitting.write(contribution) if write else []
    if as_json:
        from kdbench.results.compare import to_json

        print_json(
            {
                "places": [str(path) for path, _ in contribution.places],
                "known": contribution.known,
                "written": [str(path) for path in written],
                "notes": contribution.notes,
                "problems": problems_json(contribution.problems),
                "comparisons": [to_json(comparison) for comparison in contribution.comparisons],
            }
        )
    elif contribution.problems:
        say_problems(contribution.problems)
        click.echo(f"{len(contribution.problems)} problems; nothing was written.", err=True)
    else:
        print_comparisons(contribution.comparisons)
        for note in contribution.notes:
            click.echo(line(f"note: {note}"))
        for path, _ in contribution.places:
            click.echo(f"{'wrote' if write else 'would write'} {path}")
        hint = "" if write or not contribution.places else "; --write does it"
        click.echo(f"{len(contribution.places)} new, {contribution.known} published already{hint}")
    if contribution.problems:
        sys.exit(1)


def _rerun(fresh: Sequence[tuple[Path, Record]], count: int, runs: Path, yes: bool) -> list[Fault]:
    """Run some finished records again; what does not come out as they say."""
    from kdbench.launch.reproduce import rerun
    from kdbench.results.agree import Fault

    done = [(path, record) for path, record in fresh if record.status == "done"]
    faults = []
    for path, record in random.SystemRandom().sample(done, min(count, len(done))):
        outcome = rerun(record, path, runs, lambda brought: consent(brought, yes))
        click.echo(f"{'match' if outcome['match'] else 'DIFFERENCE'}: {path}", err=True)
        for one in outcome["differences"]:
            field, _, message = one.partition(": ")
            faults.append(Fault(path, field, f"{message}, run again here"))
    return faults
