"""Students that read whole graphs against float64 NumPy, and the scores against their definitions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kdbench.engine.runner import Outcome
from kdbench.errors import DataError
from kdbench.families.graph.graph_classification.data import Graphs, read
from kdbench.families.graph.graph_classification.networks import GraphNet
from kdbench.families.graph.graph_classification.options import GraphData, GraphStudent
from kdbench.families.graph.graph_classification.task import GraphClassification, scores
from kdbench.families.graph.graph_classification.trees import colour, expand
from kdbench.plan.metrics import Undefined


def network(graphs: Graphs, name: str, layers: int = 2, **options: object) -> GraphNet:
    edge_values = (2,) if graphs.edge_labels.shape[1] else ()
    torch.manual_seed(0)
    student = GraphStudent(name=name, width=8, layers=layers, **options)  # type: ignore[arg-type]
    return GraphNet((4,), edge_values, 2, student).double().eval()


def some_graphs(edge_labels: bool) -> Graphs:
    graphs = read("motifs", GraphData(graphs=20), 0).graphs
    return graphs if edge_labels else replace(graphs, edge_labels=graphs.edge_labels[:, :0])


def affine(layer: nn.Module, x: np.ndarray) -> np.ndarray:
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()  # type: ignore[operator]


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def by_hand(net: GraphNet, graphs: Graphs, name: str) -> np.ndarray:
    """Last states ``[n, width]``, edge by edge."""
    x = net.nodes.tables[0].weight.detach().numpy()[graphs.x[:, 0].numpy()]
    labelled = graphs.edge_labels.shape[1] > 0
    degree = np.ones(len(x))
    for _, target in graphs.edges.T.tolist():
        degree[target] += 1
    for place, layer in enumerate(net.states):
        x = relu(x) if place else x
        bond = net.edges[place].tables[0].weight.detach().numpy() if labelled else None
        if name == "gcn":
            x = affine(layer.linear, x)
            out = (relu(x) if labelled else x) / degree[:, None]
        else:
            out = x.copy()
        for edge, (source, target) in enumerate(graphs.edges.T.tolist()):
            message = x[source] if bond is None else relu(x[source] + bond[int(graphs.edge_labels[edge, 0])])
            out[target] += message / np.sqrt(degree[source] * degree[target]) if name == "gcn" else message
        x = out if name == "gcn" else affine(layer.mlp[2], relu(affine(layer.mlp[0], out)))
    return x


@pytest.mark.parametrize("edge_labels", [True, False])
@pytest.mark.parametrize("name", ["gcn", "gin", "gat"])
def test_lower_precision_gives_nearly_the_same(name: str, edge_labels: bool) -> None:
    graphs = some_graphs(edge_labels)
    net, batch = network(graphs, name).float(), graphs.batch(torch.arange(20))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rough = net(batch).float()
    torch.testing.assert_close(rough, net(batch).detach(), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("edge_labels", [True, False])
@pytest.mark.parametrize("pool", ["sum", "mean"])
@pytest.mark.parametrize("name", ["gcn", "gin"])
def test_logits_equal_the_equations(name: str, pool: str, edge_labels: bool) -> None:
    graphs = some_graphs(edge_labels)
    net = network(graphs, name, pool=pool)
    states = by_hand(net, graphs, name)
    parts = np.split(states, np.cumsum(graphs.nodes.numpy())[:-1])
    pooled = np.stack([part.sum(axis=0) if pool == "sum" else part.mean(axis=0) for part in parts])
    logits = net(graphs.batch(torch.arange(20)))
    np.testing.assert_allclose(logits.detach().numpy(), affine(net.head, pooled), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["gcn", "gat", "gin"])
def test_graphs_of_a_batch_do_not_meet(name: str) -> None:
    graphs = some_graphs(True)
    net = network(graphs, name)
    together = net(graphs.batch(torch.arange(20)))
    alone = torch.cat([net(graphs.batch(torch.tensor([graph]))) for graph in range(20)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("edge_labels", [True, False])
@pytest.mark.parametrize(("name", "equal"), [("gin", True), ("gat", True), ("gcn", False)])
def test_a_tree_gives_its_root_the_state_of_the_node(name: str, equal: bool, edge_labels: bool) -> None:
    graphs = some_graphs(edge_labels)
    net, nodes = network(graphs, name, layers=2), np.array([0, 4, 9, 30])
    states = net.embed(graphs.batch(torch.arange(20)))[nodes]
    tree = expand(colour(graphs, 2), nodes, 0).batch(torch.tensor([0]))
    roots = net.embed(tree)[tree.read]
    assert len(roots) == 4
    assert torch.allclose(roots, states, rtol=1e-12, atol=1e-12) == equal
    shallow = expand(colour(graphs, 1), nodes, 0).batch(torch.tensor([0]))
    assert not torch.allclose(net.embed(shallow)[shallow.read], states, rtol=1e-3)


@pytest.mark.parametrize(("norm", "equal"), [("layer", True), ("batch", False)])
def test_trees_are_exact_in_training_with_a_norm_that_knows_one_node_alone(norm: str, equal: bool) -> None:
    graphs = some_graphs(True)
    net, nodes = network(graphs, "gin", norm=norm, readout="all").train(), np.array([0, 4, 9, 30])
    states = net.embed(graphs.batch(torch.arange(20)))[nodes]
    tree = expand(colour(graphs, 2), nodes, 0).batch(torch.tensor([0]))
    assert torch.allclose(net.embed(tree)[tree.read], states, rtol=1e-12, atol=1e-12) == equal


def test_only_roots_are_pooled() -> None:
    graphs = some_graphs(True)
    net, nodes = network(graphs, "gin"), np.array([0, 4])
    small = expand(colour(graphs, 2), nodes, 0)
    states = net.embed(graphs.batch(torch.arange(20)))[nodes]
    torch.testing.assert_close(net(small.batch(torch.tensor([0]))), net.head(states.sum(dim=0))[None])
    everything = replace(small, read=None).batch(torch.tensor([0]))
    torch.testing.assert_close(net(everything), net.head(net.embed(everything).sum(dim=0))[None])


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_auc_counts_ordered_pairs(scale: float) -> None:
    """AUC = P(score of a positive > score of a negative) + half of the ties; large logits stay apart."""
    rng = np.random.default_rng(1)
    logits, targets = np.round(rng.normal(size=(60, 2)), 1) * scale, rng.integers(2, size=60)
    margin = (logits.astype(np.float32)[:, 1]).astype(float) - logits.astype(np.float32)[:, 0]
    pairs = [(p > n) + 0.5 * (p == n) for p in margin[targets == 1] for n in margin[targets == 0]]
    computed = scores(torch.from_numpy(logits.astype(np.float32)), torch.from_numpy(targets))
    assert computed["auc"] == pytest.approx(np.mean(pairs), abs=1e-6)
    assert computed["accuracy"] == pytest.approx(np.mean((logits[:, 1] > logits[:, 0]) == targets), abs=1e-6)


def test_the_area_needs_two_classes() -> None:
    logits = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 2.0]])
    computed = scores(logits, torch.ones(3, dtype=torch.int64))
    assert computed == {"auc": Undefined("all 3 graphs are of class 1"), "accuracy": 2 / 3}


def test_a_run_whose_graphs_are_of_one_class_in_a_split_fails_with_the_reason(
    do: Callable[..., Outcome], tmp_path: Path
) -> None:
    with pytest.raises(
        DataError, match=r"the val split has no example of class 0 \(train 9 of 16, val 0 of 2, test 1 of"
    ):
        do("task=graph_classification", "method=alone", "data.graphs=20", "data.split=fixed", "trainer.max_epochs=1")
    assert not list(tmp_path.rglob("record.json"))


def test_scores_do_not_depend_on_batches() -> None:
    rng = torch.Generator().manual_seed(0)
    logits, targets = torch.rand(50, 2, generator=rng), torch.randint(2, (50,), generator=rng)
    logits[:10] *= 30

    class Config:
        optimizer = None

    module = GraphClassification(nn.Linear(1, 1), Config())  # type: ignore[arg-type]
    for part in torch.split(torch.arange(50), 7):
        module.evaluate("test", {"logits": logits[part]}, targets[part])
    assert module.results("test") == scores(logits, targets)
    confusion = torch.tensor(module.details()["confusion"])
    assert confusion.sum() == 50 and int(confusion.diag().sum()) == int((logits.argmax(1) == targets).sum())
    assert int(confusion[0].sum()) == int((targets == 0).sum())
    assert module.details()["predictions"] == "".join(map(str, logits.argmax(1).tolist()))
    module.evaluate("test", {"logits": logits[:9]}, targets[:9])
    assert module.results("test") == scores(logits[:9], targets[:9])


def test_all_states_are_read_side_by_side_after_batch_norm() -> None:
    graphs = some_graphs(edge_labels=False)
    batch = graphs.batch(torch.arange(20))
    net = network(graphs, "gin", norm="batch", readout="all", pool="mean")
    for norm in net.norms:
        norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr, operator]
    x = net.nodes.tables[0].weight[graphs.x[:, 0]]
    states = [x]
    for place, (state, norm) in enumerate(zip(net.states, net.norms, strict=True)):
        x = state(x.relu() if place else x, graphs.edges, None)
        x = (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias  # type: ignore[operator]
        states.append(x)
    graph = batch.batch
    pooled = torch.stack([torch.cat(states, dim=1)[graph == number].mean(dim=0) for number in range(20)])
    torch.testing.assert_close(net(batch), net.head(pooled))
