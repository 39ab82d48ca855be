"""Every seeded corruption of a record is refused, and the refusal names the field."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kdbench import hashing
from kdbench.axes import axis
from kdbench.results import checks, store
from kdbench.results.record import SCHEMA_VERSION, InvalidRecord, Record, dumps, group_of, loads, seal

Body = dict[str, Any]


class Corruption(NamedTuple):
    """A change to a valid record's JSON and the fields that must be named: all of them, and no others.

    With ``sealed`` the digests of config, group and record are recomputed after the change, as a forger would.
    """

    name: str
    change: Callable[[Body], object]
    fields: set[str]
    sealed: bool = False


def put(path: str, value: object) -> Callable[[Body], None]:
    """Set the field at a dotted path."""

    def change(body: Body) -> None:
        *parents, last = path.split(".")
        node: Any = body
        for key in parents:
            node = node[int(key)] if isinstance(node, list) else node[key]
        node[last] = value

    return change


def swap_true_classes(body: Body) -> None:
    """Move an example to another true class: same size, same columns, same rows but one."""
    body["confusion"][0][1] -= 1
    body["confusion"][1][1] += 1


def fail(body: Body) -> None:
    body.update(status="failed", failure={"reason": "killed", "step": None, "terms": None})


def put_seed(seed: int) -> Callable[[Body], None]:
    """A run of another seed, with all that is drawn from it."""

    def change(body: Body) -> None:
        body["seed"] = body["config"]["seed"] = seed
        body["seeds"] = {"data_order": axis(seed, "data_order")}

    return change


def better_validation(body: Body) -> None:
    """Another validation score in every place but its curve."""
    body["curves"]["val/accuracy"] = [0.5, 0.7, 0.75]
    body["metrics"]["val"]["accuracy"] = body["selection"]["value"] = 0.76


def course(epoch: int = 2, **curves: list[float]) -> Callable[[Body], None]:
    """Validation curves, and the epoch that was kept."""

    def change(body: Body) -> None:
        body["selection"]["epoch"] = epoch
        body["curves"] |= {f"val/{name}": values for name, values in curves.items()}

    return change


def nested(depth: int) -> Any:
    """A list in a list in a list."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


