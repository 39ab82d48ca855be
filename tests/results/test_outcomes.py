"""Per-item outcomes beside a record: kept with it, checked against it, and missed where they are gone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from kdbench import hashing
from kdbench.board import submit
from kdbench.board.build import build
from kdbench.errors import DataError
from kdbench.plan.metrics import scores
from kdbench.results import compare, outcomes, record, store
from kdbench.results.finished import set_aside
from kdbench.results.record import InvalidRecord, Record

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
Fields = dict[str, Any]
Keep = Callable[..., Record]


def arrays_of(fields: Fields) -> Arrays:
    """Outcomes of the record's test predictions, and of 50 validation examples of which 38 are right."""
    truth = {"val": np.arange(50) % 3, "test": np.arange(60) % 3}
    predicted = {
        "val": (np.arange(50) + (np.arange(50) >= 38)) % 3,
        "test": np.array([int(digit) for digit in fields["predictions"]]),
    }
    first = {"val": 0, "test": 1000}
    arrays: Arrays = {}
    for split, targets in truth.items():
        arrays[f"{split}/items"] = np.arange(len(targets)) + first[split]
        arrays |= {f"{split}/targets": targets, f"{split}/predicted": predicted[split]}
    return arrays


@pytest.fixture
def keep(fields: Callable[..., Fields], tmp_path: Path) -> Keep:
    """Write a run with its outcomes: ``keep("kd", 0, …)``, whose arrays ``change`` may alter before they are told."""

    def write(*args: Any, change: Callable[[Arrays], None] | None = None, **changes: Any) -> Record:
        made = fields(*args, **changes)
        arrays = arrays_of(made)
        val = np.zeros((3, 3), dtype=int)
        np.add.at(val, (arrays["val/targets"], arrays["val/predicted"]), 1)
        made["metrics"]["val"] = scores(val.tolist())
        made["selection"]["value"] = made["metrics"]["val"]["accuracy"]
        if change:
            change(arrays)
        data, facts = outcomes.packed(arrays)
        new = {"schema_version": 4, "protocol": 2, "steps": 30, "reports": {}, "outcomes": facts}
        code = {"sha256": hashing.digest({}), "files": {}}
        sealed = record.seal({**made, **new, "code": code})
        path = tmp_path / "runs" / sealed.config_hash[:16] / "record.json"
        hashing.write_atomic(outcomes.sidecar(path), data)
        hashing.write_atomic(path, record.dumps(sealed))
        return store.read([path])[0]

    return write


def problems(run: Record) -> list[tuple[str, str]]:
    assert run.path
    return [(fault.field, fault.message) for fault in store.validate([run.path]).problems]


def test_a_record_and_its_outcomes_hold(keep: Keep) -> None:
    run = keep()
    assert run.path and problems(run) == []
    arrays = outcomes.read(run)
    assert arrays is not None and arrays["test/items"].tolist() == list(range(1000, 1060))
    given = outcomes.of(run, "accuracy")
    assert given is not None and run.metrics and given.values.mean() == run.metrics.test["accuracy"]
    assert (given.items == given.clusters).all() and given.items.dtype == given.clusters.dtype == np.int64
    assert given.values.dtype == np.float64 and outcomes.of(run, "unheard of") is None
    assert outcomes.read(record.loads(run.path.read_text(), "text alone")) is None


