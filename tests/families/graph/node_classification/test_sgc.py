"""The reference of node classification: its logits are those of scikit-learn's model on propagated words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch_geometric.nn import SGConv

from kdbench.engine.runner import Session
from kdbench.families.graph.node_classification.networks import normalised_adjacency
from kdbench.plan.config import resolve


class Silent:
    def stage(self, name: str) -> None: ...

    def note(self, text: str) -> None: ...

    def epoch(self, *args: Any, **kwargs: Any) -> None: ...


@pytest.mark.parametrize("classes", [2, 4])
def test_the_deployed_student_is_the_model_of_the_best_validation(tmp_path: Path, classes: int) -> None:
    config = resolve(
        {"task": "gnn", "method": "sgc", "seed": 5, "data.classes": classes, "data.nodes": 120, "method.hops": [0, 2]}
    )
    session = Session(config, tmp_path, tmp_path / "run", Silent())  # type: ignore[arg-type]
    for stage in session.stages():
        session.store.ensure(stage)
    graph, network = session.task.graph, session.method.student(session.task)  # type: ignore[attr-defined]
    assert isinstance(network, SGConv)
    y, (train, val) = graph.y.numpy(), (graph.ids(split).numpy() for split in ("train", "val"))
    adjacency, best = normalised_adjacency(graph.edges, len(y)), (-1.0, None, None)
    for hops in (0, 2):
        x = graph.x if hops == 0 else adjacency @ (adjacency @ graph.x)
        rows = x.numpy() / np.linalg.norm(x.numpy(), axis=1).mean()
        for strength in (0.1, 1, 10, 100, 1000):
            model = LogisticRegression(C=strength, max_iter=500, tol=1e-4).fit(rows[train], y[train])
            if (score := model.score(rows[val], y[val])) > best[0]:
                best = (score, model, rows)
    score, model, rows = best
    with torch.no_grad():
        ours = network(graph.x, graph.edges).softmax(dim=1)
    np.testing.assert_allclose(ours, model.predict_proba(rows), atol=2e-3)
    assert session.store.results["sgc"].info["val_accuracy"] == pytest.approx(score)
    assert session.method.epochs(60) == 0