WORSE = "metrics.val.accuracy"
HASH = "f" * 64
DIGEST = {"digest"}
TEST = {"metrics.test.accuracy"}
CORRUPTIONS = [
    Corruption("missing key", lambda body: body.pop("seed"), {"seed"}),
    Corruption("missing nested key", lambda body: body["data"].pop("split_sha256"), {"data.split_sha256"}),
    Corruption("missing digest", lambda body: body.pop("digest"), DIGEST),
    Corruption("extra field", put("rank", 1), {"rank"}),
    Corruption("extra nested field", put("hardware.gpu", "x"), {"hardware.gpu"}),
    Corruption("NaN score", put("metrics.test.accuracy", float("nan")), TEST),
    Corruption("infinite curve", lambda body: body["curves"]["epoch"].append(float("inf")), {"curves.epoch.3"}),
    Corruption("NaN in config", put("config.optimizer.lr", float("nan")), {"config.optimizer.lr"}),
    Corruption("score above one", put("metrics.test.accuracy", 80.0), TEST | DIGEST),
    Corruption(
        "negative teacher score", put("teacher.metrics.val.macro_f1", -0.1), {"teacher.metrics.val.macro_f1"}, True
    ),
    Corruption("validation score of −1, sealed", put("metrics.val.macro_f1", -1.0), {"metrics.val.macro_f1"}, True),
    Corruption("other direction, sealed", put("selection.mode", "min"), {"selection.mode"}, True),
    Corruption("edited score", put("metrics.test.accuracy", 0.85), TEST | DIGEST),
    Corruption("edited score, sealed", put("metrics.test.accuracy", 0.85), TEST, True),
    Corruption("edited F1, sealed", put("metrics.test.macro_f1", 0.85), {"metrics.test.macro_f1"}, True),
    Corruption("edited validation score, sealed", put("metrics.val.accuracy", 0.9), {"selection.value"}, True),
    Corruption("edited teacher score", put("teacher.metrics.test.accuracy", 0.5), DIGEST),
    Corruption("edited note", put("notes", ["no outliers removed"]), DIGEST),
    Corruption("edited time", put("costs.train_seconds", 0.1), DIGEST),
    Corruption("other split", put("data.split_sha256", HASH), DIGEST),
    Corruption("other teacher", put("teacher.sha256", HASH), DIGEST),
    Corruption("short hash", put("teacher.sha256", "abc"), {"teacher.sha256"}),
    Corruption("wrong config hash", put("config_hash", HASH), {"config_hash"} | DIGEST),
    Corruption("wrong group", put("group", HASH), {"group"} | DIGEST),
    Corruption("edited config", put("config.optimizer.lr", 0.1), {"config_hash", "group"} | DIGEST),
    Corruption("edited method", put("method", "kd"), {"method"}, True),
    Corruption("other task", put("config.task", "gnn/arxiv"), {"task"}, True),
    Corruption("other scale", put("scale", "full"), {"scale"}, True),
    Corruption("unknown scale", put("scale", "huge"), {"scale"}),
    Corruption("other control", put("control", "shuffled_teacher"), {"control"}, True),
    Corruption("unknown control", put("control", "nothing"), {"control"}),
    Corruption("other seed", put("seed", 1), {"seed"}, True),
    Corruption("config without student", lambda body: body["config"].pop("student"), {"config.student"}, True),
    Corruption("config method as text", put("config.method", "lingugkd"), {"config.method"}, True),
    Corruption("future schema", put("schema_version", 7), {"schema_version"}),
    Corruption("schema zero", put("schema_version", 0), {"schema_version"}),
    Corruption("negative seconds", put("costs.train_seconds", -1.0), {"costs.train_seconds"}),
    Corruption("negative stage seconds", put("stages.0.seconds", -0.5), {"stages.0.seconds"}),
    Corruption("negative count", put("costs.parameters", -1), {"costs.parameters"}),
    Corruption("negative confusion", put("confusion", [[-1, 1], [0, 60]]), {"confusion.0.0"}),
    Corruption("number as text", put("seed", "0"), {"seed"}),
    Corruption("fraction as count", put("data.sizes.train", 1.5), {"data.sizes.train"}),
    Corruption("flag as number", put("data.generated", 0), {"data.generated"}),
    Corruption("naive datetime", put("started", "2026-10-01T10:00:00"), {"started"}),
    Corruption("time as number", put("started", 1790000000), {"started"}),
    Corruption("finished before started", put("finished", "2026-10-01T09:00:00Z"), {"finished"}, True),
    Corruption("command of two lines", put("command", "kdbench run\nrm -r ."), {"command"}),
    Corruption("confusion of other size", put("confusion", [[60, 1], [0, 0]]), {"confusion", "predictions"}, True),
    Corruption("confusion not square", put("confusion", [[60, 0]]), {"confusion", "predictions"}, True),
    Corruption(
        "confusion with other true classes",
        swap_true_classes,
        {"metrics.test.accuracy", "metrics.test.macro_f1"},
        True,
    ),
    Corruption("confusion of same scores", put("confusion", [[16, 1, 3], [3, 16, 1], [1, 3, 16]]), DIGEST),
    Corruption("test size", put("data.sizes.test", 61), {"confusion", "predictions", "teacher.predictions"}, True),
    Corruption("predictions altered", put("predictions", "0" * 60), {"predictions"}, True),
    Corruption("predictions of an unknown class", put("predictions", "z" * 60), {"predictions"}, True),
    Corruption("predictions too short", put("predictions", "012" * 19), {"predictions"}, True),
    Corruption("predictions not digits", put("predictions", "0 1" * 20), {"predictions"}),
    Corruption("teacher predictions too short", put("teacher.predictions", "01"), {"teacher.predictions"}, True),
    Corruption("no teacher", put("teacher", None), {"teacher"}, True),
    Corruption("teacher not in config", put("config.teacher", None), {"teacher"}, True),
    Corruption("selection of an unknown metric", put("selection.metric", "auc"), {"selection.metric"}, True),
    Corruption("selection value", put("selection.value", 0.8), {"selection.value"}, True),
    Corruption("selection of an absent epoch", put("selection.epoch", 9), {"selection.epoch"}, True),
    Corruption("selection mode", put("selection.mode", "best"), {"selection.mode"}),
    Corruption("curves of unequal length", put("curves.val_accuracy", [0.5]), {"curves.val_accuracy"}, True),
    Corruption("curves without epochs", lambda body: body["curves"].pop("epoch"), {"curves.epoch"}, True),
    Corruption("done without metrics", put("metrics", None), {"metrics"}, True),
    Corruption("done without selection", put("selection", None), {"selection"}, True),
    Corruption("done without costs", put("costs", None), {"costs"}, True),
    Corruption("done with failure", put("failure", {"reason": "", "step": 1, "terms": None}), {"failure"}, True),
    Corruption("failed with scores", fail, {"metrics", "confusion", "predictions"}, True),
    Corruption(
        "failed without failure", put("status", "failed"), {"failure", "metrics", "confusion", "predictions"}, True
    ),
    Corruption("negative seed", put_seed(-1), {"seed"}, True),
    Corruption("seed as fraction", put("config.seed", 0.0), {"seed"}, True),
    Corruption("axis not drawn from the seed", put("seeds.split", 7), {"seeds.split"}, True),
    Corruption("stage left out", put("stages", []), {"costs.stage_seconds"}, True),
    Corruption("stage cheaper than it was", put("costs.stage_seconds", 0.1), {"costs.stage_seconds"}, True),
    Corruption("threads of no machine", put("hardware.threads", 5000), {"hardware.threads"}, True),
    Corruption("validation score above its curve", better_validation, {"metrics.val.accuracy"}, True),
    Corruption("F1 above its curve", course(macro_f1=[0.5, 0.7, 0.6]), {"metrics.val.macro_f1"}, True),
    Corruption("a worse epoch", course(accuracy=[0.5, 0.75, 0.7], epoch=0), {"selection.epoch", WORSE}, True),
    Corruption("the second of two best", course(accuracy=[0.75, 0.75, 0.5], epoch=1), {"selection.epoch"}, True),
    Corruption("config too deep", put("config.data", nested(500)), {"config.data"}),
    Corruption("half of a pair in a name", put("config.method.name", "a\ud800"), {"config.method.name"}),
    Corruption("half of a pair in a key", put("versions", {"a\ud800": "1"}), {"versions"}),
    Corruption(
        "loss term as list", put("failure", {"reason": "", "step": 1, "terms": {"kd": []}}), {"failure.terms.kd"}
    ),
]


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda corruption: corruption.name)
def test_corruption_is_refused(corruption: Corruption, make: Callable[..., Record]) -> None:
    body = json.loads(dumps(make("lingugkd")))
    corruption.change(body)
    if corruption.sealed:
        del body["digest"]
        body |= {"config_hash": hashing.digest(body["config"]), "group": group_of(body["config"])}
        body["digest"] = hashing.digest(body)
    with pytest.raises(InvalidRecord) as caught:
        loads(json.dumps(body), "runs/x/record.json")
    assert {problem.field for problem in caught.value.problems} == corruption.fields
    lines = str(caught.value).splitlines()
    assert lines[0] == "runs/x/record.json is not a valid record:"
    assert {line.split(":")[0].strip() for line in lines[1:]} == corruption.fields


