"""The reference of graph classification: colours against exact ones, logits against scikit-learn's model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix, hstack
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from kdbench.engine.runner import Session
from kdbench.families.graph.graph_classification import subtrees
from kdbench.families.graph.graph_classification.data import GraphSet, load
from kdbench.families.graph.graph_classification.options import GraphData
from kdbench.families.graph.graph_classification.trees import colour
from kdbench.plan.config import resolve


class Silent:
    def stage(self, name: str) -> None: ...

    def note(self, text: str) -> None: ...

    def epoch(self, *args: Any, **kwargs: Any) -> None: ...


def motifs() -> GraphSet:
    return load("motifs", GraphData(graphs=120), 3)


def test_hashed_colours_tell_apart_what_exact_refinement_does() -> None:
    graphs = motifs().graphs
    hashed = subtrees.colours(graphs.batch(torch.arange(len(graphs))), 3).numpy()
    exact = colour(graphs, 3).colours
    for ours, wanted in zip(hashed, exact, strict=True):
        pairs = np.unique(np.stack([ours, wanted]), axis=1).shape[1]
        assert pairs == len(np.unique(ours)) == len(np.unique(wanted))
    assert len(np.unique(hashed)) == sum(len(np.unique(rounds)) for rounds in hashed)


def test_colours_do_not_depend_on_the_batch_around_a_graph_or_the_order_of_edges() -> None:
    graphs = motifs().graphs
    alone = subtrees.colours(graphs.batch(torch.tensor([7])), 2)
    among = graphs.batch(torch.tensor([3, 7, 1]))
    assert torch.equal(subtrees.colours(among, 2)[:, among.batch == 1], alone)
    order = torch.randperm(among.edge_index.shape[1], generator=torch.Generator().manual_seed(0))
    among.edge_index, among.edge_attr = among.edge_index[:, order], among.edge_attr[order]
    assert torch.equal(subtrees.colours(among, 2)[:, among.batch == 1], alone)


def test_mixing_is_splitmix64() -> None:
    def reference(value: int) -> int:
        value = (value * 0x9E3779B97F4A7C15 + 1) % 2**64
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
        return value ^ (value >> 31)

    values = [0, 1, -1, 2**62, -(2**63)]
    assert [value % 2**64 for value in subtrees.mixed(torch.tensor(values)).tolist()] == [
        reference(value % 2**64) for value in values
    ]


@pytest.mark.parametrize("rounds", [[0], [0, 2]])
def test_the_deployed_student_is_the_model_of_the_best_validation(tmp_path: Path, rounds: list[int]) -> None:
    chosen = {"task": "graph_classification", "method": "wl", "seed": 3, "data.graphs": 120}
    config = resolve({**chosen, "method.rounds": rounds, "method.strengths": [1, 100]})
    session = Session(config, tmp_path, tmp_path / "run", Silent())  # type: ignore[arg-type]
    for stage in session.stages():
        session.store.ensure(stage)
    data, y = motifs(), motifs().graphs.y.numpy()
    train, val = (data.ids(split).numpy() for split in ("train", "val"))
    graph = np.repeat(np.arange(len(y)), data.graphs.nodes.numpy())
    best: tuple[float, Any] = (-1.0, None)
    for depth in rounds:
        exact = colour(data.graphs, depth).colours
        counts = hstack([csr_matrix((np.ones(len(graph)), (graph, one))) for one in exact]).toarray()
        x = np.log1p(counts[:, counts[train].any(axis=0)])
        x /= np.sqrt((x[train] ** 2).sum(axis=1).mean())
        for strength in (1, 100):
            model = LogisticRegression(C=strength, max_iter=500, tol=1e-6).fit(x[train], y[train])
            score = roc_auc_score(y[val], model.decision_function(x[val]))
            if score > best[0] + 1e-9:
                best = score, model.decision_function(x)
    with torch.no_grad():
        logits = session.method.student(session.task)(data.graphs.batch(torch.arange(len(y))))
    difference = (logits[:, 1] - logits[:, 0]).numpy()
    np.testing.assert_allclose(difference, best[1], atol=0.05)
    assert session.store.results["wl"].info["val_auc"] == pytest.approx(best[0], abs=1e-6)
