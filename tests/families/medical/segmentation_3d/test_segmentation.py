"""Metrics, inference by windows, batches of whole volumes, and which options allow a cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_dice, compute_hausdorff_distance
from scipy.ndimage import binary_erosion, distance_transform_edt

from kdbench.engine.runner import Outcome, Session, Silent, run
from kdbench.errors import UsageError
from kdbench.families.medical.segmentation_3d import task as segmentation_3d
from kdbench.families.medical.segmentation_3d.task import Segmentation, scores
from kdbench.families.medical.segmentation_3d.volumes import Volumes, VolumeSet, padded
from kdbench.plan.config import expand
from kdbench.plan.metrics import Undefined

SPACING = (1.5, 1.0, 2.0)


def volume_set(**more: Any) -> VolumeSet:
    told: dict[str, Any] = {
        "name": "mine",
        "channels": 1,
        "classes": ("background", "a", "b"),
        "spacing": SPACING,
        "pad": "edge",
        "names": (),
        "cases": {},
        "read": None,
        "sha256": "",
    }
    return VolumeSet(**{**told, **more})


def boxes() -> tuple[torch.Tensor, torch.Tensor]:
    label, predicted = torch.zeros(2, 12, 14, 10, dtype=torch.int64)
    label[2:7, 3:8, 2:6], label[2:7, 8:12, 2:6] = 1, 2
    predicted[3:8, 3:9, 2:7], predicted[2:7, 9:13, 1:6] = 1, 2
    return predicted, label


def surfaces(predicted: np.ndarray, label: np.ndarray) -> list[np.ndarray]:
    """Distances in mm from each surface voxel of one mask to the other's surface, both ways."""
    edges = [mask ^ binary_erosion(mask) for mask in (predicted, label)]
    return [distance_transform_edt(~edges[1 - i], sampling=SPACING)[edges[i]] for i in range(2)]


def test_metrics_are_means_over_classes_in_millimetres() -> None:
    predicted, label = boxes()
    found = scores(predicted, label, volume_set())
    dice, hd95, mean = [], [], []
    for number in (1, 2):
        p, y = (classes.numpy() == number for classes in (predicted, label))
        dice.append(2 * (p & y).sum() / (p.sum() + y.sum()))
        both = surfaces(p, y)
        hd95.append(max(np.percentile(distances, 95) for distances in both))
        mean.append(np.concatenate(both).mean())
    wanted = {"dice": np.mean(dice), "hd95": np.mean(hd95), "surface_distance": np.mean(mean), "absent": 0}
    assert found == pytest.approx(wanted, rel=1e-5)
    other = scores(predicted, label, volume_set(spacing=(1.0, 1.0, 1.0)))
    assert other["dice"] == found["dice"] and other["hd95"] < found["hd95"]


def test_metrics_are_those_of_monai() -> None:
    predicted, label = boxes()
    pair = [torch.nn.functional.one_hot(v, 3).movedim(-1, 0)[None].float() for v in (predicted, label)]
    found = scores(predicted, label, volume_set())
    wanted = [
        compute_dice(*pair, include_background=False),
        compute_hausdorff_distance(*pair, percentile=95, spacing=SPACING),
        compute_average_surface_distance(*pair, symmetric=True, spacing=SPACING),
    ]
    assert list(found.values())[:3] == pytest.approx([float(value.mean()) for value in wanted], rel=1e-6)


def test_an_absent_class_is_counted_and_costs_what_it_should() -> None:
    predicted, label = boxes()
    here = scores(predicted, label, volume_set())
    diagonal = float(np.linalg.norm(np.multiply(label.shape, SPACING)))
    of_one = scores(torch.where(predicted == 2, 0, predicted), torch.where(label == 2, 0, label), volume_set())
    missed = scores(torch.where(predicted == 2, 0, predicted), label, volume_set())
    invented = scores(predicted, torch.where(label == 2, 0, label), volume_set())
    assert [case["absent"] for case in (here, missed, invented, of_one)] == [0, 1, 1, 1]
    assert missed == invented
    one = 2 * of_one["hd95"]  # the first class alone: an absent one that nobody claims has distance 0 and Dice 1
    assert missed["hd95"] == pytest.approx((one + diagonal) / 2)
    assert missed["dice"] == pytest.approx((2 * of_one["dice"] - 1) / 2)
    assert all(np.isfinite(list(case.values())).all() for case in (missed, of_one))


