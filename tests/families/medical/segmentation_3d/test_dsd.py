"""DSD, deep supervision and plain distillation against an independent float64 transcription of their equations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.losses import DiceCELoss
from safetensors.torch import load_file
from torch import Tensor, nn

from kdbench.engine.method import Method
from kdbench.engine.runner import Outcome, Session, Silent
from kdbench.engine.step import Shapes, Step
from kdbench.errors import UsageError
from kdbench.families.medical.segmentation_3d import heads
from kdbench.families.medical.segmentation_3d.heads import Head, entropy, voxel_kl
from kdbench.families.medical.segmentation_3d.methods.deep_supervision import DeepSupervision
from kdbench.families.medical.segmentation_3d.methods.dsd import DSD, Hyperparameters
from kdbench.families.medical.segmentation_3d.methods.kd import KD
from kdbench.families.medical.segmentation_3d.methods.kd import Hyperparameters as KDOptions
from kdbench.plan.config import expand

CLASSES, BATCH, SIZE = 3, 2, (4, 8, 4)
STAGES = {"enc1": (5, 1), "enc2": (6, 2), "enc3": (7, 4), "dec1": (6, 2), "dec2": (7, 4)}
"""Channels and stride."""


def shapes_of(stages: Mapping[str, tuple[int, int]]) -> Shapes:
    shapes = {name: (c, *(n // s for n in SIZE)) for name, (c, s) in stages.items()}
    return Shapes({**shapes, "main": (CLASSES, *SIZE)}, {})


class Example:
    """One training step of random float64 features."""

    def __init__(self, method: Method, stages: Mapping[str, tuple[int, int]]) -> None:
        rng = np.random.default_rng(11)
        shapes = shapes_of(stages)
        self.method, self.label = method, rng.integers(CLASSES, size=(BATCH, 1, *SIZE))
        self.features = {n: torch.from_numpy(rng.normal(size=(BATCH, *s))) for n, s in shapes.student.items()}
        for feature in self.features.values():
            feature.requires_grad_()
        torch.manual_seed(0)
        self.heads = nn.ModuleDict(method.modules(shapes)).double()
        targets, output = torch.from_numpy(self.label), {"logits": self.features["main"]}
        self.step = Step(None, targets, output, self.features, {}, 0, 1, nn.Module())
        self.terms = method.loss_terms(self.step)

    def array(self, name: str) -> np.ndarray:
        return self.features[name].detach().numpy()


def softmax(z: np.ndarray) -> np.ndarray:
    powers = np.exp(z - z.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def head(state: Mapping[str, Tensor], feature: np.ndarray, stride: int) -> np.ndarray:
    """1×1×1 convolution, then the same transposed convolution of stride 2 again and again (once of kernel 1)."""
    w, b = (state[f"reduce.{n}"].numpy() for n in ("weight", "bias"))
    z = np.einsum("oc,bcdhw->bodhw", w[:, :, 0, 0, 0], feature) + b[None, :, None, None, None]
    w, b = (state[f"expand.{n}"].numpy() for n in ("weight", "bias"))
    k = w.shape[-1]
    for _ in range(1 if stride == 1 else int(np.log2(stride))):
        grown = np.einsum("bcdhw,coxyz->bodxhywz", z, w)
        n, o, d, _, h, _, v, _ = grown.shape
        z = grown.reshape(n, o, d * k, h * k, v * k) + b[None, :, None, None, None]
    return z


def dice_ce(z: np.ndarray, label: np.ndarray) -> float:
    """Dice (mean over samples and classes, smoothing 1e-5 above and below) plus cross-entropy (mean over voxels)."""
    p, y = softmax(z), np.moveaxis(np.eye(CLASSES)[label[:, 0]], -1, 1)
    axes = (2, 3, 4)
    dice = 1 - (2 * (p * y).sum(axes) + 1e-5) / (p.sum(axes) + y.sum(axes) + 1e-5)
    return float(dice.mean() - (y * np.log(p)).sum(axis=1).mean())


def kl(t: np.ndarray, s: np.ndarray, temperature: float) -> float:
    """Mean over batch and voxels of ``Σ_k p_k (log p_k − log q_k)``, voxel by voxel."""
    p, q = softmax(t / temperature), softmax(s / temperature)
    return float((p * (np.log(p) - np.log(q))).sum(axis=1).mean())


def all_logits(example: Example, shared: bool) -> dict[str, np.ndarray]:
    told = {}
    for name, feature in example.features.items():
        if name == "main":
            continue
        stride = SIZE[-1] // feature.shape[-1]
        mine = f"stride{stride}" if shared else f"{name[:3]}_stride{stride}"
        told[name] = head(example.heads[mine].state_dict(), example.array(name), stride)
    return told


def reference(example: Example, options: Hyperparameters) -> dict[str, float]:
    z, t = all_logits(example, options.shared_heads), options.temperature
    decoder, encoder = (sorted(n for n in z if n.startswith(part)) for part in ("dec", "enc"))
    told = {"deep": sum(dice_ce(z[n], example.label) for n in decoder)}
    if options.decoder:
        told["decoder"] = sum(t**2 * kl(z[decoder[0]], z[n], t) for n in decoder[1:])
    if options.encoder:
        told["encoder"] = sum(t**2 * kl(z[encoder[-1]], z[n], t) for n in encoder[:-1])
    return told


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("temperature", [3.0, 1.0])
@pytest.mark.parametrize(("encoder", "decoder"), [(True, True), (True, False), (False, True), (False, False)])
def test_dsd_equals_the_equations(shared: bool, temperature: float, encoder: bool, decoder: bool) -> None:
    options = Hyperparameters(temperature, 0.7, encoder, decoder, shared_heads=shared)
    stages = {n: s for n, s in STAGES.items() if encoder or n.startswith("dec")}
    example = Example(DSD(options), stages)
    wanted = reference(example, options)
    assert {name: term.item() for name, term in example.terms.items()} == pytest.approx(wanted, rel=1e-10)
    weights = example.method.weights(example.step)
    assert weights == {name: 0.7 for name in ("decoder", "encoder") if name in wanted}


def test_every_part_and_the_teachers_entropy_are_logged() -> None:
    example = Example(DSD(Hyperparameters()), STAGES)
    told, z = {name: value.item() for name, value in example.step.logs.items()}, all_logits(example, True)
    p = softmax(z["enc3"])
    assert told == pytest.approx(
        {
            "deep dec1": dice_ce(z["dec1"], example.label),
            "deep dec2": dice_ce(z["dec2"], example.label),
            "dec1 to dec2": 9 * kl(z["dec1"], z["dec2"], 3),
            "enc3 to enc2": 9 * kl(z["enc3"], z["enc2"], 3),
            "enc3 to enc1": 9 * kl(z["enc3"], z["enc1"], 3),
            "entropy of enc3": -(p * np.log(p)).sum(axis=1).mean(),
        },
        rel=1e-10,
    )


def test_ten_stages_are_in_the_order_of_their_numbers() -> None:
    stages = {f"{side}{number}": (5, 1) for side in ("enc", "dec") for number in range(1, 11)}
    example = Example(DSD(Hyperparameters()), stages)
    pairs = [name for name in example.step.logs if " to " in name]
    assert pairs == [f"dec1 to dec{n}" for n in range(2, 11)] + [f"enc10 to enc{n}" for n in range(9, 0, -1)]
    assert "entropy of enc10" in example.step.logs


def test_deep_supervision_is_dsd_without_divergences() -> None:
    stages = {n: s for n, s in STAGES.items() if n.startswith("dec")}
    deep = Example(DeepSupervision(None), stages)
    none = Example(DSD(Hyperparameters(encoder=False, decoder=False)), stages)
    assert deep.terms.keys() == none.terms.keys() == {"deep"}
    assert torch.equal(deep.terms["deep"], none.terms["deep"])
    assert deep.terms["deep"].item() == pytest.approx(reference(deep, none.method.options)["deep"], rel=1e-10)


def test_the_transcribed_loss_is_the_tasks_own() -> None:
    rng = np.random.default_rng(2)
    z, label = rng.normal(size=(BATCH, CLASSES, *SIZE)), rng.integers(CLASSES, size=(BATCH, 1, *SIZE))
    loss = DiceCELoss(include_background=True, to_onehot_y=True, softmax=True)
    assert loss(torch.from_numpy(z), torch.from_numpy(label)).item() == pytest.approx(dice_ce(z, label), rel=1e-12)


@pytest.mark.parametrize(("detach", "moved"), [(False, True), (True, False)])
def test_the_teacher_stages_are_detached_only_if_asked(detach: bool, moved: bool) -> None:
    example = Example(DSD(Hyperparameters(detach_teacher=detach)), STAGES)
    names = ("dec1", "enc3", "dec2", "enc1", "enc2")
    total = example.terms["decoder"] + example.terms["encoder"]
    grads = torch.autograd.grad(total, [example.features[n] for n in names], allow_unused=True)
    pulled = {name: grad is not None and bool(grad.any()) for name, grad in zip(names, grads, strict=True)}
    assert pulled == {"dec1": moved, "enc3": moved, "dec2": True, "enc1": True, "enc2": True}


@pytest.mark.parametrize(("shared", "reached"), [(True, True), (False, False)])
def test_labels_reach_the_encoder_teachers_head_by_sharing_alone(shared: bool, reached: bool) -> None:
    example = Example(DSD(Hyperparameters(shared_heads=shared)), STAGES)
    mine = list(example.heads["stride4" if shared else "enc_stride4"].parameters())
    grads = torch.autograd.grad(example.terms["deep"], mine, allow_unused=True)
    assert any(grad is not None and bool(grad.any()) for grad in grads) == reached
    assert any(name.startswith("enc") for name in example.heads) != shared


# the divergence


def test_divergence_of_a_prediction_from_itself_is_0_and_its_order_matters() -> None:
    rng = np.random.default_rng(4)
    s, t = (torch.from_numpy(rng.normal(size=(BATCH, CLASSES, *SIZE)) * 4) for _ in range(2))
    assert voxel_kl(s, s, 3.0).item() == pytest.approx(0, abs=1e-14)
    forward, backward = voxel_kl(s, t, 1.0).item(), voxel_kl(t, s, 1.0).item()
    assert forward == pytest.approx(kl(t.numpy(), s.numpy(), 1), rel=1e-12)
    assert abs(forward - backward) > 0.01 * forward


def test_divergence_is_a_mean_over_voxels_and_samples() -> None:
    rng = np.random.default_rng(5)
    s, t = (torch.from_numpy(rng.normal(size=(BATCH, CLASSES, *SIZE))) for _ in range(2))
    once = voxel_kl(s, t, 3.0).item()
    for tiles in ((2, 1, 1, 1, 1), (1, 1, 2, 3, 1)):
        assert voxel_kl(s.repeat(*tiles), t.repeat(*tiles), 3.0).item() == pytest.approx(once, rel=1e-12)


def test_temperature_leaves_the_gradient_of_small_logits_as_it_is() -> None:
    rng = np.random.default_rng(6)
    s, t = (torch.from_numpy(rng.normal(size=(BATCH, CLASSES, *SIZE)) * 1e-3) for _ in range(2))
    grads = []
    for temperature in (1.0, 3.0, 9.0):
        leaf = s.clone().requires_grad_()
        grads.append(torch.autograd.grad(voxel_kl(leaf, t, temperature), leaf)[0].norm().item())
    assert grads == pytest.approx([grads[0]] * 3, rel=1e-2)


def test_the_divergence_has_the_gradient_of_its_equation_on_both_sides() -> None:
    rng = np.random.default_rng(7)
    s, t = (torch.from_numpy(rng.normal(size=(1, CLASSES, 1, 2, 1))).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(lambda a, b: voxel_kl(a, b, 3.0), (s, t))


def test_entropy_is_that_of_the_prediction() -> None:
    uniform = entropy(torch.zeros(1, CLASSES, 2, 2, 2)).item()
    assert uniform == pytest.approx(np.log(CLASSES), rel=1e-6)
    sure = torch.zeros(1, CLASSES, 2, 2, 2)
    sure[:, 0] = 50
    assert entropy(sure).item() == pytest.approx(0, abs=1e-6)


# heads


@pytest.mark.parametrize(("stride", "expand"), [(1, 1), (2, 8), (4, 8), (8, 8), (16, 8)])
def test_a_head_has_the_parameters_of_the_card_and_gives_full_size(stride: int, expand: int) -> None:
    channels = 16
    built = Head(channels, CLASSES, stride)
    wanted = channels * CLASSES + CLASSES + expand * CLASSES**2 + CLASSES
    assert sum(p.numel() for p in built.parameters()) == wanted
    assert built(torch.zeros(1, channels, 1, 2, 1)).shape == (1, CLASSES, stride, 2 * stride, stride)


def test_a_head_applies_one_transposed_convolution_again_and_again() -> None:
    torch.manual_seed(1)
    built, feature = Head(4, CLASSES, 8).double(), torch.randn(2, 4, 1, 2, 3, dtype=torch.float64)
    wanted = head(built.state_dict(), feature.numpy(), 8)
    np.testing.assert_allclose(built(feature).detach().numpy(), wanted, rtol=1e-10)


def test_stages_of_one_head_must_have_as_many_channels() -> None:
    with pytest.raises(UsageError, match="channels"):
        heads.heads(shapes_of({"enc1": (5, 2), "dec1": (6, 2)}).student, shared=True)


# plain distillation


@pytest.mark.parametrize(("alpha", "temperature"), [(0.5, 4.0), (0.9, 1.0)])
def test_plain_distillation_equals_its_equation(alpha: float, temperature: float) -> None:
    rng = np.random.default_rng(8)
    z, teacher = (rng.normal(size=(BATCH, CLASSES, *SIZE)) for _ in range(2))
    label = rng.integers(CLASSES, size=(BATCH, 1, *SIZE))
    method = KD(KDOptions(alpha, temperature))
    given: dict[str, Any] = {"teacher": lambda batch: {"logits": torch.from_numpy(teacher)}}
    step = Step(None, torch.from_numpy(label), {"logits": torch.from_numpy(z)}, {}, given, 0, 1, nn.Module())  # type: ignore[arg-type]
    assert method.loss_terms(step)["kd"].item() == pytest.approx(
        temperature**2 * kl(teacher, z, temperature), rel=1e-10
    )
    assert method.weights(step) == pytest.approx({"task": 1 - alpha, "kd": alpha})


# in a run

QUICK = ("task=hippocampus", "trainer.max_epochs=2", "trainer.check_val_every_n_epoch=1")


def test_what_is_deployed_is_the_bare_backbone(do: Callable[..., Outcome]) -> None:
    weights = {m: load_file(do(*QUICK, f"method={m}").folder / "student.safetensors") for m in ("alone", "dsd")}
    assert {n: v.shape for n, v in weights["dsd"].items()} == {n: v.shape for n, v in weights["alone"].items()}
    assert not all(torch.equal(weights["dsd"][name], value) for name, value in weights["alone"].items())


def test_the_heads_cost_their_parameters_in_training_and_nothing_in_deployment(do: Callable[..., Outcome]) -> None:
    alone, dsd = (do(*QUICK, f"method={m}").record.costs for m in ("alone", "dsd"))
    assert alone is not None and dsd is not None
    strides = {1: 4, 2: 8, 4: 16}  # of filters 4-8-16: input block and two shared or bottleneck resolutions
    mine = sum(c * 3 + 3 + (9 if s == 1 else 72) + 3 for s, c in strides.items())
    assert dsd.trained_parameters == alone.trained_parameters + mine
    assert (dsd.parameters, dsd.flops) == (alone.parameters, alone.flops)


@pytest.mark.parametrize("name", ["dsd", "deep_supervision"])
def test_evaluation_is_that_of_the_bare_backbone(name: str, tmp_path: Path) -> None:
    (config,) = expand(["task=hippocampus", f"method={name}"])
    session = Session(config, tmp_path, tmp_path, Silent())
    module, _ = session.assemble()
    batch = session.task.example()
    module.eval()
    with torch.no_grad():
        assert torch.equal(module.predict(batch)["logits"], module.student(batch.image))
        module.train()
        observed, features = module.observe(batch, module.forward_batch)
        assert torch.equal(observed["logits"], module.student(batch.image)) and torch.equal(
            features["main"], observed["logits"]
        )
