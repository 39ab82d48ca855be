"""Stages of MONAI's networks, the heads on them, and views that a network cannot take."""

from __future__ import annotations

from math import prod

import pytest
import torch
from torch import nn

from kdbench.engine.step import Shapes, Step
from kdbench.engine.taps import Taps
from kdbench.errors import UsageError
from kdbench.families.medical.segmentation_3d import heads, networks
from kdbench.families.medical.segmentation_3d.methods.dsd import DSD, Hyperparameters
from kdbench.families.medical.segmentation_3d.options import VolumeStudent

OPTIONS = {
    "dynunet": (VolumeStudent(filters=(4, 6, 8, 10)), (16, 24, 16)),
    "dynunet-5": (VolumeStudent(filters=(4, 5, 6, 7, 8)), (32, 32, 32)),
    "unetr": (VolumeStudent("unetr", feature_size=4, hidden_size=24, mlp_dim=24, heads=2), (32, 16, 32)),
    "swinunetr": (VolumeStudent("swinunetr", feature_size=12), (64, 32, 32)),
}
TABLE = {  # stride and channels of every stage
    "dynunet": {
        **{"enc1": (1, 4), "enc2": (2, 6), "enc3": (4, 8)},
        **{"dec1": (2, 6), "dec2": (4, 8), "dec3": (8, 10)},
    },
    "dynunet-5": {
        **{"enc1": (1, 4), "enc2": (2, 5), "enc3": (4, 6), "enc4": (8, 7)},
        **{"dec1": (2, 5), "dec2": (4, 6), "dec3": (8, 7), "dec4": (16, 8)},
    },
    "unetr": {
        **{"enc1": (1, 4), "enc2": (2, 8), "enc3": (4, 16), "enc4": (8, 32)},
        **{"dec1": (2, 8), "dec2": (4, 16), "dec3": (8, 32), "dec4": (16, 24)},
    },
    "swinunetr": {
        **{"enc1": (1, 12), "enc2": (2, 12), "enc3": (4, 24), "enc4": (8, 48)},
        **{"dec1": (2, 12), "dec2": (4, 24), "dec3": (8, 48), "dec4": (16, 96)},
    },
}


@pytest.mark.parametrize("name", OPTIONS)
def test_stages_are_those_of_the_card_and_every_head_gives_full_size(name: str) -> None:
    options, patch = OPTIONS[name]
    torch.manual_seed(0)
    network = networks.build(options, 2, 3, patch, patch)
    method = DSD(Hyperparameters())
    with Taps(network, method.taps(network)) as taps:
        logits = network(torch.randn(1, 2, *patch))
        features = taps.read()
    assert logits.shape == (1, 3, *patch) and torch.equal(features["main"], logits)
    found = {}
    for alias, feature in features.items():
        if alias != "main":
            tokens = feature.dim() == 3
            stride = round((prod(patch) / feature.shape[1]) ** (1 / 3)) if tokens else patch[-1] // feature.shape[-1]
            found[alias] = (stride, feature.shape[2 if tokens else 1])
    assert found == TABLE[name]

    shapes = Shapes({alias: tuple(feature.shape[1:]) for alias, feature in features.items()}, {})
    trained = nn.ModuleDict(method.modules(shapes))
    assert len(trained) == len({stride for stride, _ in found.values()})
    label = torch.randint(3, (1, 1, *patch))
    step = Step(None, label, {"logits": logits}, features, {}, 0, 1, network)
    assert all(value.shape == logits.shape for value in heads.logits(method.heads, step, shared=True).values())
    sum(method.loss_terms(step).values()).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in trained.parameters())


def test_tokens_are_put_back_in_their_place() -> None:
    options, size = OPTIONS["unetr"][0], 32
    network = networks.build(options, 1, 3, (size, size, 16), (size, size, 16))
    shapes = Shapes({"dec4": (4, 24), "main": (3, size, size, 16)}, {})
    built = heads.heads(shapes.student, shared=True)
    tokens = torch.randn(2, 4, 24)
    features = {"dec4": tokens, "main": torch.zeros(2, 3, size, size, 16)}
    step = Step(None, None, {}, features, {}, 0, 1, network)
    wanted = built["stride16"](network.proj_feat(tokens))  # type: ignore[operator]
    assert torch.equal(heads.logits(built, step, shared=True)["dec4"], wanted)


@pytest.mark.parametrize(
    ("options", "patch", "window", "said"),
    [
        (VolumeStudent(), (32, 44, 32), (32, 48, 32), "multiples of 8 voxels.*data.patch"),
        (VolumeStudent(), (32, 48, 32), (36, 48, 32), "data.window"),
        (VolumeStudent("unetr"), (32, 40, 32), (32, 40, 32), "multiples of 16"),
        (VolumeStudent("unetr"), (32, 32, 32), (48, 48, 48), "leave out data.window"),
        (VolumeStudent("unetr", hidden_size=100), (32, 32, 32), (32, 32, 32), "no multiple of heads"),
        (VolumeStudent("swinunetr"), (32, 48, 32), (32, 48, 32), "multiples of 32"),
        (VolumeStudent("swinunetr", feature_size=16), (64, 32, 32), (32, 32, 32), "multiples of 12"),
        (VolumeStudent("swinunetr"), (32, 32, 32), (32, 32, 32), "a single voxel"),
        (VolumeStudent(filters=(2, 2, 2)), (4, 4, 4), (8, 8, 8), "a single voxel"),
    ],
)
def test_what_a_network_cannot_take_is_named(
    options: VolumeStudent, patch: tuple[int, int, int], window: tuple[int, int, int], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        networks.build(options, 1, 3, patch, window)


def test_a_network_without_known_stages_is_named() -> None:
    with pytest.raises(UsageError, match="Linear has no known stages"):
        networks.stages(nn.Linear(1, 1))
