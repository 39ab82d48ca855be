"""The page of a task, and its rows as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdbench.board import export, figures, pages, safe, tables
from kdbench.board.cells import Table
from kdbench.board.model import Run, Task, View, installed_card
from kdbench.plan.cards import Card
from kdbench.plan.datasets import dataset
from kdbench.results import render


def write(task: Task, folder: Path, families: Sequence[str]) -> None:
    """Write ``task/SLUG.html``, ``data/SLUG.csv`` and ``data/SLUG.json``."""
    card = installed_card(task.name)
    shown = [(view, tables.comparison_table(view, task)) for view in task.views]
    html = pages.page(
        "task.html",
        depth=1,
        title=safe.name(task.name),
        families=families,
        task=task,
        card=card,
        data=_data(card, task) if card else None,
        views=[_view(view, table) for view, table in shown],
        reported=tables.reported_table(task, card.reported) if card else None,
        figures=figures.of_task(task),
        cites=pages.citation(task.name, [task]),
    )
    put(folder / "task" / f"{task.slug}.html", html)
    rows = export.rows((context(view, task), table) for view, table in shown)
    put(folder / "data" / f"{task.slug}.csv", export.to_csv(rows))
    put(folder / "data" / f"{task.slug}.json", export.to_json(rows))


def put(path: Path, text: str) -> None:
    """Write a file of a site that nobody reads yet, so neither atomically nor flushed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _data(card: Card, task: Task) -> Any:
    return dataset(card.dataset_of(task.headline.comparison.scale) if task.headline else card.dataset)


def context(view: View, task: Task) -> dict[str, str]:
    """What the rows of a file say beside the table: whose they are, their metric, and which of its values is best."""
    one = view.comparison
    place = {"task": task.name, "family": task.family, "scale": one.scale, "comparison": view.id}
    return {**place, "metric": one.metric or "", "best": {"max": "largest", "min": "smallest"}.get(one.mode or "", "")}


def _view(view: View, table: Table) -> dict[str, Any]:
    one = view.comparison
    rows = [row for row in one.rows if row.method != "teacher"]
    return {
        "id": view.id,
        "heading": heading(view),
        "scale": one.scale,
        "generated": one.generated,
        "audit": view.audit,
        "records": view.records,
        "table": table,
        "sentences": [*render.verdicts(one), *render.footnotes(one)],
        "figures": figures.of_comparison(view),
        "runs": [(row.label, _runs(row.method, row.runs, row.seeds)) for row in rows if row.runs],
        "failures": view.failures,
    }


def heading(view: View) -> str:
    """What sets a comparison apart from the task's others: student, settings, teacher."""
    one = view.comparison
    parts = [f"student {safe.cut(view.student, 60)}"] if view.student else []
    parts += [safe.cut(setting, 60) for setting in one.settings[:8]]
    parts += [f"teacher {safe.cut(one.teacher, 80)}"] if one.teacher else []
    return " · ".join(parts) or "one student"


def _runs(method: str, hashes: Sequence[str], seeds: Sequence[int]) -> list[Run]:
    return [Run(key[:16], seed, method, False) for key, seed in zip(hashes, seeds, strict=True)]