def truncated(text: str) -> str:
    return text[:1000]


def seed_twice(text: str) -> str:
    return text.replace('"seed": 0,', '"seed": 1, "seed": 0,', 1)


def score_twice(text: str) -> str:
    head, tail = text.split('"metrics": {\n  "val"')
    return head + '"metrics": {\n  "val"' + tail.replace('"accuracy": ', '"accuracy": 0.99, "accuracy": ', 1)


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        (truncated, "file", "is not JSON"),
        (lambda text: "", "file", "is empty"),
        (lambda text: " \n", "file", "is empty"),
        (lambda text: "[" * 100_000, "file", "is not JSON"),
        (lambda text: text + "{}", "file", "is not JSON: Extra data"),
        (lambda text: f"[{text}]", "record", "valid dictionary"),
        (seed_twice, "seed", "more than once"),
        (score_twice, "metrics.val.accuracy", "more than once"),
    ],
    ids=["truncated", "empty", "blank", "deep", "two records", "list", "duplicate key", "duplicate nested key"],
)
def test_damaged_text_is_refused(
    change: Callable[[str], str], field: str, message: str, make: Callable[..., Record]
) -> None:
    text = dumps(make())
    assert change(text) != text
    with pytest.raises(InvalidRecord) as caught:
        loads(change(text), "here.json")
    assert [problem.field for problem in caught.value.problems] == [field]
    assert message in caught.value.problems[0].message


