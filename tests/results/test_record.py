"""Records: what is sealed is what is read back, and what a record must say about a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from kdbench import hashing
from kdbench.errors import UsageError
from kdbench.plan.metrics import scores
from kdbench.results import store
from kdbench.results.record import InvalidRecord, Record, dumps, group_of, loads, seal

Fields = dict[str, Any]


def test_round_trip(make: Callable[..., Record], make_failed: Callable[..., Record]) -> None:
    for record in (make("lingugkd", 3), make("alone"), make_failed()):
        text = dumps(record)
        assert loads(text, "here") == record
        assert loads(text.encode(), "here") == record
        assert dumps(loads(text, "here")) == text


def test_text_is_pretty(make: Callable[..., Record]) -> None:
    text = dumps(make("kd", notes=["a [bracketed,\n text]"]))
    assert text.endswith("}\n")
    assert '\n  "epoch": [0.0, 1.0, 2.0],\n' in text
    assert '\n "confusion": [\n  [16, 4, 0],\n  [0, 16, 4],\n  [4, 0, 16]\n ],\n' in text
    assert json.loads(text)["notes"] == ["a [bracketed,\n text]"]


def test_digest_is_the_sha256_of_everything_else(make: Callable[..., Record]) -> None:
    body = json.loads(dumps(make()))
    stated = body.pop("digest")
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    assert stated == hashlib.sha256(text.encode()).hexdigest()


def test_sealing_normalises_times_and_numbers(fields: Callable[..., Fields], make: Callable[..., Record]) -> None:
    changes: Fields = {"started": datetime(2026, 10, 1, 10, tzinfo=UTC), "curves": {"epoch": [0, 1, 2]}}
    record = seal(fields(**changes))
    assert record.digest == make(curves={"epoch": [0.0, 1.0, 2.0]}).digest


def test_records_are_frozen(make: Callable[..., Record]) -> None:
    record = make()
    with pytest.raises(ValidationError):
        record.__setattr__("seed", 1)


def test_sealing_names_every_wrong_field(fields: Callable[..., Fields]) -> None:
    with pytest.raises(InvalidRecord) as caught:
        seal(fields(scale="tiny", group="0" * 64, curves={"epoch": [0.0], "loss": []}))
    assert {problem.field for problem in caught.value.problems} == {"scale", "group", "curves.loss", "selection.epoch"}


def test_config_refuses_what_json_cannot_hold(fields: Callable[..., Fields]) -> None:
    changed = fields()
    changed["config"]["data"]["root"] = Path("/data")
    with pytest.raises(InvalidRecord, match=r"config\.data\.root: "):
        seal(changed)


def test_an_early_failure_needs_no_data_teacher_or_costs(failed: Callable[..., Fields]) -> None:
    record = seal(failed(data=None, teacher=None))
    assert record.status == "failed" and record.failure and record.failure.terms == {"task": 0.5, "kd": "nan"}


def test_group_ignores_exactly_what_distinguishes_arms(fields: Callable[..., Fields]) -> None:
    config = fields()["config"]
    for key in config:
        changed = group_of({**config, key: "other"}) != group_of(config)
        assert changed == (key not in {"method", "control", "seed", "teacher"}), key


@pytest.mark.parametrize(
    ("confusion", "accuracy", "macro_f1"),
    [
        # Values of torchmetrics 1.9: multiclass_accuracy(average="micro"), multiclass_f1_score(average="macro").
        ([[5, 2, 0, 0], [1, 3, 1, 0], [0, 0, 0, 0], [0, 4, 0, 0]], 0.5, 0.299450546503067),
        ([[5, 2, 0, 0], [1, 3, 0, 0], [0, 0, 0, 0], [0, 4, 0, 0]], 8 / 15, 0.41025644540786743),
        ([[3, 0], [0, 1]], 1.0, 1.0),
        ([[0, 1], [3, 0]], 0.0, 0.0),
    ],
)
def test_scores_of_a_confusion_matrix(confusion: list[list[int]], accuracy: float, macro_f1: float) -> None:
    assert scores(confusion) == pytest.approx({"accuracy": accuracy, "macro_f1": macro_f1}, abs=1e-6)


def test_float32_scores_are_accepted_and_larger_errors_not(fields: Callable[..., Fields]) -> None:
    changed = fields(right=43)
    changed["metrics"]["test"]["accuracy"] += 5e-7
    seal(changed)
    changed["metrics"]["test"]["accuracy"] += 5e-6
    with pytest.raises(InvalidRecord, match=r"metrics\.test\.accuracy"):
        seal(changed)


def test_other_metrics_may_exceed_one(fields: Callable[..., Fields]) -> None:
    changed = fields(confusion=None, predictions=None)
    changed["metrics"]["test"] = {"perplexity": 31.5}
    metrics = seal(changed).metrics
    assert metrics and metrics.test == {"perplexity": 31.5}


def test_more_than_36_classes_have_no_prediction_digits(fields: Callable[..., Fields]) -> None:
    changed = fields()
    changed["confusion"] = [[*row, *[0] * 34] for row in changed["confusion"]] + [[0] * 37 for _ in range(34)]
    with pytest.raises(InvalidRecord, match=r"predictions: 37 classes"):
        seal(changed)
    seal({**changed, "predictions": None})


def test_files_in_folders(make: Callable[..., Record], tmp_path: Path) -> None:
    runs, published = tmp_path / "runs", tmp_path / "published"
    first, second = make("kd", 0), make("kd", 1)
    store.write(first, runs / "a" / "record.json")
    (runs / "a" / "config.json").write_text("{}")
    store.write(second, published / "deep" / "x.json")
    assert store.read([runs, published]) == [first, second]
    assert store.read([published / "deep" / "x.json", published]) == [second]
    report = store.validate([tmp_path])
    assert report[:4] == (2, [], 2, [runs / "a" / "config.json"])
    with pytest.raises(UsageError, match="absent"):
        store.read([tmp_path / "absent"])


def test_a_file_named_as_that_of_a_run_hides_no_other(make: Callable[..., Record], tmp_path: Path) -> None:
    store.write(make("kd", 0), tmp_path / "published" / "kd" / "a.json")
    store.write(make("kd", 1), tmp_path / "published" / "kd" / "b.json")
    store.write(make("kd", 2), tmp_path / "mine" / "record.json")
    assert len(store.read([tmp_path])) == 3
    store.write(make("kd", 3), tmp_path / "published" / "record.json")
    store.write(make("kd", 4), tmp_path / "published" / "kd" / "record.json")
    assert sorted(record.seed for record in store.read([tmp_path])) == [0, 1, 2, 3, 4]
    tampered = tmp_path / "published" / "kd" / "b.json"
    tampered.write_text(tampered.read_text().replace('"seed": 1,', '"seed": 7,', 1))
    report = store.validate([tmp_path])
    assert (report.valid, report.read) == (4, 5) and {fault.path for fault in report.problems} == {tampered}


def test_what_sweeps_and_stages_leave_is_no_record_and_other_json_is_told(
    make: Callable[..., Record], tmp_path: Path
) -> None:
    sweep = tmp_path / "sweeps" / "first"
    for place in (sweep / "sweep.json", sweep / "jobs.json", sweep / "states" / "a.json", tmp_path / "stage.json"):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("[]")
    (tmp_path / "cache.json").write_text("half of a")
    assert store.validate([tmp_path])[:4] == (0, [], 0, [])
    store.write(make(), tmp_path / "kd" / "record.json")
    (tmp_path / "kd" / "log.json").write_text("{}\n{}\n")
    (tmp_path / "notes.json").write_text('{"text": 1}')
    assert store.validate([tmp_path])[:4] == (1, [], 1, [tmp_path / "kd" / "log.json", tmp_path / "notes.json"])
    assert len(store.read([tmp_path])) == 1
    store.write(make("kd", 1), tmp_path / "states" / "a.json")  # a method may have that name
    assert store.validate([tmp_path]).valid == 2


@pytest.mark.parametrize("text", ["{}", "[]", "1", '"x"', '{"digest": 1}'])
def test_what_is_named_as_a_record_must_be_one(text: str, tmp_path: Path) -> None:
    for path in (tmp_path / "run" / "record.json", tmp_path / "named.json"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    for named in (tmp_path / "run", tmp_path / "named.json"):
        (fault,) = store.validate([named]).problems
        assert fault.field == "record" and "is no record" in fault.message


def test_a_record_of_many_bytes_or_none_that_can_be_read_is_named(
    make: Callable[..., Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write(make(), tmp_path / "x.json")
    monkeypatch.setattr(store, "LARGEST", 1000)
    (fault,) = store.validate([tmp_path]).problems
    assert fault.field == "file" and "larger than 1,000 bytes" in fault.message


def test_reading_stops_at_a_bad_record(make: Callable[..., Record], tmp_path: Path) -> None:
    store.write(make(), tmp_path / "good.json")
    (tmp_path / "bad.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(InvalidRecord, match=r"bad\.json.*\n  file: is not JSON"):
        store.read([tmp_path])


def test_config_hash_is_the_digest_of_config(make: Callable[..., Record]) -> None:
    record = make()
    assert record.config_hash == hashing.digest(record.config)
