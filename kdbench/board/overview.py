"""The pages across tasks: overview, families, methods, about; and the rows of all tasks as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kdbench import describe
from kdbench.board import cells, docstrings, export, figures, pages, safe, tables
from kdbench.board.model import Task, installed_card
from kdbench.board.task_page import context, put
from kdbench.plan import cards
from kdbench.plan.catalog import installed_method, methods
from kdbench.results.claims import benjamini_hochberg
from kdbench.results.compare import Comparison
from kdbench.results.stats import Estimate, raw_p


def write_overviews(tasks: Sequence[Task], folder: Path) -> int:
    """Write ``index.html``, ``about.html``, ``family/…``, ``method/…`` and ``data/results.*``; the number of pages."""
    families = sorted({task.family for task in tasks})
    own = {family: [task for task in tasks if task.family == family] for family in families}
    made = claims(tasks)
    sentences = {
        family: _sentence([one for one in made if one.comparison.family == family], len(made)) for family in families
    }
    pages_of = {
        "about.html": pages.page("about.html", 0, "About", families),
        "index.html": _index(tasks, own, sentences),
    }
    for family, members in own.items():
        pages_of[f"family/{safe.slug(family)}.html"] = _family(family, members, families, sentences[family])
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


def _index(tasks: Sequence[Task], own: Mapping[str, list[Task]], sentences: Mapping[str, str]) -> str:
    names = {(task.family, method) for task in tasks for method in task.methods}
    counts = {"records": f"{sum(task.records for task in tasks):,}", "methods": len(names), "tasks": len(tasks)}
    summaries = [
        {
            "id": safe.identifier(family),
            "name": family,
            "tasks": members,
            "sentence": sentences[family],
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


class Claim(NamedTuple):
    """A declared contrast of ``kd`` or a method in a headline comparison; ``q`` is its p adjusted over the board."""

    task: str
    comparison: Comparison
    delta: Estimate
    q: float | None


def claims(tasks: Sequence[Task]) -> list[Claim]:
    """Every contrast of ``kd`` and the methods with ``alone`` and ``kd`` in the tasks' headline comparisons.

    Benjamini and Hochberg's correction runs over all of them, for a reader looks through all of them for the ones that
    are true.
    """
    listed = [
        (task.name, task.headline.comparison, delta)
        for task in tasks
        for row in tables.judged_rows(task.headline.comparison)
        for delta in (row.delta_alone, row.delta_kd)
        if delta is not None
    ]
    adjusted = benjamini_hochberg([raw_p(delta) for *_, delta in listed])
    return [Claim(*one, None if one[2].flat else q) for one, q in zip(listed, adjusted, strict=True)]


def _sentence(made: Sequence[Claim], whole: int) -> str:
    """How many of these claims hold, of ``whole`` on the board."""
    states = [cells.delta_cell(one.delta, one.q, one.comparison).state if one.q is not None else "" for one in made]
    results = [f"{states.count(state)} {state}" for state in ("better", "worse")]
    results.append(f"{states.count('unclear')} not distinguishable")
    untested = f", {states.count('')} without a test" if states.count("") else ""
    what = f"Of {len(states)} differences of kd and methods to the student alone and to kd"
    how = f"Benjamini–Hochberg over all {whole} of the board"
    return f"{what}: {', '.join(results)}{untested} ({how})."


def _family(family: str, tasks: Sequence[Task], families: Sequence[str], sentence: str) -> str:
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
        sentence=sentence,
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
