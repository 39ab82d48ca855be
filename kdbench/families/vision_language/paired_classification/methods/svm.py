"""Support vector machines on a few features of the student's view: what a network of that view has to reach.

``φ``: of a spectrogram the mean and the deviation of each mel band over time; of another view the principal components
that hold 99.9 % of its training variance. ``z``: φ with mean 0 and variance 1 over the training examples. One machine
for each class against the others, with ``k(z, z') = exp(−γ/d · ‖z − z'‖²)`` for d features:

    logit_c(x) = Σ_i α_ic · k(z, z_i) + b_c

The penalty C and γ are those of the best validation accuracy, the first of equals.

Source: Cortes, Vapnik, "Support-vector networks", Machine Learning 20, 1995; fitted by scikit-learn.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Gt, Len
from safetensors.torch import load_file, save_file
from sklearn.decomposition import PCA
from sklearn.multiclass import OneVsRestClassifier
from sklearn.svm import SVC
from torch import Tensor, nn

from kdbench.engine.method import Method
from kdbench.engine.stages import Stage, StageResult
from kdbench.families.vision_language.paired_classification.networks import PairNetwork
from kdbench.families.vision_language.paired_classification.task import PairedTask

STAGE, VARIANCE = "support-vectors", 0.999


@dataclass(frozen=True)
class Hyperparameters:
    penalty: Annotated[tuple[Annotated[float, Gt(0)], ...], Len(1)] = (1.0, 10.0, 100.0)
    """Penalties C to choose from."""
    gamma: Annotated[tuple[Annotated[float, Gt(0)], ...], Len(1)] = (0.1, 0.3, 1.0, 3.0)
    """Widths γ of the kernel to choose from."""


def described(sees: tuple[str, ...], view: Tensor) -> Tensor:
    """Spectrograms ``[b, 1, bands, frames]`` -> ``[b, 2 · bands]``, another view ``[b, *] -> [b, n]``."""
    if is_spectrogram(sees, view):
        view = torch.cat([view.mean(dim=-1), view.std(dim=-1, correction=0)], dim=-1)
    return view.flatten(1)


def is_spectrogram(sees: tuple[str, ...], view: Tensor) -> bool:
    """Whether the view is a picture of what is heard."""
    return sees == ("audio",) and view.dim() == 4


class SupportVectors(PairNetwork):
    """The fitted machines as a network: logits ``[b, C]`` from one view.

    ``fitted``: ``mean`` ``[n]``, ``directions`` ``[n, d]``, ``vectors`` ``[m, d]``, ``weights`` ``[m, C]``, ``bias``
    ``[C]``, ``gamma`` ``[1]`` (γ/d).
    """

    masked = ()

    def __init__(self, sees: tuple[str, ...], fitted: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.sees = sees
        self.fitted = nn.ParameterDict({name: nn.Parameter(value) for name, value in fitted.items()})

    def forward(self, view: Tensor) -> Tensor:
        fitted = self.fitted
        z = (described(self.sees, view) - fitted["mean"]) @ fitted["directions"]
        lengths = z.square().sum(dim=1, keepdim=True) + fitted["vectors"].square().sum(dim=1)
        distances = (lengths - 2 * z @ fitted["vectors"].T).clamp(min=0)
        logits: Tensor = torch.exp(-fitted["gamma"] * distances) @ fitted["weights"] + fitted["bias"]
        return logits


def standardising(features: np.ndarray, components: bool) -> tuple[np.ndarray, np.ndarray]:
    """``mean`` ``[n]`` and ``directions`` ``[n, d]`` to variance 1, of principal components or each feature."""
    if not components:
        return features.mean(axis=0), np.diag(1 / features.std(axis=0).clip(min=1e-12))
    pca = PCA(VARIANCE, svd_solver="full").fit(features)
    return pca.mean_, pca.components_.T / np.sqrt(pca.explained_variance_)


def best(
    train: tuple[np.ndarray, np.ndarray], val: tuple[np.ndarray, np.ndarray], options: Hyperparameters
) -> tuple[float, float, float, OneVsRestClassifier]:
    """Validation accuracy, C, γ and machines of the best pair; ``train``, ``val``: features and classes."""
    chosen: tuple[float, float, float, OneVsRestClassifier] | None = None
    for penalty, gamma in itertools.product(options.penalty, options.gamma):
        kernel = SVC(C=penalty, gamma=gamma / train[0].shape[1])
        machines = OneVsRestClassifier(kernel).fit(*train)
        accuracy = float(machines.score(*val))
        if chosen is None or accuracy > chosen[0]:
            chosen = accuracy, penalty, gamma, machines
    assert chosen is not None, "the grid has a point"
    return chosen


def as_tensors(machines: OneVsRestClassifier, count: int) -> dict[str, Tensor]:
    """``weights`` ``[count, C]`` over all training examples, ``bias`` ``[C]`` and ``gamma`` ``[1]`` of the machines."""
    weights, bias = np.zeros((count, len(machines.estimators_))), np.zeros(len(machines.estimators_))
    for number, machine in enumerate(machines.estimators_):
        weights[machine.support_, number] = machine.dual_coef_[0]
        bias[number] = machine.intercept_[0]
    values = {"weights": weights, "bias": bias, "gamma": np.array([machines.estimators_[0].gamma])}
    return {name: torch.from_numpy(value).float() for name, value in values.items()}


class SVM(Method[PairedTask]):
    """Deploys the machines without a step."""

    title = "support vector machines on components or mel statistics (reference)"
    paper = "https://doi.org/10.1007/BF00994018"
    teacher = "none"
    role = "reference"
    options: Hyperparameters

    def stages(self, task: PairedTask) -> Sequence[Stage]:
        modality = task.config.student.modality
        made_of = {"data": task.pairs.sha256, "split": task.pairs.split_sha256}
        inputs = {**made_of, "modality": modality, "grid": asdict(self.options)}

        def fit(folder: Path, upstream: Mapping[str, StageResult]) -> dict[str, Any]:
            return self.fit(task, folder)

        return [Stage(STAGE, inputs, fit)]

    def fit(self, task: PairedTask, folder: Path) -> dict[str, Any]:
        """Fit on the training pairs, choose on the validation pairs, leave ``machines.safetensors``."""
        pairs, sees = task.pairs, (task.config.student.modality,)
        views = {split: pairs.views[sees[0]].rows(pairs.ids(split)) for split in ("train", "val")}
        features = {split: described(sees, view).double().numpy() for split, view in views.items()}
        classes = {split: pairs.y[pairs.ids(split)].numpy() for split in views}
        mean, directions = standardising(features["train"], not is_spectrogram(sees, views["train"]))
        z = {split: (values - mean) @ directions for split, values in features.items()}
        accuracy, penalty, gamma, machines = best(
            (z["train"], classes["train"]), (z["val"], classes["val"]), self.options
        )
        fitted = as_tensors(machines, len(z["train"]))
        used = fitted["weights"].abs().sum(dim=1) > 0
        fitted["weights"] = fitted["weights"][used]
        arrays = {"mean": mean, "directions": directions, "vectors": z["train"][used.numpy()]}
        fitted |= {name: torch.from_numpy(value).float().contiguous() for name, value in arrays.items()}
        save_file(fitted, folder / "machines.safetensors")
        return {"penalty": penalty, "gamma": gamma, "vectors": int(used.sum()), "val/accuracy": accuracy}

    def student(self, task: PairedTask) -> nn.Module:
        return SupportVectors((task.config.student.modality,), load_file(task.folder(STAGE) / "machines.safetensors"))

    def epochs(self, budget: int) -> int:
        return 0
