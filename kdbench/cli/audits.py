"""``kdbench reference`` and ``kdbench audit``: whether a comparison is sound."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdbench.board.safe import line
from kdbench.cli.shared import (
    data_sets_option,
    json_option,
    print_json,
    print_tables,
    raise_failures,
    runs_option,
    stale_option,
    workers_option,
)
from kdbench.errors import UsageError

if TYPE_CHECKING:
    from kdbench.results.audit import Audit

PUBLISHED = Path("leaderboard/records")


@click.command()
@click.argument("task")
@click.argument("overrides", nargs=-1, metavar="KEY=VALUE…")
@runs_option
@data_sets_option
@json_option
@stale_option
@workers_option
def reference(
    task: str, overrides: tuple[str, ...], runs: Path, as_json: bool, keep_stale: bool, workers: int | None
) -> None:
    """Run the task's reference: a simple, strong method of its field that a student alone has to reach.

    It is run at the card's primary setting with seeds 0..9 unless words say otherwise, and shown beside the student
    alone of the same seeds, whose runs are not added.

    \b
    kdbench reference gnn/cora
    kdbench reference graph_classification/nci1 student.name=gcn seed=0..4
    """
    from kdbench.launch import local
    from kdbench.plan import cards
    from kdbench.plan.config import expand, run_folder
    from kdbench.results import store
    from kdbench.results.select import matching

    card = cards.card(task)
    if card.reference is None:
        raise UsageError(f"The card of {card.name} names no reference ({card.path}).")
    keys = {word.partition("=")[0] for word in overrides}
    usual = card.primary.words if card.primary else []
    own = [word for word in usual if word.partition("=")[0] not in keys]
    words = [f"task={task}", f"method={card.reference}", *own, *overrides]
    configs = expand([*words, *([] if "seed" in keys else ["seed=0..9"])])
    report = local.launch(configs, runs, workers, keep_stale)
    done = list(report.records.values())
    groups = {record.group for record in done}
    there = matching(store.read([runs]), ()) if runs.exists() else []
    beside = [one for one in there if one.group in groups and one.method == "alone"]
    print_tables([*beside, *done], as_json, [run_folder(runs, one) for one in configs if one.hash in report.records])
    raise_failures(report, len(configs))


@click.command()
@click.argument("what", default=str(PUBLISHED), metavar="[TASK | FOLDER]")
@data_sets_option
@json_option
def audit(what: str, as_json: bool) -> None:
    """Whether comparisons are sound: converged arms, a student alone that reaches its reference, a better teacher.

    WHAT is a folder of records, leaderboard/records by default, or a task of the published ones. The exit code is 1
    where a comparison is unsound and its task's card does not say why.

    \b
    kdbench audit
    kdbench audit gnn/cora_text
    kdbench audit runs --json
    """
    from kdbench.plan.cards import task_paths
    from kdbench.results import store
    from kdbench.results.audit import audit as judge
    from kdbench.results.select import matching

    folder = PUBLISHED if what in task_paths() else Path(what)
    records = [one for one in matching(store.read([folder]), ()) if what not in task_paths() or one.task == what]
    if not records:
        raise UsageError(f"There is no record of {what} in {folder}.")
    audits = judge(records)
    print_json([_plain(one) for one in audits]) if as_json else _show(audits)
    if any(one.state == "unsound" for one in audits):
        sys.exit(1)


def _plain(audit: Audit) -> dict[str, Any]:
    one = audit.comparison
    about = {
        name: getattr(one, name) for name in ("task", "scale", "student", "teacher", "settings", "metric", "group")
    }
    return {**about, "state": audit.state, "verdicts": [asdict(verdict) for verdict in audit.verdicts]}


def _show(audits: list[Audit]) -> None:
    for one in audits:
        about = one.comparison
        words = [about.scale, *([f"student {about.student}"] if about.student else []), *about.settings]
        click.echo(line(f"{one.state:<8} {about.task}: {', '.join(words)}"))
        for fault in one.faults:
            click.echo(line(f"         {fault}"))
    counts = [f"{sum(one.state == state for one in audits)} {state}" for state in ("sound", "excused", "unsound")]
    click.echo(f"{len(audits)} comparisons: {', '.join(counts)}")


COMMANDS = (reference, audit)
