"""Tables as rows for machines, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

from kdbench.board import safe
from kdbench.board.cells import Table


def rows(tables: Iterable[tuple[dict[str, str], Table]]) -> list[dict[str, Any]]:
    """The tables' rows as JSON-able objects: exact values, ``KEY_low`` and ``KEY_high`` beside those with an interval.

    The first items of each are the given context of its table.
    """
    exported = []
    for context, table in tables:
        bounded = {
            column.key
            for index, column in enumerate(table.columns)
            if any(line.cells[index].low is not None for line in table.lines)
        }
        for line in table.lines:
            row: dict[str, Any] = {key: safe.cut(value) for key, value in context.items()}
            for column, cell in zip(table.columns, line.cells, strict=True):
                row[column.key] = cell.value
                if column.key in bounded:
                    row |= {f"{column.key}_low": cell.low, f"{column.key}_high": cell.high}
            exported.append(row)
    return exported


def to_csv(exported: Sequence[dict[str, Any]]) -> str:
    """Rows as CSV with one header of all their keys; missing values are empty."""
    keys = list(dict.fromkeys(key for row in exported for key in row))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(safe.spreadsheet, keys))
    for row in exported:
        values = (row.get(key) for key in keys)
        writer.writerow(safe.spreadsheet(v) if isinstance(v, str) else "" if v is None else v for v in values)
    return out.getvalue()


def to_json(exported: Sequence[dict[str, Any]]) -> str:
    """Rows as a JSON list, one row a line."""
    lines = ",\n".join(json.dumps(row, ensure_ascii=True, allow_nan=False) for row in exported)
    return f"[\n{lines}\n]\n" if exported else "[]\n"