def test_clusters_are_those_that_were_kept(keep: Keep) -> None:
    run = keep(change=lambda arrays: arrays.update({"test/clusters": np.arange(60) // 2}))
    given = outcomes.of(run, "macro_f1")
    assert problems(run) == [] and given is not None and given.clusters.tolist() == [i // 2 for i in range(60)]


def test_numbers_are_kept_in_few_bytes_and_labels_by_value() -> None:
    arrays = {"test/items": np.arange(300), "test/targets": np.zeros(300, dtype=np.int64), "test/x": np.array([-1])}
    data, facts = outcomes.packed(arrays)
    kept = load(data)
    assert [kept[name].dtype.str for name in arrays] == ["<u2", "|u1", "|i1"] and facts["bytes"] == len(data)
    assert facts["labels_sha256"] == outcomes.labels_digest(kept)
    for name in ("test/items", "test/targets"):
        other = {**arrays, name: arrays[name] + 1}
        assert outcomes.labels_digest(other) != facts["labels_sha256"]


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(("harm", "message"), [(torn, "bytes, not the"), (flipped, "changed after the run")])
def test_a_damaged_file_is_named(keep: Keep, harm: Callable[[Path], None], message: str) -> None:
    run = keep()
    assert run.path and outcomes.read(run) is not None
    harm(outcomes.sidecar(run.path))
    (field, told), *more = problems(run)
    assert field == "outcomes" and message in told and "outcomes.safetensors" in told and not more
    with pytest.raises(DataError, match=r"outcomes\.safetensors"):
        store.write(run, run.path.parent.parent / "copy.json")
    assert not (run.path.parent.parent / "copy.json").exists()


def test_a_missing_file_is_said_and_the_record_holds(keep: Keep) -> None:
    run = keep()
    assert run.path
    outcomes.sidecar(run.path).unlink()
    report = store.validate([run.path])
    assert report.valid == 1 and not report.problems
    assert any("intervals cover seeds alone" in why for why in report.unchecked)
    assert outcomes.of(run, "accuracy") is None


CHANGES: list[tuple[str, Callable[[Arrays], Any], str]] = [
    ("another prediction", lambda a: a["test/predicted"].__setitem__(0, 2), "metrics.test.accuracy"),
    ("another label", lambda a: a["val/targets"].__setitem__(0, 1), "metrics.val.accuracy"),
    (
        "two predictions exchanged",
        lambda a: a["test/predicted"].__setitem__([0, 3, 48, 49], [1, 1, 0, 0]),
        "predictions",
    ),
    ("an item twice", lambda a: a["test/items"].__setitem__(0, 1001), "outcomes"),
    ("too few rows", lambda a: a.update({"test/predicted": a["test/predicted"][1:]}), "outcomes"),
    ("no items", lambda a: a.pop("val/items"), "outcomes"),
    ("no finite number", lambda a: a.update({"test/margin": np.full(60, np.nan)}), "outcomes"),
    ("no class", lambda a: a["test/predicted"].__setitem__(0, 1 << 40), "outcomes"),
]


@pytest.mark.parametrize(("change", "field"), [case[1:] for case in CHANGES], ids=[case[0] for case in CHANGES])
def test_outcomes_that_contradict_the_record_are_refused(
    keep: Keep, change: Callable[[Arrays], Any], field: str
) -> None:
    """Though the record tells their digest: whoever makes up scores must make up all that they come from."""
    assert field in {name for name, _ in problems(keep(change=change))}


def test_labels_are_told_by_the_record(keep: Keep, tmp_path: Path) -> None:
    run = keep()
    content = json.loads(record.dumps(run))
    content["outcomes"]["labels_sha256"] = "0" * 64
    content.pop("digest")
    assert run.path
    run.path.write_text(record.dumps(record.seal(content)))
    assert problems(run)[0][0] == "outcomes.labels_sha256"


def test_runs_of_one_split_have_the_same_labels(keep: Keep, tmp_path: Path) -> None:
    def others(arrays: Arrays) -> None:
        arrays["test/items"] += 1

    keep("kd"), keep("alone"), keep("other", change=others)
    (fault,) = store.validate([tmp_path / "runs"]).problems
    assert fault.field == "outcomes.labels_sha256"


def test_a_copy_takes_them_along(keep: Keep, tmp_path: Path) -> None:
    run, place = keep(), tmp_path / "published" / "abc.json"
    store.write(run, place)
    (copy,) = store.read([place])
    first, second = outcomes.read(run), outcomes.read(copy)
    assert copy == run and first is not None and second is not None
    assert first.keys() == second.keys() and outcomes.sidecar(place).name == "abc.safetensors"
    assert store.validate([place]).problems == [] and not store.validate([place]).unchecked.keys() & {"outcomes"}


def test_a_contribution_brings_them(keep: Keep, tmp_path: Path) -> None:
    run = keep()
    assert run.path
    prepared = submit.prepare([run.path], tmp_path / "published")
    (place,) = submit.write(prepared)
    assert prepared.problems == [] and outcomes.sidecar(place).is_file()
    flipped(outcomes.sidecar(place))
    assert submit.prepare([run.path], tmp_path / "published").problems[0].field == "outcomes"


def test_the_site_offers_them(keep: Keep, tmp_path: Path) -> None:
    run, site = keep(), tmp_path / "site"
    assert run.path and build([run.path], site, 1).problems == []
    (offered,) = site.glob("record/*/*.safetensors")
    assert offered.read_bytes() == outcomes.sidecar(run.path).read_bytes()
    assert f'href="{offered.name}"' in offered.with_suffix(".html").read_text()
    outcomes.sidecar(run.path).unlink()
    report = build([run.path], site, 1)  # over the site that a build made
    assert report.problems == [] and any("outcomes" in why for why in report.unchecked)
    assert not list(site.glob("record/*/*.safetensors"))
    assert offered.name not in offered.with_suffix(".html").read_text()


def test_a_record_that_is_set_aside_takes_them_along(keep: Keep) -> None:
    run = keep()
    assert run.path
    set_aside(run.path.parent)
    names = {path.name for path in run.path.parent.iterdir()}
    assert names == {"record.json.stale", "outcomes.safetensors.stale"}


def test_a_file_that_is_none_of_numbers_is_named(keep: Keep) -> None:
    run = keep()
    assert run.path and run.outcomes
    place, data = outcomes.sidecar(run.path), b"x" * 64
    place.write_bytes(data)
    content = json.loads(record.dumps(run))
    content.pop("digest")
    content["outcomes"] |= {"sha256": hashing.file_digest(place), "bytes": len(data)}
    run.path.write_text(record.dumps(record.seal(content)))
    assert "no safetensors file" in problems(run)[0][1]
    place.write_bytes(save({"x": np.zeros(1)}))
    assert "bytes, not the 64" in problems(run)[0][1]


def test_two_protocols_are_never_compared(keep: Keep, make: Callable[..., Record]) -> None:
    old, new = make("kd", 0, 40), keep("kd", 0, 48)
    assert (old.protocol, new.protocol) == (1, 2) and old.group == new.group
    assert len(compare.compare([old, new, make("alone", 0, 40)])) == 2
    assert store.check([(Path("old.json"), old), (Path("new.json"), new)]) == []


def test_the_protocol_is_of_the_schema(fields: Callable[..., Fields]) -> None:
    with pytest.raises(InvalidRecord, match="protocol: is no field of schema 1"):
        record.seal(fields(protocol=2))
    with pytest.raises(InvalidRecord, match="protocol: required from schema 4 on"):
        record.seal(fields(schema_version=4))