def test_newer_schema_asks_for_an_upgrade(make: Callable[..., Record]) -> None:
    text = dumps(make()).replace('"schema_version": 1', '"schema_version": 7, "novelty": 1')
    with pytest.raises(
        InvalidRecord, match=rf"newer kdbench \(schema 7; this one reads up to {SCHEMA_VERSION}\): upgrade"
    ) as caught:
        loads(text, "here.json")
    assert len(caught.value.problems) == 1


def other_data(make: Callable[..., Record], seed: int, **changes: str) -> Record:
    whole = make("lingugkd", seed)
    assert whole.data
    return make("lingugkd", seed, data={**whole.data.model_dump(), **changes})


def again(record: Record, *keys: str, **changes: Any) -> Record:
    """The record with changes in the object at ``keys``, sealed again."""
    body = record.model_dump(exclude={"digest"})
    place = body
    for key in keys:
        place = place[key]
    place |= changes
    return seal(body)


def moved(record: Record) -> Record:
    """An example becomes one of another true class, and is wrong now: other class counts in the same split."""
    body = record.model_dump(exclude={"digest"})
    body["confusion"][0][0] -= 1
    body["confusion"][1][0] += 1
    body["metrics"]["test"] = checks.scores(body["confusion"])
    return seal(body)


LOSS = {"epoch": [0.0, 1.0, 2.0], "train/loss": [2.0625, 1.5, 1.015625]}
ONE = {"data_order": axis(1, "data_order")}
SIZES = {"train": 141, "val": 50, "test": 60}
BETTER = {"accuracy": 0.95, "macro_f1": 0.9}
ACROSS: dict[str, tuple[Callable[[Callable[..., Record]], Record], str]] = {
    "same run again": (lambda make: make("kd", 1, 40), "config_hash"),
    "other data": (lambda make: other_data(make, 1, sha256=HASH), "data.sha256"),
    "other split": (lambda make: other_data(make, 1, split_sha256=HASH), "data.split_sha256"),
    "other teacher": (lambda make: make("lingugkd", 1, teacher_right=53), "teacher.sha256"),
    "other seed axis": (lambda make: make("lingugkd", 1, seeds={**ONE, "initialisation": 1}), "seeds.initialisation"),
    "other class counts": (lambda make: moved(make("lingugkd", 1)), "confusion"),
    "more parameters": (lambda make: again(make("lingugkd", 1), "costs", parameters=23064), "costs.parameters"),
    "fewer FLOPs": (lambda make: again(make("lingugkd", 1), "costs", flops=61_000_000), "costs.flops"),
    "larger training set": (lambda make: again(make("lingugkd", 1), "data", sizes=SIZES), "data.sizes.train"),
    "other licence": (lambda make: again(make("lingugkd", 1), "data", licence="MIT"), "data.licence"),
    "other data set": (lambda make: again(make("lingugkd", 1), "data", name="pubmed"), "data.name"),
    "generated": (lambda make: again(make("lingugkd", 1), "data", generated=True), "data.generated"),
    "better teacher of one hash": (
        lambda make: again(make("lingugkd", 1), "teacher", "metrics", test=BETTER),
        "teacher.metrics.test.accuracy",
    ),
    "other teacher predictions": (
        lambda make: again(make("lingugkd", 1), "teacher", predictions="0" * 60),
        "teacher.predictions",
    ),
    "no teacher predictions": (
        lambda make: again(make("lingugkd", 1), "teacher", predictions=None),
        "teacher.predictions",
    ),
    "no predictions": (lambda make: make("lingugkd", 1, predictions=None), "predictions"),
    "no confusion": (lambda make: make("lingugkd", 1, confusion=None), "confusion"),
    "axes left out": (lambda make: make("lingugkd", 1, seeds=ONE), "seeds"),
    "curves of another seed": (lambda make: make("lingugkd", 1, curves=LOSS), "curves"),
    "no curves": (lambda make: make("kd", 2, curves={}), "curves"),
    "predictions of another split": (lambda make: make("lingugkd", 1, 30), "predictions"),
    "one label, two arms": (lambda make: make("kd", 2, hyper={"temperature": 4}), "config.method"),
}


