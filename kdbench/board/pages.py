"""Pages from templates. All text is cleaned, cut and escaped on its way out; links are made from slugs alone."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from kdbench.board import safe
from kdbench.board.model import Task
from kdbench.plan.catalog import leaderboard

TITLE = "kdbench leaderboard"


def shown(value: Any) -> Any:
    """What a template prints for a value: markup as it is, text cleaned and cut."""
    return safe.cut(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def exact(value: str | int | float) -> str:
    """A value for machines: text cleaned, a number as JSON writes it."""
    return safe.clean(value) if isinstance(value, str) else json.dumps(value)


def data(value: Any) -> Markup:
    """JSON for a data block within a page: no character of it can end the block."""
    written = json.dumps(value, ensure_ascii=True, allow_nan=False)
    for character in "<>&":
        written = written.replace(character, f"\\u{ord(character):04x}")
    return Markup(written)


@functools.cache
def environment() -> Environment:
    """The templates, with their filters."""
    templates = Environment(
        loader=FileSystemLoader(leaderboard() / "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    templates.filters |= {
        "name": safe.name,
        "cut": safe.cut,
        "slug": safe.slug,
        "task_slug": safe.task_slug,
        "exact": exact,
        "data": data,
        "words": lambda text: str(text).replace("_", " "),
    }
    return templates


def page(template: str, depth: int, title: str, families: Sequence[str], **context: Any) -> str:
    """One page as HTML; ``depth`` is the number of folders between the page and the site's root."""
    root = "../" * depth
    return environment().get_template(template).render(root=root, title=title, site=TITLE, families=families, **context)


def citation(subject: str, tasks: Sequence[Task]) -> dict[str, str]:
    """A BibTeX entry for what a page shows, with nothing in it that BibTeX would read as a command."""
    plain = re.sub(r"[^A-Za-z0-9 /.+-]+", " ", subject)[:80].strip()
    newest = max((task.newest for task in tasks), default="")
    count = sum(task.records for task in tasks)
    lines = [
        "@misc{kdbench,",
        f"  title = {{kdbench leaderboard: {plain}}},",
        "  author = {{kdbench contributors}},",
        f"  year = {{{newest[:4]}}},",
        f"  note = {{{count} records, the newest of {newest}}}",
        "}",
    ]
    return {"kdbench": "\n".join(lines)}