def session(tmp_path: Path, *words: str) -> Session:
    (config,) = expand(["task=hippocampus", *words])
    return Session(config, tmp_path, tmp_path, Silent())


def test_whole_volumes_are_predicted_by_windows_and_padding_is_not_scored(tmp_path: Path) -> None:
    task = session(tmp_path, "method=alone").task
    module = task.module(task.student()).eval()
    sizes = [(20, 16, 14), (16, 24, 18)]
    generator = torch.Generator().manual_seed(0)
    alone = [
        Volumes(
            torch.randn(1, 1, *size, generator=generator),
            torch.randint(3, (1, 1, *size), generator=generator),
            torch.tensor([-1]),
        )
        for size in sizes
    ]
    batch = padded(alone)
    assert batch.image.shape == batch.label.shape == (2, 1, 20, 24, 18)
    with torch.no_grad():
        logits = module.forward_batch(batch)["logits"]
        assert logits.shape == (2, 3, 20, 24, 18)
        fitting = alone[0].image[..., :16, :16, :14]
        one = module.forward_batch(Volumes(fitting, fitting, torch.tensor([-1])))["logits"]
        mirrored = torch.nn.functional.pad(fitting, (1, 1, 0, 0, 0, 0), mode="replicate")
        torch.testing.assert_close(one, module.student(mirrored)[..., 1:-1], rtol=1e-4, atol=1e-5)
    module.evaluate("val", {"logits": logits}, batch.label)
    classes = logits.argmax(dim=1)
    wanted = [
        scores(classes[i, : s[0], : s[1], : s[2]], volume.label[0, 0], module.volumes)
        for i, (s, volume) in enumerate(zip(sizes, alone, strict=True))
    ]
    found = module.results("val")
    assert found["hd95"] == pytest.approx(np.mean([case["hd95"] for case in wanted]))
    assert found["dice"] == pytest.approx(np.mean([case["dice"] for case in wanted]))
    assert set(module.results("val").values()) == {Undefined("it has no volumes")}


def test_a_class_that_is_predicted_nowhere_is_a_collapse(tmp_path: Path) -> None:
    task = session(tmp_path, "method=alone").task
    module = task.module(task.student()).eval()
    for dead, wanted in ((2, True), (None, False)):
        for batch in task.data().val_dataloader():
            sure = torch.nn.functional.one_hot(batch.label[:, 0].clamp(min=0), 3).movedim(-1, 1).float()
            logits = sure if dead is None else torch.where(torch.arange(3).view(1, 3, 1, 1, 1) == dead, -1.0, sure)
            module.evaluate("val", {"logits": logits}, batch.label)
        assert module.collapsed(module.scores("val")) == wanted


def test_a_metric_whose_smallest_value_is_best_selects_teacher_and_student_so(tmp_path: Path) -> None:
    words = ["trainer.max_epochs=4", "trainer.check_val_every_n_epoch=1", "trainer.accelerator=cpu", "teacher.epochs=2"]
    (config,) = expand(["task=hippocampus", "scale=tiny", "method=kd", *words])
    outcome = run(replace(config, metric="hd95"), tmp_path, Silent())
    assert outcome and outcome.record.selection and outcome.record.metrics
    chosen, curves = outcome.record.selection, outcome.record.curves
    assert (chosen.metric, chosen.mode) == ("hd95", "min")
    best = min(curves["val/hd95"])
    assert chosen.value == pytest.approx(best) and best < max(curves["val/hd95"])
    assert curves["epoch"][curves["val/hd95"].index(best)] == chosen.epoch
    task = Session(replace(config, metric="hd95"), tmp_path, tmp_path, Silent()).task
    assert task.selection().mode == "min" and task.stages()[0].inputs["mode"] == "min"
    assert session(tmp_path, "method=kd").task.stages()[0].inputs["mode"] == "max"


def test_training_sees_patches_and_evaluation_the_released_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = session(tmp_path, "method=alone").task
    module = task.module(task.student())
    asked: list[dict[str, Any]] = []

    def inference(image: torch.Tensor, window: Any, *more: Any, **told: Any) -> torch.Tensor:
        asked.append({"window": window, **told})
        return real(image, window, *more, **told)

    real = segmentation_3d.sliding_window_inference
    monkeypatch.setattr(segmentation_3d, "sliding_window_inference", inference)
    image = torch.randn(2, 1, 24, 16, 16)
    batch = Volumes(image, image.long(), torch.zeros(2))
    module.train().forward_batch(batch)
    assert asked == []
    module.eval().forward_batch(batch)
    assert asked == [{"window": (16, 16, 16), "overlap": 0.25, "padding_mode": "replicate"}]


