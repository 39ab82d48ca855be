"""Students and the hop-wise teacher: shapes, what each state sees, and dense NumPy beside the sparse product."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from kdbench.engine.taps import Taps
from kdbench.engine.teachers import FrozenTeacher
from kdbench.errors import UsageError
from kdbench.families.graph import logistic
from kdbench.families.graph.node_classification import teacher as teachers
from kdbench.families.graph.node_classification.data import NodeGraph, read
from kdbench.families.graph.node_classification.networks import GNN, PlainGNN, network, normalised_adjacency
from kdbench.families.graph.node_classification.options import NodeData, NodeStudent
from kdbench.families.graph.node_classification.teacher import HopTeacher

NAMES = ("gcn", "gat", "sage", "gin")
PATH = torch.tensor([[0, 1, 1, 2, 2, 3, 3, 4], [1, 0, 2, 1, 3, 2, 4, 3]])  # 0 - 1 - 2 - 3 - 4, and 5 alone


def student(name: str, layers: int = 2, **options: float) -> GNN:
    torch.manual_seed(0)
    return GNN(7, 3, NodeStudent(name=name, width=8, layers=layers, **options))  # type: ignore[arg-type]


def states(network: GNN, x: Tensor, edges: Tensor) -> dict[str, Tensor]:
    with Taps(network, {f"state{i}": f"states.{i}" for i in range(len(network.states))}) as taps:
        network(x, edges)
        return taps.read()


def dense(edges: Tensor, nodes: int) -> np.ndarray:
    """``D^-½ (A + I) D^-½`` in float64."""
    a = np.eye(nodes)
    a[tuple(edges.numpy())] = 1
    scale = a.sum(axis=1) ** -0.5
    return scale[:, None] * a * scale[None, :]


def small(classes: int = 3) -> NodeGraph:
    return read("block_model", NodeData(nodes=90, classes=classes, words=20), 0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layers", [1, 3])
def test_one_unit_length_state_a_hop_and_logits(name: str, layers: int) -> None:
    network, x = student(name, layers), torch.randn(6, 7)
    outputs = states(network, x, PATH)
    assert list(outputs) == [f"state{i}" for i in range(layers + 1)]
    for value in outputs.values():
        assert value.shape == (6, 8)
        torch.testing.assert_close(value.norm(dim=1), torch.ones(6))
    assert network(x, PATH).shape == (6, 3)


@pytest.mark.parametrize("name", NAMES)
def test_state_l_sees_l_links_and_no_further(name: str) -> None:
    network, x = student(name, 3).eval(), torch.randn(6, 7)
    moved = x.clone()
    moved[0] += 1
    changed = [
        (before != after).any(dim=1).nonzero().flatten().tolist()
        for before, after in zip(states(network, x, PATH).values(), states(network, moved, PATH).values(), strict=True)
    ]
    assert changed == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]


def test_the_blocks_are_the_released_ones() -> None:
    network = student("gcn", dropout=0.3)
    for block in (*network.states, network.post):
        assert [type(part).__name__ for part in block.after] == ["BatchNorm1d", "Dropout", "PReLU"]
        assert block.after[1].p == 0.3
    assert [type(block.layer).__name__ for block in network.states] == ["Linear", "GCNConv", "GCNConv"]


def test_gat_splits_its_width_into_heads() -> None:
    with pytest.raises(UsageError, match=r"student\.width=10 must be a multiple of 4"):
        network(7, 3, NodeStudent(name="gat", width=10))


def test_the_plain_layout_with_a_gcn_is_kipf_and_wellings_network() -> None:
    torch.manual_seed(0)
    plain = network(7, 3, NodeStudent(width=8, layout="plain", dropout=0.5)).eval()
    assert isinstance(plain, PlainGNN)
    x, adjacency = torch.randn(6, 7), dense(PATH, 6)
    projection, first, second = plain.states

    def values(parameter: Tensor) -> np.ndarray:
        return parameter.detach().numpy()

    hidden = adjacency @ (x.numpy() @ values(projection.weight).T + values(projection.bias)) + values(first.bias)
    last = adjacency @ (np.maximum(hidden, 0) @ values(second.lin.weight).T) + values(second.bias)
    wanted = last @ plain.head.weight.detach().numpy().T + plain.head.bias.detach().numpy()
    np.testing.assert_allclose(plain(x, PATH).detach(), wanted, rtol=1e-4, atol=1e-5)


def test_normalised_adjacency_equals_dense_numpy() -> None:
    sparse = normalised_adjacency(PATH, 6)
    np.testing.assert_allclose(sparse.to_dense(), dense(PATH, 6), rtol=1e-6)
    assert sparse.to_dense()[5].tolist() == [0, 0, 0, 0, 0, 1]  # a node without edges keeps itself
    graph = small()
    ours = normalised_adjacency(graph.edges, 90).to_dense()
    np.testing.assert_allclose(ours, dense(graph.edges, 90), rtol=1e-5, atol=1e-8)
    assert torch.equal(ours, ours.T)


def test_hops_are_powers_of_the_adjacency() -> None:
    graph, features = small(), torch.randn(90, 11)
    teacher = HopTeacher(features, normalised_adjacency(graph.edges, 90), 3, 3)
    wanted, s = features.double().numpy(), dense(graph.edges, 90)
    rows = torch.tensor([5, 0, 89])
    outputs = teacher(rows)
    assert list(outputs) == ["hop0", "hop1", "hop2", "hop3", "logits"]
    for hop in range(4):
        np.testing.assert_allclose(outputs[f"hop{hop}"], wanted[rows], rtol=1e-4, atol=1e-5)
        last, wanted = wanted, s @ wanted
    weight, bias = (p.detach().double().numpy() for p in (teacher.head.weight, teacher.head.bias))
    np.testing.assert_allclose(outputs["logits"], last[rows] @ weight.T + bias, rtol=1e-4, atol=1e-5)


def test_prompted_hops_are_taken_as_they_are() -> None:
    features = torch.randn(90, 3, 11)
    outputs = HopTeacher(features, normalised_adjacency(small().edges, 90), 2, 3)(torch.tensor([4, 2]))
    for hop in range(3):
        assert torch.equal(outputs[f"hop{hop}"], features[[4, 2], hop])


def test_rows_do_not_depend_on_the_batch_they_are_asked_in() -> None:
    graph = small()
    teacher = FrozenTeacher(
        HopTeacher(torch.randn(90, 11), normalised_adjacency(graph.edges, 90), 2, 3),
        lambda network, rows: network(rows),
    )
    whole = teacher(torch.arange(90))
    parts = [teacher(rows) for rows in torch.split(torch.arange(90), 17)]
    assert all(torch.equal(value, torch.cat([part[name] for part in parts])) for name, value in whole.items())
    assert not any(value.requires_grad for value in whole.values())


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_the_heads_probabilities_are_sklearns(tmp_path: Path, classes: int) -> None:
    graph = small(classes)
    save_file({"features": torch.randn(90, 11) + 3 * graph.y[:, None]}, tmp_path / "features.safetensors")
    report = teachers.fit_head(graph, tmp_path, 1, tmp_path)
    network = teachers.build(graph, 1, tmp_path, tmp_path)
    deepest = network.all_hops()[-1].numpy()
    scale = np.linalg.norm(deepest, axis=1).mean()
    train, val, y = graph.ids("train").numpy(), graph.ids("val").numpy(), graph.y.numpy()
    model = LogisticRegression(C=report["strength"], max_iter=500, tol=1e-4).fit(deepest[train] / scale, y[train])
    ours = network(torch.arange(90))["logits"].softmax(dim=1)
    np.testing.assert_allclose(ours, model.predict_proba(deepest / scale), atol=1e-3)
    assert report["val_accuracy"] == pytest.approx(model.score(deepest[val] / scale, y[val]))
    best = max(
        logistic.STRENGTHS,
        key=lambda c: (
            LogisticRegression(C=c, max_iter=500, tol=1e-4)
            .fit(deepest[train] / scale, y[train])
            .score(deepest[val] / scale, y[val])
        ),
    )
    assert report["strength"] == best


def test_a_class_without_training_nodes_is_never_predicted(tmp_path: Path) -> None:
    graph = small()
    graph.split[graph.y == 1] = 2
    save_file({"features": torch.randn(90, 11) + 3 * graph.y[:, None]}, tmp_path / "features.safetensors")
    teachers.fit_head(graph, tmp_path, 1, tmp_path)
    probabilities = teachers.build(graph, 1, tmp_path, tmp_path)(torch.arange(90))["logits"].softmax(dim=1)
    assert not probabilities[:, 1].any() and torch.isfinite(probabilities).all()
    assert load_file(tmp_path / "head.safetensors")["weight"].shape == (3, 11)