@pytest.mark.parametrize("case", ACROSS)
def test_faults_across_records(
    case: str, make: Callable[..., Record], save: Callable[[Sequence[Record]], Path]
) -> None:
    build, field = ACROSS[case]
    good = [make(method, seed) for seed in (0, 1) for method in ("alone", "kd", "other")]
    good += [make("weak", 0, 30), make("fit", 3, curves=LOSS), make("lingugkd", 4, hyper={"temperature": 0.5})]
    assert store.validate([save(good)])[:3] == (len(good), [], len(good))
    report = store.validate([save([*good, build(make)])])
    assert [(fault.path.parent.name, fault.field) for fault in report.problems] == [(str(len(good)), field)]
    assert report.valid == len(good)


def test_what_may_differ_across_records(make: Callable[..., Record], save: Callable[[Sequence[Record]], Path]) -> None:
    records = [
        make("kd", 0),
        make("lingugkd", 0, control="random_teacher"),
        make("lingugkd", 0, teacher="sage"),
        make("lingugkd", 0, student="mlp", data={**make("kd", 0).data.model_dump(), "sha256": HASH}),  # type: ignore[union-attr]
        make("lingugkd", 0, student="gat", seeds={"initialisation": 2000, "masks": 5}),
    ]
    assert store.validate([save(records)])[:3] == (5, [], 5)


def test_a_teacher_that_a_run_makes_for_itself_is_its_own(
    make: Callable[..., Record], save: Callable[[Sequence[Record]], Path]
) -> None:
    fields = make("lingugkd", 0, teacher_right=53).model_dump(exclude={"digest"})
    for kind, faults in (("ema", 0), ("several", 0), ("gin", 1)):
        mine = seal({**fields, "teacher": {**fields["teacher"], "kind": kind}})
        assert len(store.validate([save([make("kd", 0), make("other", 0), mine])]).problems) == faults


def test_the_odd_one_is_at_fault_wherever_it_stands(
    make: Callable[..., Record], save: Callable[[Sequence[Record]], Path]
) -> None:
    report = store.validate([save([other_data(make, 0, sha256=HASH), make("kd", 0), make("alone", 0)])])
    assert [(fault.path.parent.name, fault.field) for fault in report.problems] == [("0", "data.sha256")]
    assert "1/record.json" in report.problems[0].message


def test_validate_goes_on_after_a_bad_record(make: Callable[..., Record], tmp_path: Path) -> None:
    store.write(make("kd", 0), tmp_path / "good.json")
    (tmp_path / "bad.json").write_text(dumps(make("kd", 1)).replace('"test": 60', '"test": "60"'))
    report = store.validate([tmp_path])
    assert report.valid == 1
    assert [(fault.path.name, fault.field) for fault in report.problems] == [("bad.json", "data.sizes.test")]
