"""Precision and recall of pseudo-labels, counted by hand."""

from __future__ import annotations

import math

import pytest
import torch

from kdbench.families.detection.domain_adaptation.label_quality import Quality, judged, matches
from kdbench.families.detection.domain_adaptation.networks import Truth

TRUTH = Truth(torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]]), torch.tensor([0, 1, 1]))


def test_a_label_is_right_at_a_box_of_its_class() -> None:
    boxes = [[0, 0, 10, 10], [0, 0, 10, 6], [0, 0, 10, 4], [0, 0, 10, 10], [20, 20, 30, 30]]
    labels = Truth(torch.tensor(boxes).float(), torch.tensor([0, 0, 0, 1, 1]))
    assert matches(labels, TRUTH).nonzero().tolist() == [[0, 0], [1, 0], [4, 1]]  # IoU 1, 0.6, 1; 0.4 and class are not
    first, second, third = judged(labels, TRUTH, torch.ones(3).bool(), 3)
    assert (first.given, first.right, first.objects, first.recalled) == (3, 2, 1, 1)
    assert (second.given, second.right, second.objects, second.recalled) == (2, 1, 2, 1)
    assert first.precision == pytest.approx(2 / 3) and second.recall == 0.5
    assert (third.given, third.objects) == (0, 0) and math.isnan(third.precision) and math.isnan(third.recall)


def test_objects_that_are_not_left_are_not_asked_for() -> None:
    labels = Truth(TRUTH.boxes.clone(), TRUTH.labels.clone())
    _, second = judged(labels, TRUTH, torch.tensor([True, False, True]), 2)
    assert (second.given, second.right, second.objects, second.recalled) == (2, 2, 1, 1)


@pytest.mark.parametrize("side", ["labels", "truth"])
def test_nothing_given_and_nothing_there(side: str) -> None:
    nothing = Truth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    labels, truth = (nothing, TRUTH) if side == "labels" else (TRUTH, nothing)
    counts = judged(labels, truth, torch.ones(len(truth.boxes)).bool(), 2)
    assert [c.given for c in counts] == ([0, 0] if side == "labels" else [1, 2])
    assert [c.recalled + c.right for c in counts] == [0, 0]


def test_images_add_up() -> None:
    quality = Quality(("a", "b"))
    for _ in range(2):
        quality.add("confident", Truth(TRUTH.boxes[:1], TRUTH.labels[:1]), TRUTH, torch.ones(3).bool())
    first, second = quality.table()
    assert first["labels"] == "confident" and (first["class"], first["given"], first["recall"]) == ("a", 2, 1)
    assert (second["objects"], second["recalled"], second["recall"]) == (4, 0, 0)
