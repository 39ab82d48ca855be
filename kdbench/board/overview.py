"""The pages across tasks: overview, families, methods, about; and the rows of all tasks as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdbench import describe
from kdbench.board import cells, docstrings, export, figures, pages, safe, tables
from kdbench.board.model import Task, installed_card
from kdbench.board.task_page import context, put
from kdbench.plan import cards
from kdbench.plan.catalog import installed_method, methods
from kdbench.results.compare import Comparison, Row


def write_overviews(tasks: Sequence[Task], folder: Path) -> int:
    """Write ``index.html``, ``about.html``, ``family/…``, ``method/…`` and ``data/results.*``; the number of pages."""
    families = sorted({task.family for task in tasks})
    own = {family: [task for task in tasks if task.family == family] for family in families}
    pages_of = {"about.html": pages.page("about.html", 0, "About", families), "index.html": _index(tasks, own)}
    for family, members in own.items():
        pages_of[f"family/{safe.slug(family)}.html"] = _family(family, members, families)
        for method in _methods_of(family, members):
            name = f"method/{safe.slug(family)}--{safe.slug(method)}.html"
            pages_of[name] = _method(family, method, members, families)
    for name, html in pages_of.items():
        put(folder / name, html)
    rows = export.rows(
        (context(view, task), tables.comparison_table(view, task)) for task in tasks for view in task.views
    )
    put(folder / "data" / "results.csv", export.to_csv(rows))
    put(folder / "data" / "results.json", export.to_json(rows))
    return len(pages_of)


def _index(tasks: Sequence[Task], own: dict[str, list[Task]]) -> str:
    names = {(task.family, method) for task in tasks for method in task.methods}
    counts = {"records": f"{sum(task.records for task in tasks):,}", "methods": len(names), "tasks": len(tasks)}
    summaries = [
        {
            "id": safe.identifier(family),
            "name": family,
            "tasks": members,
            "sentence": _sentence(members),
            "figures": figures.gaps(members, ""),
        }
        for family, members in own.items()
    ]
    caption = "Every method on every task, in the task's comparison with most records"
    return pages.page(
        "index.html",
        depth=0,
        title="Overview",
        families=list(own),
        counts=counts,
        summaries=summaries,
        results=tables.headline_table(tasks, "overview", caption, ""),
        cites=pages.citation("overview", tasks),
    )


def _sentence(tasks: Sequence[Task]) -> str:
    """How many results of ``kd`` and methods differ from ``alone``, and how."""
    states = [
        cells.delta_cell(row.delta_alone, row.p_alone, comparison).state if row.p_alone is not None else ""
        for comparison, row in _results(tasks)
    ]
    counts = [
        f"{states.count('better')} better than the student alone",
        f"{states.count('worse')} worse",
        f"{states.count('unclear')} not distinguishable",
    ]
    untested = f", {states.count('')} without a test" if states.count("") else ""
    how = "paired t tests, Holm within each comparison"
    return f"Of {len(states)} results of kd and methods: {', '.join(counts)}{untested} ({how})."


def _results(tasks: Sequence[Task]) -> list[tuple[Comparison, Row]]:
    """``kd`` and the methods in the headline comparisons."""
    comparisons = [task.headline.comparison for task in tasks]
    return [(one, row) for one in comparisons for row in tables.judged_rows(one) if row.method != "alone"]


def _family(family: str, tasks: Sequence[Task], families: Sequence[str]) -> str:
    have, ranks = {task.name for task in tasks}, figures.ranks(tasks)
    entries = [
        {"name": task.name, "slug": task.slug, "records": task.records, "title": card.title if card else ""}
        for task in tasks
        for card in [installed_card(task.name)]
    ]
    recorded = {method for task in tasks for method in task.methods}
    listed = [
        {"name": name, "title": info.title if info else "", "records": name in recorded}
        for name in _methods_of(family, tasks)
        for info in [installed_method(family, name)]
    ]
    caption = "Every method on every task of the family, in the task's comparison with most records"
    return pages.page(
        "family.html",
        depth=1,
        title=safe.name(family.replace("_", " ")),
        families=families,
        family=family,
        sentence=_sentence(tasks),
        tasks=entries,
        waiting=[name for name, card in cards.listed().items() if card.family == family and name not in have],
        methods=listed,
        figures=[*figures.gaps(tasks, "../"), *ranks.figures],
        ranks=ranks.sentence,
        results=tables.headline_table(tasks, f"family-{safe.slug(family)}", caption, "../", families=False),
        cites=pages.citation(family, tasks),
    )


def _methods_of(family: str, tasks: Sequence[Task]) -> list[str]:
    """The methods with records in the family and those installed for it alone."""
    known = {info.name for info in methods() if info.family == family}
    return sorted(known | {method for task in tasks for method in task.methods})


def _method(family: str, method: str, tasks: Sequence[Task], families: Sequence[str]) -> str:
    info = installed_method(family, method)
    described: dict[str, Any] | None = describe.method(info) if info else None
    return pages.page(
        "method.html",
        depth=1,
        title=f"{safe.name(method)} ({safe.name(family.replace('_', ' '))})",
        families=families,
        family=family,
        method=method,
        info=described,
        paper=safe.link(info.paper) if info else None,
        doc=docstrings.blocks(info.doc) if info else (),
        differences=docstrings.differences(info.doc) if info else (),
        results=tables.method_table(tasks, method, "../"),
        settings=tables.settings_table(tasks, method, "../"),
        cites=pages.citation(f"{family} {method}", tasks),
    )
