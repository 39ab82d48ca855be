"""What each example adds to a score, against leaving it out, DeLong's variance and torchmetrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from kdbench.plan.metrics import scores
from kdbench.results import pseudovalues

Array = np.ndarray[Any, Any]


def left_out(arrays: Mapping[str, Array], score: Callable[[Mapping[str, Array]], float]) -> Array:
    """The score without each example in turn, computed anew."""
    n = len(arrays["targets"])
    return np.array([score({name: np.delete(value, i, axis=0) for name, value in arrays.items()}) for i in range(n)])


def jackknife(score: float, without: Array) -> Array:
    return score + (len(without) - 1) * (without.mean() - without)


def classified(seed: int, n: int = 40, classes: int = 4) -> dict[str, Array]:
    draw = np.random.default_rng(seed)
    targets = draw.integers(classes, size=n)
    predicted = np.where(draw.random(n) < 0.6, targets, draw.integers(classes, size=n))
    return {"targets": targets, "predicted": predicted}


def f1(arrays: Mapping[str, Array]) -> float:
    confusion = np.zeros((9, 9), dtype=int)
    np.add.at(confusion, (arrays["targets"], arrays["predicted"]), 1)
    return scores(confusion.tolist())["macro_f1"]


def test_accuracy_is_a_mean_over_examples() -> None:
    values = pseudovalues.accuracy({"targets": np.array([0, 1, 2]), "predicted": np.array([0, 2, 2])}, "accuracy")
    assert values.tolist() == [1, 0, 1]


def test_a_case_is_the_mean_of_its_classes() -> None:
    values = pseudovalues.case_mean({"dice": np.array([[0.5, 1.0], [0.0, 0.25]])}, "dice")
    assert values.tolist() == [0.75, 0.125]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("n", "classes"), [(40, 4), (12, 6), (5, 5)], ids=["usual", "rare classes", "classes vanish"])
def test_macro_f1_is_the_jackknife(seed: int, n: int, classes: int) -> None:
    arrays = classified(seed, n, classes)
    values = pseudovalues.macro_f1(arrays, "macro_f1")
    assert values is not None and values.mean() == pytest.approx(f1(arrays), abs=1e-12)
    np.testing.assert_allclose(values, jackknife(f1(arrays), left_out(arrays, f1)), atol=1e-12)


def test_classes_out_of_range_are_refused() -> None:
    for wrong in (-1, 1 << 40):
        with pytest.raises(ValueError, match="classes"):
            pseudovalues.macro_f1({"targets": np.array([0, wrong]), "predicted": np.array([0, 1])}, "macro_f1")


def ranked(seed: int, n: int = 30, classes: int = 2) -> dict[str, Array]:
    draw = np.random.default_rng(seed)
    targets = np.concatenate([np.arange(classes).repeat(2), draw.integers(classes, size=n - 2 * classes)])
    logits = draw.normal(size=(n, classes))
    logits[np.arange(n), targets] += 0.7
    if classes == 2:
        logits = logits.round(1)  # some ties
    return {"targets": targets, "logits": logits}


def area(margin: Array, positive: Array) -> float:
    above, below = margin[positive][:, None], margin[~positive][None]
    return float((above > below).mean() + (above == below).mean() / 2)


def binary(arrays: Mapping[str, Array]) -> float:
    return area(arrays["logits"][:, 1] - arrays["logits"][:, 0], arrays["targets"] == 1)


@pytest.mark.parametrize("seed", range(5))
def test_auc_has_delongs_variance_and_the_direction_of_the_jackknife(seed: int) -> None:
    arrays = ranked(seed)
    values, theta = pseudovalues.auc(arrays, "auc"), binary(arrays)
    assert values is not None and values.mean() == pytest.approx(theta, abs=1e-12)
    positive, margin = arrays["targets"] == 1, arrays["logits"][:, 1] - arrays["logits"][:, 0]
    wins = (margin[positive][:, None] > margin[~positive]) + (margin[positive][:, None] == margin[~positive]) / 2
    delong = wins.mean(axis=1).var(ddof=1) / positive.sum() + wins.mean(axis=0).var(ddof=1) / (~positive).sum()
    assert values.var(ddof=1) / len(values) == pytest.approx(delong, rel=1e-10)
    direct = jackknife(theta, left_out(arrays, binary)) - theta
    for part in (positive, ~positive):  # the jackknife's factor is (n − 1)/(m − 1), DeLong's its like for a variance
        m, n = int(part.sum()), len(margin)
        np.testing.assert_allclose(
            (values - theta)[part] * ((n - 1) / (m - 1)),
            direct[part] * np.sqrt(n * (n - 1) / (m * (m - 1))),
            atol=1e-12,
        )


def test_auc_of_several_classes_is_the_mean_of_each_against_the_others() -> None:
    arrays = ranked(3, 40, 3)
    values = pseudovalues.auc(arrays, "auc")
    z, areas = arrays["logits"], []
    for c in range(3):
        others = np.delete(z, c, axis=1)
        areas.append(area(z[:, c] - np.log(np.exp(others).sum(axis=1)), arrays["targets"] == c))
    assert values is not None and values.mean() == pytest.approx(np.mean(areas), abs=1e-12)


def test_auc_is_that_of_the_task() -> None:
    pytest.importorskip("torch_geometric")
    import torch

    from kdbench.families.graph.graph_classification.task import scores as scored

    for classes in (2, 3):
        arrays = ranked(classes, 60, classes)
        given = scored(torch.from_numpy(arrays["logits"]), torch.from_numpy(arrays["targets"]))
        values = pseudovalues.auc(arrays, "auc")
        assert values is not None and values.mean() == pytest.approx(given["auc"], abs=1e-6)


def test_auc_without_two_of_a_class_has_no_values() -> None:
    arrays = {"targets": np.array([0, 0, 1]), "logits": np.zeros((3, 2))}
    assert pseudovalues.auc(arrays, "auc") is None


def detected(seed: int, images: int = 6, classes: int = 2) -> list[dict[str, Any]]:
    """Of each image true boxes ``[t, 4]`` and found ones (x1, y1, x2, y2), with scores and classes."""
    draw, made = np.random.default_rng(seed), []
    for image in range(images):
        every = classes if image < 2 else 0  # of each class in two images at least
        corners = draw.uniform(0, 50, size=(draw.integers(every, 5), 2))
        true = np.hstack([corners, corners + draw.uniform(8, 20, size=corners.shape)])
        near = np.repeat(true, 2, axis=0) + draw.normal(scale=3, size=(2 * len(true), 4))
        far = draw.uniform(0, 30, size=(2, 2))
        boxes = np.vstack([near, np.hstack([far, far + 10])])
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        kinds = np.concatenate([np.arange(every), draw.integers(classes, size=len(true) - every)])
        labels = np.concatenate([np.repeat(kinds, 2), draw.integers(classes, size=2)])
        score = draw.uniform(size=len(boxes)).round(1)  # some ties
        made.append({"true": true, "kinds": kinds, "boxes": boxes, "labels": labels, "scores": score})
    return made


def measured(made: list[dict[str, Any]], names: list[str]) -> tuple[dict[str, float], dict[str, Array]]:
    """The scores of the task's metric, and the outcomes that the task keeps."""
    import torch

    from kdbench.families.detection.domain_adaptation import task

    module = task.AdaptiveDetection(torch.nn.Identity(), task.Optimizer("sgd", 0.1), names, flips=False)
    output: dict[str, list[Any]] = {"boxes": [], "scores": [], "labels": []}
    truth = []
    for one in made:
        output["boxes"].append(torch.from_numpy(one["boxes"]).float())
        output["scores"].append(torch.from_numpy(one["scores"]).float() + 0.01)
        output["labels"].append(torch.from_numpy(one["labels"]))
        truth.append(task.Truth(torch.from_numpy(one["true"]).float(), torch.from_numpy(one["kinds"])))
    module.evaluate("test", output, truth)
    given = {name: value for name, value in module.results("test").items() if isinstance(value, float)}
    return given, {name: value.numpy() for name, value in module.outcomes("test").items()}


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_torchmetrics_and_its_jackknife(seed: int) -> None:
    pytest.importorskip("mmdet")
    names = ["cup", "cup of tea"]
    made = detected(seed)
    given, arrays = measured(made, names)
    for name in ("map50", *(f"ap50_{name}" for name in names)):
        function = pseudovalues.mean_average_precision if name == "map50" else pseudovalues.average_precision
        values = function(arrays, name)
        assert values is not None and values.mean() == pytest.approx(given[name], abs=1e-6), name
        without = np.array([measured(made[:i] + made[i + 1 :], names)[0][name] for i in range(len(made))])
        np.testing.assert_allclose(values, jackknife(given[name], without), atol=1e-5)


def test_a_mean_over_classes_that_the_metric_names() -> None:
    pytest.importorskip("mmdet")
    _, arrays = measured(detected(3), ["cup", "jar"])
    cup, every = (
        pseudovalues.average_precision(arrays, "ap50_cup"),
        pseudovalues.mean_average_precision(arrays, "map50"),
    )
    assert cup is not None and every is not None and not np.allclose(cup, every)
    for metric, wanted in (("map50_cup", cup), ("map50_jar+cup", every)):
        given = pseudovalues.mean_average_precision(arrays, metric)
        assert given is not None
        np.testing.assert_allclose(given, wanted, atol=1e-12)


def test_a_class_in_one_image_has_no_jackknife() -> None:
    arrays = {
        "image of cup": np.array([0]),
        "score of cup": np.array([0.5]),
        "matched of cup": np.array([1]),
        "targets of cup": np.array([1, 0, 0]),
    }
    assert pseudovalues.average_precision(arrays, "ap50_cup") is None
    assert pseudovalues.mean_average_precision(arrays, "map50") is None
