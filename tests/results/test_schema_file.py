"""The published JSON schema is the one the model generates."""

from __future__ import annotations

import json
from pathlib import Path

from kdbench.results import record


def test_schema_file_is_current() -> None:
    published = Path(record.__file__).with_name("record.schema.json").read_text()
    assert published == record.json_schema(), (
        "run: python -m kdbench.results.record > kdbench/results/record.schema.json"
    )


def test_every_field_is_described_and_required() -> None:
    schema = json.loads(record.json_schema())
    for part in (schema, *schema["$defs"].values()):
        fields = part.get("properties", {})
        assert all(field.get("description") for field in fields.values())
        assert set(part.get("required", [])) == set(fields) - set(record.ADDED)
        assert not fields or part["additionalProperties"] is False
