"""A record's page of protocol 2: times and memory as measured, and the search that chose its options."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from kdbench import hashing
from kdbench.board.record_page import record_page
from kdbench.results import measured
from kdbench.results.measured import Measurement, path_of
from kdbench.results.record import Record

NOW: dict[str, Any] = {
    "schema_version": 4,
    "protocol": 2,
    "steps": 50,
    "reports": {},
    "code": {"sha256": hashing.digest({}), "files": {}},
    "search": {"points": 8, "seeds": [1000, 1001], "sha256": "ab" * 32},
}


def measurement(record: Record) -> str:
    times = {"rounds": [1.25, 1.5, 9.0]}
    arm = {
        "method": record.method,
        "hyperparameters": {},
        **{"parameters": 10, "trained_parameters": 12, "examples": 4, "flops": 4000},
        **{
            "forward_one": times,
            "forward_batch": times,
            "step": None,
            "stage_seconds": None,
            "memory_bytes": 25_000_000,
        },
    }
    return Measurement.seal(
        {
            **{name: getattr(record, name) for name in ("task", "scale", "group", "seed", "versions")},
            **{"git": record.git.model_dump(), "hardware": record.hardware.model_dump()},
            **{"student": None, "settings": [], "load": None, "busy": False, "arms": [arm]},
            **dict.fromkeys(("started", "finished"), datetime.now(UTC)),
        }
    ).text


def test_a_page_shows_what_was_measured_and_no_other_time(
    sealed: Callable[..., Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured, "published", lambda: tmp_path)
    record = sealed(None, "kd", 0, **NOW)
    page = record_page(record, drawn=False)
    assert "not measured" in page and "latency of a forward pass" not in page and "peak memory" not in page
    assert "8 points with seeds 1000, 1001; log abababababababab" in page
    path_of(tmp_path, record.task).write_text(measurement(record))
    measured._of_group.cache_clear()
    page = record_page(record, drawn=False)
    assert "1.50 ms [1.25, 9.00]" in page and "25 MB" in page
    assert "latency of a forward pass" in record_page(sealed(None, "kd", 0), drawn=False)
