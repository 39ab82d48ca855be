"""The reference of support vectors: the network computes what scikit-learn's machines do, chosen on validation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from kdbench.engine.runner import Session, Silent, run
from kdbench.plan.config import expand

WORDS = ("task=paired_classification", "scale=tiny", "method=svm", "data.pairs=60", "data.validation_pairs=80")


@pytest.mark.parametrize("modality", ["image", "audio"])
def test_the_network_is_the_machines_that_were_best_on_validation(modality: str, tmp_path: Path) -> None:
    (config,) = expand([*WORDS, f"student.modality={modality}", "method.penalty=[1,10]", "method.gamma=[0.3,3.0]"])
    session = Session(config, tmp_path, tmp_path, Silent())
    task, method = session.task, session.method
    for stage in method.stages(task):
        info = task.store.ensure(stage).info
    network, pairs = method.student(task), task.pairs
    x, y = {}, {}
    for split in ("train", "val", "test"):
        view = pairs.views[modality].rows(pairs.ids(split)).double()
        bands = torch.cat([view[:, 0].mean(-1), view[:, 0].std(-1, correction=0)], dim=-1)
        x[split] = (bands if modality == "audio" else view.flatten(1)).numpy()
        y[split] = pairs.y[pairs.ids(split)].numpy()
    scaling = StandardScaler() if modality == "audio" else PCA(0.999, whiten=True, svd_solver="full")
    width = scaling.fit(x["train"]).transform(x["val"]).shape[1]
    fitted = {
        (C, gamma): make_pipeline(scaling, OneVsRestClassifier(SVC(C=C, gamma=gamma / width))).fit(
            x["train"], y["train"]
        )
        for C in (1, 10)
        for gamma in (0.3, 3.0)
    }
    accuracy = {point: pipeline.score(x["val"], y["val"]) for point, pipeline in fitted.items()}
    assert len(set(accuracy.values())) > 1, "a search in which nothing differs shows nothing"
    point = (info["penalty"], info["gamma"])
    assert info["val/accuracy"] == accuracy[point] == max(accuracy.values())
    with torch.no_grad():
        logits = network(*pairs.inputs(network, pairs.ids("test"))).numpy()
    np.testing.assert_allclose(logits, fitted[point].decision_function(x["test"]), atol=1e-3)
    assert info["vectors"] == len(network.fitted["vectors"]) <= 60


def test_a_run_of_it_has_no_epoch_and_the_accuracy_of_its_stage(tmp_path: Path) -> None:
    (config,) = expand([*WORDS, "trainer.accelerator=cpu"])
    outcome = run(config, tmp_path, Silent())
    assert outcome and outcome.record.metrics and not outcome.record.curves.get("epoch")
    (report,) = outcome.record.reports.values()
    assert outcome.record.metrics.val["accuracy"] == report.values["val/accuracy"]
    assert outcome.record.metrics.test["accuracy"] > 1.2 / config.data.classes
