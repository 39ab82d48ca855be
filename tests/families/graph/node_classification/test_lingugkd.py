"""LinguGKD's stage 3 against an independent float64 transcription of the card's equations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdbench.engine.distributed import gather
from kdbench.engine.step import Shapes, Step
from kdbench.errors import UsageError
from kdbench.families.graph.node_classification.methods import lingugkd
from kdbench.families.graph.node_classification.methods.lingugkd import Hyperparameters, LinguGKD
from kdbench.families.graph.node_classification.networks import GNN
from kdbench.families.graph.node_classification.options import NodeStudent

NODES, WIDTH, TEACHER, HOPS, CLASSES = 14, 6, 9, 3, 4


class Example:
    """One training step on random float64 tensors, with everything a test may want to look at."""

    def __init__(self, labels: Any = None, **options: Any) -> None:
        rng = np.random.default_rng(3)
        self.options = Hyperparameters(**options)
        self.method = LinguGKD(self.options)
        self.labels = rng.integers(CLASSES, size=NODES) if labels is None else np.asarray(labels)
        self.states = [self.leaf(rng.normal(size=(len(self.labels), WIDTH))) for _ in range(HOPS)]
        self.hops = [torch.from_numpy(rng.normal(size=(len(self.labels), TEACHER))) for _ in range(HOPS)]
        self.logits = self.leaf(rng.normal(size=(len(self.labels), CLASSES)))
        shapes = Shapes({f"state{i}": (WIDTH,) for i in range(HOPS)}, {f"hop{i}": (TEACHER,) for i in range(HOPS)})
        torch.manual_seed(0)
        self.networks = nn.ModuleDict(self.method.modules(shapes)).double().eval()
        self.projector, self.weights = self.method.projector, self.method.logits
        with torch.no_grad():
            for parameter in self.weights.parameters():
                if parameter.requires_grad:
                    parameter.copy_(torch.from_numpy(rng.normal(size=len(parameter))))
        self.step = Step(
            batch=torch.arange(len(self.labels)),
            targets=torch.from_numpy(self.labels),
            output={"logits": self.logits},
            features={f"state{i}": state for i, state in enumerate(self.states)},
            teachers={"teacher": lambda batch: {f"hop{i}": hop for i, hop in enumerate(self.hops)}},  # type: ignore[dict-item]
            epoch=0,
            epochs=1,
            student=nn.Module(),
        )

    @staticmethod
    def leaf(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).requires_grad_()

    def total(self) -> Tensor:
        terms = {"task": nn.functional.cross_entropy(self.logits, self.step.targets)}
        terms |= self.method.loss_terms(self.step)
        weights = self.method.weights(self.step)
        return torch.stack([weights[name] * terms[name] for name in terms]).sum()


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def project(state: Mapping[str, np.ndarray], hop: int, t: np.ndarray) -> np.ndarray:
    """``W · Linear(LayerNorm(PReLU(Linear(t))))``, dropout off."""
    h = t @ state[f"hops.{hop}.0.weight"].T + state[f"hops.{hop}.0.bias"]
    h = np.where(h > 0, h, state[f"hops.{hop}.1.weight"] * h)
    h = (h - h.mean(axis=1, keepdims=True)) / np.sqrt(h.var(axis=1, keepdims=True) + 1e-5)
    h = h * state[f"hops.{hop}.2.weight"] + state[f"hops.{hop}.2.bias"]
    h = h @ state[f"hops.{hop}.4.weight"].T + state[f"hops.{hop}.4.bias"]
    return h @ state["shared.weight"].T


def contrast(s: np.ndarray, z: np.ndarray, labels: np.ndarray, tau: float) -> float:
    """``−(1/N) Σ_i log( exp(c_ii/τ) / (exp(c_ii/τ) + Σ_{j: y_j ≠ y_i} exp(c_ij/τ)) )``, node by node."""
    total = 0.0
    for i in range(len(s)):
        cosines = [s[i] @ zj / (np.linalg.norm(s[i]) * np.linalg.norm(zj)) for zj in z]
        others = sum(np.exp(cosines[j] / tau) for j in range(len(s)) if labels[j] != labels[i])
        total -= np.log(np.exp(cosines[i] / tau) / (np.exp(cosines[i] / tau) + others))
    return total / len(s)


def reference(example: Example) -> dict[str, Any]:
    """Every quantity of stage 3 from the same numbers, in NumPy."""
    state = {name: value.numpy() for name, value in example.projector.state_dict().items()}
    g, a = (p.detach().numpy() for p in (example.weights.layers, example.weights.losses))
    gamma, alpha = softmax(g), softmax(a)
    pairs = {1: 0, 2: 1} if example.options.variant == "official" else {0: 0, 1: 1, 2: 2}  # student layer -> hop
    layers = {}
    for layer, hop in pairs.items():
        z = project(state, hop, example.hops[hop].numpy())
        layers[hop] = contrast(example.states[layer].detach().numpy(), z, example.labels, example.options.temperature)
    kd = sum(gamma[hop] * loss for hop, loss in layers.items())
    ce = -np.mean(np.log(softmax(example.logits.detach().numpy()))[np.arange(len(example.labels)), example.labels])
    return {"layers": layers, "gamma": gamma, "alpha": alpha, "kd": kd, "total": alpha[0] * ce + alpha[1] * kd}


@pytest.mark.parametrize("variant", ["paper", "official"])
@pytest.mark.parametrize("layer_weights", ["learned", "fixed"])
@pytest.mark.parametrize("loss_weights", ["learned", "fixed"])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_stage_3_equals_the_card(variant: str, layer_weights: str, loss_weights: str, temperature: float) -> None:
    example = Example(variant=variant, layer_weights=layer_weights, loss_weights=loss_weights, temperature=temperature)
    wanted = reference(example)
    terms, weights = example.method.loss_terms(example.step), example.method.weights(example.step)
    assert terms.keys() == {"kd"} and weights.keys() == {"task", "kd"}
    assert terms["kd"].item() == pytest.approx(wanted["kd"], rel=1e-12)
    assert [weights["task"].item(), weights["kd"].item()] == pytest.approx(wanted["alpha"].tolist(), rel=1e-12)
    assert example.total().item() == pytest.approx(wanted["total"], rel=1e-12)
    logged = {name: value.item() for name, value in example.step.logs.items()}
    assert {n: logged[n] for n in logged if n.startswith("layer")} == pytest.approx(
        {f"layer{hop}": loss for hop, loss in wanted["layers"].items()}, rel=1e-12
    )
    assert [logged[f"gamma{hop}"] for hop in range(HOPS)] == pytest.approx(wanted["gamma"].tolist(), rel=1e-12)


def test_float32_agrees_to_its_own_precision() -> None:
    example = Example()
    wanted = reference(example)["kd"]
    example.networks.float()
    example.hops = [hop.float() for hop in example.hops]
    example.step.features = {name: state.float() for name, state in example.step.features.items()}
    # cosines are off by about 1e-7, which 1/τ = 14 multiplies
    assert example.method.loss_terms(example.step)["kd"].item() == pytest.approx(wanted, rel=1e-5)


def test_fixed_weights_are_uniform_and_not_trained() -> None:
    example = Example(layer_weights="fixed", loss_weights="fixed")
    example.total().backward()
    weights = example.method.weights(example.step)
    assert weights["task"].item() == weights["kd"].item() == 0.5
    assert all(not p.requires_grad and p.grad is None for p in example.weights.parameters())
    assert len({example.step.logs[f"gamma{hop}"].item() for hop in range(HOPS)}) == 1


def test_a_node_whose_class_is_the_only_one_contributes_nothing() -> None:
    example = Example(labels=[1] * 5)
    loss = example.method.loss_terms(example.step)["kd"]
    loss.backward()
    assert loss.item() == 0
    assert not any(state.grad is None or state.grad.any() for state in example.states)


def test_negatives_are_the_nodes_of_other_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def spy(a: Tensor, z: Tensor, positives: Tensor, negatives: Tensor, tau: float) -> Tensor:
        seen.append((positives, negatives))
        return (a * z).sum()

    monkeypatch.setattr(lingugkd, "info_nce", spy)
    example = Example()
    example.method.loss_terms(example.step)
    for positives, negatives in seen:
        assert positives.tolist() == list(range(NODES))
        assert negatives.tolist() == [[a != b for b in example.labels] for a in example.labels]


def test_an_anchor_sees_no_other_node_of_its_class() -> None:
    rows, grads = torch.from_numpy(np.random.default_rng(9).normal(size=(2, TEACHER))), list[Tensor]()
    for row in rows:
        example = Example(labels=[0, 0, 1, 1])
        example.hops[0][1] = row
        example.method.loss_terms(example.step)
        grads += torch.autograd.grad(example.step.logs["layer0"], example.states[0])
    changed = [not torch.equal(before, after) for before, after in zip(*grads, strict=True)]
    assert changed == [False, True, True, True]  # the classmate's does not move; its own and the other class's do


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_gradients_reach_student_projectors_and_weights(variant: Any) -> None:
    example = Example(variant=variant)
    example.method.loss_terms(example.step)["kd"].backward()
    used = {"paper": [0, 1, 2], "official": [1, 2]}[variant]
    assert [i for i, state in enumerate(example.states) if state.grad is not None and state.grad.abs().sum()] == used
    projected = {"paper": {0, 1, 2}, "official": {0, 1}}[variant]
    for hop in range(HOPS):
        parameters = list(example.projector.get_submodule(f"hops.{hop}").parameters())
        assert all((p.grad is not None) == (hop in projected) for p in parameters)
    assert example.projector.get_parameter("shared.weight").grad is not None
    assert example.weights.get_parameter("layers").grad is not None
    assert all(hop.grad is None and not hop.requires_grad for hop in example.hops)


def test_the_unused_weight_of_the_official_variant_drains_the_kd_term() -> None:
    example = Example(variant="official")
    wanted = reference(example)
    example.total().backward()
    drained = -wanted["gamma"][2] * wanted["kd"] * wanted["alpha"][1]
    grad = example.weights.get_parameter("layers").grad
    assert grad is not None and grad[2].item() == pytest.approx(drained, rel=1e-12) and drained < 0


def test_the_weight_gradients_are_those_of_the_softmax() -> None:
    """``∂L/∂a_k = α_k (L_k − L)`` and ``∂L_KD/∂g_l = γ_l (L_l − L_KD)``: weight moves to whatever is smaller."""
    example = Example()
    wanted = reference(example)
    example.total().backward()
    gamma, alpha, kd = wanted["gamma"], wanted["alpha"], wanted["kd"]
    task = (wanted["total"] - alpha[1] * kd) / alpha[0]
    a, g = (example.weights.get_parameter(name).grad for name in ("losses", "layers"))
    assert a is not None and g is not None
    assert a.tolist() == pytest.approx((alpha * (np.array([task, kd]) - wanted["total"])).tolist(), rel=1e-9)
    layers = np.array([wanted["layers"][hop] for hop in range(HOPS)])
    assert g.tolist() == pytest.approx((alpha[1] * gamma * (layers - kd)).tolist(), rel=1e-9)


def test_gather_in_one_process_is_the_identity() -> None:
    rows = torch.randn(3, 2, requires_grad=True)
    assert gather(rows) == (rows, 0) and gather(rows)[0] is rows


def test_every_state_needs_a_hop() -> None:
    shapes = Shapes({"state0": (4,), "state1": (4,)}, {"hop0": (5,), "logits": (3,)})
    with pytest.raises(UsageError, match="reads the teacher's outputs hop0 … hop1; it has hop0, logits"):
        LinguGKD(Hyperparameters()).modules(shapes)


def test_one_shared_map_without_bias_over_one_mlp_a_hop() -> None:
    projector = Example().projector
    kinds = [type(part).__name__ for part in projector.get_submodule("hops.0").children()]
    assert kinds == ["Linear", "PReLU", "LayerNorm", "Dropout", "Linear"]
    assert [n for n, _ in projector.named_parameters() if n.startswith("shared")] == ["shared.weight"]
    assert len(list(projector.get_submodule("hops").children())) == HOPS


def test_taps_are_the_states_in_order() -> None:
    taps = LinguGKD(Hyperparameters()).taps(GNN(5, 3, NodeStudent(width=8, layers=2)))
    assert taps == {"state0": "states.0", "state1": "states.1", "state2": "states.2"}


@pytest.mark.parametrize("cache", ["true", "false"])
def test_only_training_nodes_enter_and_the_teacher_gets_no_gradient(
    do: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, cache: str
) -> None:
    from kdbench.families.graph.node_classification.data import load
    from kdbench.families.graph.node_classification.options import NodeData

    steps: list[Step] = []
    terms = LinguGKD.loss_terms

    def spy(self: LinguGKD, step: Step) -> Mapping[str, Tensor]:
        steps.append(step)
        return terms(self, step)

    monkeypatch.setattr(LinguGKD, "loss_terms", spy)
    small = ["data.nodes=100", "student.width=8", "trainer.max_epochs=3"]
    do("task=gnn", "method=lingugkd", "data.batch_size=16", f"teacher.cache={cache}", *small)
    graph = load("block_model", NodeData(words=60, nodes=100, batch_size=16), 0)
    train = set(graph.ids("train").tolist())
    assert len(steps) == 3 * -(-len(train) // 16)
    for step in steps:
        nodes = step.batch.tolist()
        assert set(nodes) <= train
        assert torch.equal(step.targets.cpu(), graph.y[nodes])
        assert all(len(value) == len(nodes) for value in (*step.features.values(), *step.teacher.values()))
        assert not any(value.requires_grad for value in step.teacher.values())
    assert set().union(*(step.batch.tolist() for step in steps)) == train
