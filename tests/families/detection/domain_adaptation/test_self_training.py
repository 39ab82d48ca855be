"""Runs of the arms: what each may see, what is deployed, and what an image without label does."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kdbench.engine.runner import Session
from kdbench.engine.seeds import axis, seeded
from kdbench.engine.stages import StageStore
from kdbench.engine.teachers import EMATeacher
from kdbench.errors import DataError, UndefinedMetricError
from kdbench.families.detection.domain_adaptation import domains
from kdbench.families.detection.domain_adaptation.data import Images, LabelledBatch
from kdbench.families.detection.domain_adaptation.networks import Truth
from kdbench.families.detection.domain_adaptation.pseudo_labels import high_confidence
from kdbench.families.detection.domain_adaptation.task import mean_of_classes, scores
from kdbench.plan.config import expand
from kdbench.plan.metrics import Undefined


@pytest.mark.slow
@pytest.mark.parametrize("method", ["alone", "kd", "lpld"])
def test_no_arm_but_the_oracle_reads_the_targets_labels(
    method: str, do: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: Any) -> Any:
        raise AssertionError("the labels of the target's training images were read")

    monkeypatch.setattr(domains, "hidden", closed)
    assert do(f"method={method}", "seed=3").record.status == "done"


@pytest.mark.slow
def test_the_oracle_reads_them(do: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = domains.hidden
    monkeypatch.setattr(domains, "hidden", lambda *options: (asked.append(options), real(*options))[1])
    record = do("method=oracle", "seed=4").record
    assert asked and record.teacher is None and record.curves["train/roi_cls"][0] > 0


def test_wrong_labels_of_the_oracle_show_before_any_training(
    do: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_: Any) -> Any:
        raise DataError("x.xml: object 1 has no area.")

    monkeypatch.setattr(domains, "hidden", wrong)
    monkeypatch.setattr(StageStore, "ensure", lambda *_: pytest.fail("a stage was begun"))
    with pytest.raises(DataError, match="no area"):
        do("method=oracle", "seed=6")


@pytest.mark.slow
def test_alone_is_the_source_detector_and_reads_no_target_training_image(
    session: Callable[..., Session], do: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = session("method=alone")
    network = begun.task.student()
    weights = load_file(begun.task.folder("source-detector") / "weights.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    read: list[str] = []
    real = Images.read
    monkeypatch.setattr(Images, "read", lambda self, row: (read.append(self.names[row]), real(self, row))[1])
    outcome = do("method=alone", "seed=5")
    assert outcome.record.costs is not None and outcome.record.costs.train_seconds == 0
    deployed = load_file(outcome.folder / "student.safetensors")
    seen = {name for name in read if name.startswith("target_0")}
    assert deployed.keys() == weights.keys() and len(seen) <= 2, "one batch, to measure shapes and speed"


@pytest.mark.slow
def test_arms_share_the_source_detector_of_their_seed(do: Callable[..., Any]) -> None:
    stages = {
        (seed, method): next(s for s in do(f"method={method}", f"seed={seed}").record.stages).key
        for seed in (0, 1)
        for method in ("alone", "kd", "oracle")
    }
    assert len({stages[0, method] for method in ("alone", "kd", "oracle")}) == 1
    assert stages[0, "kd"] != stages[1, "kd"]


@pytest.mark.slow
def test_the_average_is_deployed_and_the_raw_student_is_told(do: Callable[..., Any], runs: Path) -> None:
    record = do("method=kd", "teacher.keep=0.5", "teacher.every=1", "method.threshold=0.3").record
    assert record.teacher is not None and record.metrics is not None
    assert record.teacher.kind == "ema" and "map50" not in record.teacher.metrics.test
    raw = record.teacher.metrics.test
    assert raw.keys() == {f"student_{name}" for name in record.metrics.test}
    assert record.selection is not None and record.selection.epoch == 1


@pytest.mark.parametrize("keep", [0.0, 0.75])
def test_the_average_is_that_of_the_formula(keep: float, session: Callable[..., Session]) -> None:
    begun = session("method=lpld", f"teacher.keep={keep}", "teacher.every=3", "method.threshold=0.3")
    module, teachers = begun.assemble()
    start = {name: value.clone() for name, value in module.student.state_dict().items()}
    states: list[dict[str, torch.Tensor]] = []
    real = EMATeacher.update

    def update(self: EMATeacher, student: Any) -> None:
        states.append({name: value.clone() for name, value in student.state_dict().items()})
        real(self, student)

    EMATeacher.update = update  # type: ignore[method-assign]
    try:
        selection, _ = begun.train(module)
    finally:
        EMATeacher.update = real  # type: ignore[method-assign]
    assert len(states) == 2  # 2 epochs of 4 steps
    wanted = start
    for state in states:
        wanted = {name: keep * wanted[name] + (1 - keep) * state[name] for name in state}
    for name, value in selection.weights.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-5, atol=1e-7)
    moved = [not torch.equal(start[name], states[-1][name]) for name in start]
    assert any(moved)
    (teacher,) = teachers.values()
    assert isinstance(teacher, EMATeacher) and teacher.every == 3


@pytest.mark.parametrize(
    ("words", "steps"),
    [((), 4), (("trainer.accumulate_grad_batches=3",), 2), (("trainer.devices=2", "trainer.strategy=ddp"), 2)],
)
def test_null_moves_the_teacher_once_an_epoch(
    words: tuple[str, ...], steps: int, session: Callable[..., Session]
) -> None:
    """The 16 images of an epoch are 4 batches."""
    begun = session("method=kd", "teacher.every=null", *words)
    (teacher,) = begun.method.teachers(begun.task).values()
    assert isinstance(teacher, EMATeacher) and teacher.every == steps


@pytest.mark.slow
def test_the_teacher_moves_where_batches_are_accumulated(do: Callable[..., Any]) -> None:
    words = ("trainer.accumulate_grad_batches=3", "method.threshold=0.3")
    deployed = load_file(do("method=kd", *words).folder / "student.safetensors")
    started = load_file(do("method=alone", words[0]).folder / "student.safetensors")
    assert any(not torch.equal(deployed[name], value) for name, value in started.items())


@pytest.mark.parametrize("method", ["kd", "lpld"])
def test_without_confident_labels_skipping_leaves_the_student_as_it_was(
    method: str, session: Callable[..., Session]
) -> None:
    begun = session(f"method={method}", "method.threshold=0.999", "optimizer.weight_decay=0.1")
    module, _ = begun.assemble()
    before = {name: value.clone() for name, value in module.student.state_dict().items()}
    _, curves = begun.train(module)
    assert all(torch.equal(value, before[name]) for name, value in module.student.state_dict().items())
    assert curves.values["train/images without label"] == [1] and curves.values["train/loss"] == [0]


@pytest.mark.slow
def test_without_confident_labels_background_trains_it(session: Callable[..., Session]) -> None:
    begun = session("method=kd", "method.threshold=0.999", "method.empty=background")
    module, _ = begun.assemble()
    before = {name: value.clone() for name, value in module.student.state_dict().items()}
    _, curves = begun.train(module)
    assert not all(torch.equal(value, before[name]) for name, value in module.student.state_dict().items())
    assert curves.values["train/rpn_cls"][0] > 0 and curves.values["train/rpn_box"] == [0]


@pytest.mark.slow
def test_lpld_mines_on_generated_shapes(do: Callable[..., Any]) -> None:
    """With bounds that let some regions through; the term trains, and kd is another run."""
    words = ("method.threshold=0.5", "method.foreground=0.5")
    curves = do("method=lpld", *words).record.curves
    assert curves["train/low-confidence labels"][0] > 0 and curves["train/lpld"][0] > 0
    assert 0 < curves["train/feature distance"][0] < 2
    without = do("method=lpld", *words, "method.weight=0").record
    plain = do("method=kd", "method.threshold=0.5").record
    assert without.metrics == plain.metrics, "without its weight LPLD is the mean teacher"


def test_confident_labels_are_above_the_threshold() -> None:
    outputs = {
        "boxes": torch.arange(24.0).view(2, 3, 4),
        "scores": torch.tensor([[0.9, 0.7, 0.0], [0.5, 0.1, 0.0]]),
        "labels": torch.tensor([[2, 1, 0], [1, 1, 0]]),
    }
    first, second = high_confidence(outputs, 0.7)
    assert first.boxes.tolist() == [[0, 1, 2, 3]] and first.labels.tolist() == [2]
    assert second.boxes.shape == (0, 4)


def test_unlabelled_batches_have_no_task_terms_and_labelled_ones_four(session: Callable[..., Session]) -> None:
    begun = session("method=kd")
    module, _ = begun.assemble()
    module.train()
    batch = begun.task.example()
    output = module.forward_batch(batch)
    assert output == {} and module.task_terms(output, module.targets(batch)) == {}
    labelled = next(iter(begun.task.labelled().train_dataloader()))  # type: ignore[attr-defined]
    assert isinstance(labelled, LabelledBatch)
    terms = module.task_terms(module.forward_batch(labelled), module.targets(labelled))
    assert list(terms) == ["rpn_cls", "rpn_box", "roi_cls", "roi_box"]
    module.eval()
    computed = module.predict(batch)
    assert computed["boxes"].shape[0] == len(batch) and computed["scores"].max() <= 1


def test_perfect_detections_score_one_and_missing_ones_nothing(session: Callable[..., Session]) -> None:
    begun = session("method=alone")
    module = begun.task.module(begun.task.student())
    truth = begun.task.domains.target_test.truth  # type: ignore[attr-defined]
    for one in truth:
        outputs = {"boxes": one.boxes[None], "scores": torch.ones(1, len(one.boxes)), "labels": one.labels[None]}
        outputs["scores"][0, one.labels == 2] = 0  # padding: no dot is found
        module.evaluate("test", outputs, [one])
    computed = module.results("test")
    assert computed["ap50_disc"] == computed["ap50_square"] == computed["ar100_disc"] == pytest.approx(1)
    assert computed["ap50_dot"] == computed["ar100_dot"] == 0
    assert computed["map50"] == computed["ar100"] == pytest.approx(2 / 3)


def test_scores_leave_out_classes_without_a_true_box() -> None:
    precision, recall = torch.full((10, 101, 2, 4, 3), -1.0), torch.full((10, 2, 4, 3), -1.0)
    precision[0, :, 1, 0, -1], recall[:, 1, 0, -1] = 0.25, 0.5
    values = {"map_50": 0.25, "map": 0.1, "mar_100": 0.5, "classes": torch.tensor([0, 2])}
    named = scores({**values, "precision": precision, "recall": recall}, ("a", "b", "c"))
    assert named == {"map50": 0.25, "map": 0.1, "ar100": 0.5, "ap50_c": 0.25, "ar100_c": 0.5}


def test_a_mean_over_classes_that_a_metric_names() -> None:
    named = {"map50": 0.6, "ap50_a": 0.25, "ap50_c": 0.75}
    assert mean_of_classes("map50_a+c", named, ("a", "b", "c")) == 0.5
    assert mean_of_classes("map50_c+b", named, ("a", "b", "c")) == 0.75, "b has no true box"
    assert mean_of_classes("map50_b", named, ("a", "b", "c")) == Undefined("no image has a box of b")
    assert mean_of_classes("map50_a+x", named, ("a", "b")) == Undefined("there is no class x, but a, b")


def test_a_split_without_any_true_box_has_no_score(session: Callable[..., Session]) -> None:
    """torchmetrics gives −1, which would be shown as −100 %."""
    begun = session("method=alone")
    module = begun.task.module(begun.task.student())
    nothing = Truth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    outputs = {"boxes": torch.ones(1, 1, 4), "scores": torch.ones(1, 1), "labels": torch.zeros(1, 1, dtype=torch.int64)}
    module.evaluate("test", outputs, [nothing])
    computed = module.results("test")
    assert computed.keys() == {"map50", "map", "ar100"}
    assert all(value == Undefined("no image has a box of disc, square, dot") for value in computed.values())
    module.headline = "map50"
    module.evaluate("test", outputs, [nothing])
    with pytest.raises(
        UndefinedMetricError, match="map50 is not defined on the test split: no image has a box of disc"
    ):
        module.scores("test")


def test_the_source_detector_is_the_best_of_its_validation_and_the_rest_the_last(
    session: Callable[..., Session],
) -> None:
    begun = session("method=kd")
    assert begun.task.selects == "last"
    (stage,) = begun.task.foundation()
    assert stage.inputs["optimizer"]["name"] == "adamw" and begun.config.optimizer.name == "sgd"
    assert stage.inputs["epochs"] == 16
    with seeded(axis(0, "student")):
        fresh = begun.task.network()  # type: ignore[attr-defined]
    trained = begun.task.student()
    assert not torch.equal(*(next(n.parameters()) for n in (fresh, trained)))


def test_the_analysis_of_a_finished_run_counts_every_object(do: Callable[..., Any]) -> None:
    outcome = do("method=lpld", "method.threshold=0.5", "method.foreground=0.5")
    path = Path(__file__).parents[4] / "benchmarks" / "pseudo_labels.py"
    spec = importlib.util.spec_from_file_location("pseudo_labels_benchmark", path)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    rows = script.analyse(outcome.folder / "record.json", None)
    assert {row["detector"] for row in rows} == {"source", "lpld"}
    (config,) = expand(["task=domain_adaptation", "method=lpld"])
    truth = domains.hidden(config.dataset, config.data).truth
    wanted = torch.cat([one.labels for one in truth]).bincount(minlength=3).tolist()
    for name in ("source", "lpld"):
        mine = {(row["labels"], row["class"]): row for row in rows if row["detector"] == name}
        assert [mine["confident", c]["objects"] for c in ("disc", "square", "dot")] == wanted
        for c, count in zip(("disc", "square", "dot"), wanted, strict=True):
            assert mine["low-confidence", c]["objects"] == count - mine["confident", c]["recalled"]
        given = [
            sum(row["given"] for row in rows if (row["detector"], row["labels"]) == (name, kind))
            for kind in ("low-confidence", "random")
        ]
        assert given[0] >= given[1] > 0