def test_the_task_loss_is_dice_and_cross_entropy(tmp_path: Path) -> None:
    task = session(tmp_path, "method=alone").task
    module = task.module(task.student())
    assert isinstance(module, Segmentation)
    sure = 50 * torch.nn.functional.one_hot(torch.randint(3, (2, 4, 4, 4)), 3).movedim(-1, 1).float()
    label = sure.argmax(dim=1, keepdim=True)
    assert module.task_terms({"logits": sure}, label)["task"].item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("words", [("teacher.cache=true",), ("teacher.cache=false", "control=shuffled_teacher")])
def test_random_views_have_no_cache_and_no_control(words: tuple[str, ...], do: Callable[..., Outcome]) -> None:
    quick = ("trainer.max_epochs=1", "teacher.epochs=1", "trainer.check_val_every_n_epoch=1")
    with pytest.raises(UsageError, match="random view"):
        do("task=hippocampus", "method=kd", "data.views=random", *quick, *words)
    assert do("task=hippocampus", "method=kd", "data.views=random", "teacher.cache=false", *quick).record.teacher


@pytest.mark.slow
def test_the_cache_of_fixed_views_is_their_live_teacher(do: Callable[..., Outcome]) -> None:
    words = ["task=hippocampus", "method=kd", "data.views=fixed", "data.crops=3", "data.patch=[8,8,8]"]
    quick = ["trainer.max_epochs=4", "teacher.epochs=1", "trainer.check_val_every_n_epoch=1"]
    live, cached = (do(*words, *quick, f"teacher.cache={cache}").record for cache in ("false", "true"))
    assert live.curves == cached.curves and live.metrics == cached.metrics
    assert do(*words, *quick, "control=shuffled_teacher").record.curves["train/kd"] != live.curves["train/kd"]


def teacher_of(seed: int, root: Path, *words: str) -> tuple[str, bytes]:
    """Address and weights of the teacher that a run of this seed trains in a store of its own."""
    quick = ("method=kd", "teacher.epochs=1", "trainer.check_val_every_n_epoch=1", "teacher.cache=false")
    task = session(root / str(seed), *quick, *words, f"seed={seed}").task
    result = task.store.ensure(task.stages()[0])
    return result.key, (result.folder / "weights.safetensors").read_bytes()


@pytest.mark.parametrize("views", ["centre", "random"])
def test_one_teachers_key_is_one_teacher_whichever_run_trains_it(views: str, tmp_path: Path) -> None:
    words = (f"data.views={views}", "teacher.seed=0", "data.split=fixed")
    assert teacher_of(0, tmp_path, *words) == teacher_of(1, tmp_path, *words)


@pytest.mark.parametrize("words", [(), ("teacher.seed=0", "data.split=drawn"), ("data.split=fixed",)])
def test_teachers_of_two_seeds_or_splits_have_two_keys(words: tuple[str, ...], tmp_path: Path) -> None:
    (one, weights), (other, others) = (teacher_of(seed, tmp_path, *words) for seed in (0, 1))
    assert one != other and weights != others
    assert teacher_of(0, tmp_path / "again", *words) == (one, weights)


def test_items_keep_their_number_whatever_the_split(tmp_path: Path) -> None:
    numbers = {}
    for seed in (0, 1):
        task = session(tmp_path, "method=alone", "data.split=drawn", "data.train_volumes=3", f"seed={seed}").task
        batches = list(task.data().test_dataloader())
        rows = torch.cat([task.items_of("test", batch) for batch in batches]).tolist()
        numbers[seed] = {task.volumes.names[row] for row in rows}
        assert numbers[seed] == set(task.volumes.cases["test"])
    assert numbers[0] != numbers[1]


def test_a_teachers_outputs_do_not_depend_on_the_rest_of_the_batch(tmp_path: Path) -> None:
    task = session(tmp_path, "method=kd", "teacher.epochs=1").task
    for stage in task.stages():
        task.store.ensure(stage)
    teacher, rows = task.live_teacher(), torch.tensor([3, 0, 5])
    together = teacher(task.batch_of(rows))["logits"]
    apart = torch.cat([teacher(task.batch_of(row[None]))["logits"] for row in rows])
    assert torch.equal(together, apart) and together.shape == (3, 3, 16, 16, 16)
