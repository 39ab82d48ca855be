"""Mask networks against a float64 transcription of the card, and the life of the hooks that insert them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdbench.engine.costs import parameters
from kdbench.families.vision_language.paired_classification.masks import (
    Masked,
    MaskNet,
    SpecialisedTeacher,
    mask_networks,
    width_of,
)
from kdbench.families.vision_language.paired_classification.networks import PairNetwork, digit_networks


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def mask_of(state: Mapping[str, np.ndarray], vector: np.ndarray, width: int, heads: int) -> np.ndarray:
    """Linear to tokens, attention head by head, one score a token, sigmoid."""
    rows, features = vector.shape
    tokens = (vector @ state["embed.weight"].T + state["embed.bias"]).reshape(rows, features, width)
    packed = tokens @ state["attention.in_proj_weight"].T + state["attention.in_proj_bias"]
    q, k, v = np.split(packed, 3, axis=-1)
    each, outputs = width // heads, []
    for head in range(heads):
        part = slice(head * each, (head + 1) * each)
        logits = np.einsum("bie,bje->bij", q[..., part], k[..., part]) / np.sqrt(each)
        powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
        outputs.append(powers / powers.sum(axis=-1, keepdims=True) @ v[..., part])
    attended = np.concatenate(outputs, axis=-1) @ state["attention.out_proj.weight"].T
    attended = attended + state["attention.out_proj.bias"]
    return sigmoid(attended @ state["score.weight"][0] + state["score.bias"][0])


def reduced(state: Mapping[str, np.ndarray], feature: np.ndarray) -> np.ndarray:
    """Depthwise 3×3 stride 2, 1×1, batch norm with running statistics, ReLU, mean over places."""
    rows, channels, height, width = feature.shape
    padded = np.pad(feature, ((0, 0), (0, 0), (1, 1), (1, 1)))
    deep = np.zeros((rows, channels, (height + 1) // 2, (width + 1) // 2))
    for y in range(deep.shape[2]):
        for x in range(deep.shape[3]):
            window = padded[:, :, 2 * y : 2 * y + 3, 2 * x : 2 * x + 3]
            deep[:, :, y, x] = (window * state["reduce.0.weight"][:, 0]).sum(axis=(2, 3))
    mixed = np.einsum("oc,bcyx->boyx", state["reduce.1.weight"][:, :, 0, 0], deep)
    shape = (1, -1, 1, 1)
    spread = np.sqrt(state["reduce.2.running_var"].reshape(shape) + 1e-5)
    normed = (mixed - state["reduce.2.running_mean"].reshape(shape)) / spread
    normed = normed * state["reduce.2.weight"].reshape(shape) + state["reduce.2.bias"].reshape(shape)
    return np.maximum(normed, 0).mean(axis=(2, 3))


def a_mask(shape: tuple[int, ...], width: int, heads: int = 3) -> tuple[MaskNet, dict[str, np.ndarray]]:
    torch.manual_seed(4)
    mask = MaskNet(shape, width, heads).double()
    with torch.no_grad():  # zero biases and unit norms would hide a slip
        for value in mask.parameters():
            value.add_(0.3 * torch.randn_like(value))
        for name, value in mask.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                value.add_(torch.rand_like(value))
    return mask.eval(), {name: value.numpy() for name, value in mask.state_dict().items()}


@pytest.mark.parametrize(("width", "heads"), [(6, 3), (12, 3), (4, 1)])
def test_the_mask_of_a_vector_equals_the_card(width: int, heads: int) -> None:
    mask, state = a_mask((7,), width, heads)
    vector = np.random.default_rng(0).normal(size=(5, 7))
    found = mask(torch.from_numpy(vector)).detach().numpy()
    np.testing.assert_allclose(found, mask_of(state, vector, width, heads), rtol=0, atol=1e-10)
    assert ((found > 0) & (found < 1)).all()


@pytest.mark.parametrize("size", [(4, 4), (5, 3)])
def test_the_mask_of_a_map_equals_the_card(size: tuple[int, int]) -> None:
    mask, state = a_mask((6, *size), 6)
    feature = np.random.default_rng(1).normal(size=(5, 6, *size))
    wanted = mask_of(state, reduced(state, feature), 6, 3)
    np.testing.assert_allclose(mask(torch.from_numpy(feature)).detach().numpy(), wanted, rtol=0, atol=1e-10)


def test_a_map_of_one_place_is_a_vector() -> None:
    mask, _ = a_mask((6, 1, 1), 6)
    assert not list(mask.reduce)
    vector = torch.randn(3, 6, dtype=torch.float64)
    assert torch.equal(mask(vector), mask(vector[..., None, None]))


@pytest.mark.parametrize(
    ("features", "wanted"), [(596, 297), (298, 147), (320, 159), (1024, 510), (512, 255), (84, 42)]
)
def test_the_released_width(features: int, wanted: int) -> None:
    assert width_of(features, 3, 2, None) == wanted
    assert width_of(features, 3, 2, 6) == 6 and width_of(features, 3, 2, 13) == 12


def test_a_width_is_never_nothing() -> None:
    assert width_of(4, 3, 2, 6) == 3


@pytest.mark.parametrize(("features", "millions"), [(298, 13.2), (320, 16.4), (256, 8.4)])
def test_the_released_mask_costs_what_the_card_says(features: int, millions: float) -> None:
    assert parameters(MaskNet((features,), width_of(features, 3, 2, None), 3)) / 1e6 == pytest.approx(
        millions, abs=0.06
    )


def hooks(network: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules())


@pytest.fixture
def fusion() -> PairNetwork:
    torch.manual_seed(2)
    return digit_networks(("image", "audio"), 4, 2, 16).eval()


IMAGE, AUDIO = torch.randn(3, 1, 28, 28), torch.randn(3, 1, 16, 16)


def test_a_masked_layer_gives_the_weighed_feature_and_no_hook_stays(fusion: PairNetwork) -> None:
    masks = mask_networks(fusion, [IMAGE, AUDIO], 2, 6, 2, 3)
    assert list(masks) == ["concat", "fc1"] and hooks(fusion) == 0
    plain = fusion(IMAGE, AUDIO)
    with Masked(fusion, {"fc1": masks["fc1"]}):
        assert hooks(fusion) == 1
        masked = fusion(IMAGE, AUDIO)
    assert hooks(fusion) == 0 and torch.equal(fusion(IMAGE, AUDIO), plain)
    feature = fusion.get_submodule("fc1")(torch.cat([fusion.image(IMAGE), fusion.audio(AUDIO)], dim=1))  # type: ignore[operator]
    wanted = fusion.get_submodule("fc2")(masks["fc1"](feature) * feature)
    torch.testing.assert_close(masked, wanted)


def test_no_hook_stays_after_an_error(fusion: PairNetwork) -> None:
    masks = mask_networks(fusion, [IMAGE, AUDIO], 1, 6, 2, 3)
    with pytest.raises(RuntimeError), Masked(fusion, masks):
        fusion(IMAGE, AUDIO[:2])
    assert hooks(fusion) == 0


def test_a_map_is_weighed_by_channel() -> None:
    audio = digit_networks(("audio",), 4, 2, 16).eval()
    masks = {path: mask.eval() for path, mask in mask_networks(audio, [AUDIO], 2, 6, 2, 3).items()}
    seen: dict[str, Tensor] = {}
    audio.get_submodule("conv2").register_forward_hook(lambda m, i, out: seen.update(before=out))
    with Masked(audio, {"conv2": masks["conv2"]}):
        audio.get_submodule("conv2").register_forward_hook(lambda m, i, out: seen.update(after=out))
        audio(AUDIO)
    torch.testing.assert_close(seen["after"], seen["before"] * masks["conv2"](seen["before"])[:, :, None, None])


def test_every_specialised_teacher_wears_its_own_mask_alone(fusion: PairNetwork) -> None:
    masks = mask_networks(fusion, [IMAGE, AUDIO], 2, 6, 2, 3)
    one, two = (SpecialisedTeacher(fusion, {path: mask}) for path, mask in masks.items())
    first, second = one(IMAGE, AUDIO), two(IMAGE, AUDIO)
    assert hooks(fusion) == 0 and not torch.allclose(first, second)
    with Masked(fusion, {"fc1": masks["fc1"]}):
        assert torch.equal(fusion(IMAGE, AUDIO), second)


def test_masks_that_pile_up_read_what_was_weighed_before(fusion: PairNetwork) -> None:
    masks = mask_networks(fusion, [IMAGE, AUDIO], 2, 6, 2, 3)
    piled = SpecialisedTeacher(fusion, masks)(IMAGE, AUDIO)
    both = torch.cat([fusion.image(IMAGE), fusion.audio(AUDIO)], dim=1)  # type: ignore[operator]
    hidden = fusion.get_submodule("fc1")(masks["concat"](both) * both)
    torch.testing.assert_close(piled, fusion.get_submodule("fc2")(masks["fc1"](hidden) * hidden))
