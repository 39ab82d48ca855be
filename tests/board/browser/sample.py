"""A small site of the markup that templates and ``board.js`` agree on, with text that tries to be markup."""

from __future__ import annotations

import html
import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ASSETS = Path(__file__).parents[3] / "leaderboard" / "assets"
POLICY = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:"
CITATION = '@misc{arm2026, title = {A "quoted" {Title} & more}, note = {<script>alert(1)</script>}}'
HOSTILE = '=HYPERLINK("x"),<img src=x onerror=alert(1)>'

Cell = tuple[str, dict[str, str]]  # the text that people read, and the data- attributes
COLUMNS = [
    {"key": "arm", "type": "text", "label": "arm"},
    {"key": "mean", "type": "number", "label": "accuracy %", "optional": "no"},
    {"key": "family", "type": "text", "label": "family", "facet": ""},
    {"key": "latency_ms", "type": "number", "label": "ms", "hidden": ""},
    {"key": "note", "type": "text", "label": "note"},
]
MISSING: Cell = ("–", {})


def number(value: float, text: str, **interval: float) -> Cell:
    """A measured cell: exact values for the machine, rounded text for people."""
    return text, {"v": repr(value), **{end: repr(bound) for end, bound in interval.items()}}


def text(value: str) -> Cell:
    """A cell of words."""
    return value, {"v": value}


ROWS: list[list[Cell]] = [
    [text("teacher"), number(0.9012, "90.12"), text("graph"), number(12.5, "12.50"), text("frozen")],
    [
        text("alone"),
        number(0.8712, "87.12 ± 0.51", low=0.8661, high=0.8763),
        text("graph"),
        number(3.25, "3.25"),
        MISSING,
    ],
    [text("kd"), number(0.8843, "88.43 ± 0.96", low=0.8747, high=0.8939), text("graph"), MISSING, text('plain, "KD"')],
    [text("a,b & c"), MISSING, text("medical"), number(1e308, "1e308"), text("no seed\nfinished")],
    [text(HOSTILE), number(0.1 + 0.2, "30.00"), text("medical"), number(1e-07, "0.00"), text("-1+1")],
    [text("a,b & c"), number(-0.5, "−50.00"), text("lidar, far"), number(10.0, "10.00"), text("@SUM(A1)")],
]


def attributes(values: dict[str, str]) -> str:
    """``data-`` attributes, escaped."""
    return "".join(f' data-{name}="{html.escape(value)}"' for name, value in values.items())


def table(name: str, columns: Sequence[dict[str, str]], rows: Sequence[Sequence[Cell]]) -> str:
    """A section with one table of results."""
    heads = "".join(
        f'<th scope="col"{attributes({key: value for key, value in column.items() if key != "label"})}>'
        f"{html.escape(column['label'])}</th>"
        for column in columns
    )
    lines = []
    for row in rows:
        (first, data), *rest = row
        cells = "".join(f"<td{attributes(values)}>{html.escape(shown)}</td>" for shown, values in rest)
        head = f'<th scope="row"{attributes(data)}>{html.escape(first)}</th>'
        lines.append(f"<tr{attributes({'arm': data['v']})}>{head}{cells}</tr>")
    return (
        f'<section class="view" id="{name}"><h2>{name}</h2><div class="scroll" tabindex="0" role="region" '
        f'aria-label="{name}"><table class="results" data-name="{name}" data-cite="arm2026">'
        f"<caption>Test split of {name}, 5 seeds</caption><thead><tr>{heads}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div></section>"
    )


def page(body: str) -> str:
    """A whole page, with the policy that every page of the site has."""
    citation = json.dumps({"arm2026": CITATION}).replace("<", "\\u003c")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Fixture</title>'
        '<link rel="icon" href="data:,"><link rel="stylesheet" href="assets/board.css">'
        '<script defer src="assets/board.js"></script></head><body><a class="skip" href="#main">Skip to content</a>'
        '<header><nav class="site" aria-label="Site"><a href="index.html" aria-current="page">Overview</a>'
        '<a href="large.html">Large</a></nav></header>'
        f'<main id="main"><h1>Fixture</h1>{body}</main>'
        f'<script type="application/json" id="citation">{citation}</script></body></html>'
    )


def large_rows(rows: int, columns: int) -> tuple[list[dict[str, str]], list[list[Cell]]]:
    """A table of many rows, the same at every call."""
    draw = random.Random(0)
    heads = [
        {"key": "arm", "type": "text", "label": "arm"},
        {"key": "f", "type": "text", "label": "family", "facet": ""},
    ]
    heads += [{"key": f"n{place}", "type": "number", "label": f"number {place}"} for place in range(columns - 2)]

    def values() -> list[float]:
        return [draw.gauss(0.8, 0.05) for _ in range(columns - 2)]

    lines = [
        [
            text(f"method-{place}"),
            text(draw.choice(["graph", "medical", "lidar"])),
            *(
                number(value, f"{100 * value:.2f} ± {draw.random():.2f}", low=value - 0.01, high=value + 0.01)
                for value in values()
            ),
        ]
        for place in range(rows)
    ]
    return heads, lines


def write_site(folder: Path) -> Path:
    """Write the site; its first page."""
    shutil.copytree(ASSETS, folder / "assets")
    second = [[cell for cell in row] for row in ROWS[:3]]
    body = f"<p>Words.</p>{table('first', COLUMNS, ROWS)}{table('second', COLUMNS, second)}"
    (folder / "index.html").write_text(page(body), encoding="utf-8")
    (folder / "large.html").write_text(page(table("large", *large_rows(500, 20))), encoding="utf-8")
    return folder / "index.html"


def expected(rows: Sequence[Sequence[Cell]], columns: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
    """What a JSON download of the columns in view must hold."""
    lines = []
    for row in rows:
        line: dict[str, Any] = {}
        for column, (_, data) in zip(columns, row, strict=True):
            value = data.get("v")
            line[column["key"]] = float(value) if value is not None and column["type"] == "number" else value
            if column["key"] == "mean":
                line["mean_low"], line["mean_high"] = (
                    float(data[end]) if end in data else None for end in ("low", "high")
                )
        lines.append(line)
    return lines
