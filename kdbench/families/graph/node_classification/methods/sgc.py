"""Simple graph convolution: the reference that a message-passing student has to reach.

``z = S^k X W^T + b``, ``S = D^-½ (A + I) D^-½``, D the degrees of A + I: words averaged over k hops, and multinomial
logistic regression with an L2 penalty on the training nodes. Hops k and strength C are those of the best accuracy on
validation. Nothing is trained by gradient steps, and there is no other randomness than the split's.

Source: Wu et al., "Simplifying Graph Convolutional Networks", ICML 2019, arXiv 1902.07153.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt, Len
from safetensors.torch import load_file, save_file
from torch import nn
from torch_geometric.nn import SGConv

from kdbench.engine.method import Method
from kdbench.engine.stages import Stage, StageResult
from kdbench.families.graph.node_classification.networks import normalised_adjacency
from kdbench.families.graph.node_classification.task import NodeTask
from kdbench.families.graph.node_classification.teacher import logistic_on


@dataclass(frozen=True)
class Hyperparameters:
    hops: Annotated[tuple[Annotated[int, Ge(0)], ...], Len(1)] = (1, 2, 3, 4)
    """Hops k to choose from; 0 reads a node's own words alone."""
    strengths: Annotated[tuple[Annotated[float, Gt(0)], ...], Len(1)] = (0.1, 1.0, 10.0, 100.0, 1000.0)
    """Strengths C to choose from: the inverse of the L2 penalty, for rows scaled to a mean length of 1."""


class SGC(Method[NodeTask]):
    """Deploys the fitted model without a step."""

    title = "simple graph convolution with logistic regression"
    paper = "https://arxiv.org/abs/1902.07153"
    teacher = "none"
    role = "reference"
    options: Hyperparameters

    def stages(self, task: NodeTask) -> Sequence[Stage]:
        graph, options = task.graph, self.options

        def fit(place: Path, upstream: Mapping[str, StageResult]) -> dict[str, Any]:
            adjacency, x = normalised_adjacency(graph.edges, len(graph.y)), graph.x
            fitted = {}
            for hop in range(max(options.hops) + 1):
                x = x if hop == 0 else adjacency @ x
                if hop in options.hops:
                    scale = float(x.norm(dim=1).mean())
                    fitted[hop] = scale, logistic_on(x / scale, graph, options.strengths)
            hops = max(fitted, key=lambda hop: fitted[hop][1].value)
            scale, best = fitted[hops]
            save_file({"lin.weight": best.weight / scale, "lin.bias": best.bias}, place / "weights.safetensors")
            return {"hops": hops, "strength": best.strength, "val_accuracy": best.value}

        inputs = {"data": graph.sha256, "split": graph.split_sha256, "words": graph.x.shape[1]}
        return [Stage("sgc", {**inputs, "hops": options.hops, "strengths": options.strengths}, fit)]

    def student(self, task: NodeTask) -> nn.Module:
        graph, stage = task.graph, task.store.results["sgc"]
        network: nn.Module = SGConv(graph.x.shape[1], graph.classes, K=stage.info["hops"])
        network.load_state_dict(load_file(stage.folder / "weights.safetensors"))
        return network

    def epochs(self, budget: int) -> int:
        return 0
