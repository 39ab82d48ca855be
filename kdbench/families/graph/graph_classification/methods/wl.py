"""Weisfeiler–Leman subtree features with logistic regression: the reference that a graph network has to reach.

``z_G = Σ_c log(1 + n_c(G)) w_c + b``: n_c counts the nodes of colour c after 0 … h rounds of Weisfeiler–Leman
refinement (``subtrees.py``), c are the colours of the training graphs, and w is fitted with an L2 penalty. Rounds h and
strength C are those of the best value of the card's metric on validation. ``method.rounds=[0]`` is the bag of node
labels.

Nothing is trained by gradient steps, and there is no other randomness than the split's.

Source: Shervashidze et al., "Weisfeiler-Lehman Graph Kernels", JMLR 12, 2011.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Len
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdbench.engine.method import Method
from kdbench.engine.stages import Stage, StageResult
from kdbench.families.graph import logistic
from kdbench.families.graph.graph_classification.subtrees import SubtreeModel, colours, features
from kdbench.families.graph.graph_classification.task import GraphTask, scores
from kdbench.plan.metrics import defined


@dataclass(frozen=True)
class Hyperparameters:
    rounds: Annotated[tuple[Annotated[int, Ge(0)], ...], Len(1)] = (0, 1, 2, 3)
    """Rounds of refinement h to choose from; 0 counts node labels."""
    strengths: Annotated[tuple[Annotated[float, Gt(0)], ...], Len(1)] = (0.1, 1.0, 10.0, 100.0, 1000.0)
    """Strengths C to choose from: the inverse of the L2 penalty, for rows scaled to a mean square length of 1."""


class WL(Method[GraphTask]):
    """Deploys the fitted model without a step."""

    title = "Weisfeiler–Leman subtrees with logistic regression"
    paper = "https://www.jmlr.org/papers/v12/shervashidze11a.html"
    teacher = "none"
    role = "reference"
    options: Hyperparameters

    def stages(self, task: GraphTask) -> Sequence[Stage]:
        data, options, metric = task.graphs, self.options, task.config.metric

        def score(logits: Tensor, targets: Tensor) -> float:
            return defined(scores(logits, targets), metric, "val")[metric]

        def fit(place: Path, upstream: Mapping[str, StageResult]) -> dict[str, Any]:
            every, y = data.graphs.batch(torch.arange(len(data.graphs))), data.graphs.y.numpy()
            train, val = data.ids("train"), data.ids("val")
            best: tuple[logistic.Logistic, int, Tensor, float] | None = None
            for depth in options.rounds:
                vocabulary = torch.unique(colours(data.graphs.batch(train), depth))
                x = features(every, vocabulary, depth)
                scale = float(x[train.numpy()].power(2).sum() / len(train)) ** 0.5
                chosen = (train.numpy(), val.numpy(), data.classes, score, options.strengths)
                fitted = logistic.fit(x / scale, y, *chosen)
                if best is None or fitted.value > best[0].value:
                    best = fitted, depth, vocabulary, scale
            assert best is not None, "there are rounds"
            fitted, depth, vocabulary, scale = best
            tensors = {"vocabulary": vocabulary, "weight": fitted.weight.T / scale, "bias": fitted.bias}
            save_file({n: tensor.contiguous() for n, tensor in tensors.items()}, place / "weights.safetensors")
            return {"rounds": depth, "strength": fitted.strength, f"val_{metric}": fitted.value}

        inputs = {"data": data.sha256, "split": data.split_sha256, "metric": metric}
        return [Stage("wl", {**inputs, "rounds": options.rounds, "strengths": options.strengths}, fit)]

    def student(self, task: GraphTask) -> nn.Module:
        stage = task.store.results["wl"]
        tensors = load_file(stage.folder / "weights.safetensors")
        model = SubtreeModel(tensors["vocabulary"], task.graphs.classes, stage.info["rounds"])
        model.load_state_dict(tensors)
        return model

    def epochs(self, budget: int) -> int:
        return 0
