"""The networks of paired classification have the sizes and layers of the released code."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from kdbench.engine.costs import parameters
from kdbench.engine.taps import Taps
from kdbench.families.vision_language.paired_classification import networks as nets
from kdbench.families.vision_language.paired_classification.networks import PairNetwork

WIDTHS = {"image": 2048, "text": 768}  # of CrisisMMD


@pytest.mark.parametrize(
    ("network", "count"),
    [
        (nets.digit_networks(("image",), 10, 32, 112), 61_706),
        (nets.digit_networks(("audio",), 10, 32, 112), 343_562),
        (nets.digit_networks(("image", "audio"), 10, 32, 112), 1_809_752),
        (nets.feature_networks(("image",), 8, WIDTHS), 2_627_080),
        (nets.feature_networks(("text",), 8, WIDTHS), 1_316_360),
        (nets.feature_networks(("image", "text"), 8, WIDTHS), 4_593_416),
        (nets.clip_networks(("video",), 8), 6_084_420),
        (nets.clip_networks(("audio",), 8), 575_848),
        (nets.clip_networks(("video", "audio"), 8), 6_607_300),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, PairNetwork) else str(value),
)
def test_parameter_counts_are_the_cards(network: PairNetwork, count: int) -> None:
    assert parameters(network) == count


@pytest.mark.parametrize(
    ("build", "shapes", "widths"),
    [
        (
            lambda sees: nets.digit_networks(sees, 10, 32, 112),
            {"image": (1, 28, 28), "audio": (1, 112, 112)},
            {
                ("image",): [(120, 1, 1), (84,)],
                ("audio",): [(64, 56, 56), (128, 28, 28)],
                ("image", "audio"): [(596,), (298,)],
            },
        ),
        (
            lambda sees: nets.feature_networks(sees, 8, WIDTHS),
            {"image": (2048,), "text": (768,)},
            {("image",): [(1024,), (512,)], ("text",): [(1024,), (512,)], ("image", "text"): [(512,), (256,)]},
        ),
        (
            lambda sees: nets.clip_networks(sees, 8),
            {"video": (3, 15, 224, 224), "audio": (15, 156)},
            {("video",): [(320,), (160,)], ("audio",): [(320,), (160,)], ("video", "audio"): [(320,), (160,)]},
        ),
        (
            lambda sees: nets.event_networks(sees, 141),
            {"video": (512, 10, 7, 7), "audio": (10, 128)},
            {("video",): [(320,), (160,)], ("audio",): [(320,), (160,)], ("video", "audio"): [(320,), (160,)]},
        ),
    ],
    ids=["digits", "crisismmd", "ravdess", "vggsound"],
)
def test_masked_layers_have_the_shapes_of_the_card(build, shapes, widths) -> None:  # type: ignore[no-untyped-def]
    for sees, wanted in widths.items():
        network = build(sees).eval()
        with torch.no_grad(), Taps(network, {path: path for path in network.masked}) as taps:
            logits = network(*(torch.randn(1, *shapes[name]) for name in sees))
            assert [tuple(out.shape[1:]) for out in taps.read().values()] == wanted
        assert network.sees == sees and logits.shape[0] == 1


def test_the_spectrogram_may_have_another_size() -> None:
    assert nets.digit_networks(("audio",), 10, 8, 64)(torch.randn(2, 1, 64, 64)).shape == (2, 10)


def test_pooling_before_the_relu_is_pooling_after_it() -> None:
    x = torch.randn(3, 5, 8, 8)
    assert torch.equal(nets.pooled(x), F.max_pool2d(F.relu(x), 2))


def test_no_nonlinearity_between_the_fusion_networks_last_layers() -> None:
    network = nets.digit_networks(("image", "audio"), 10, 2, 16)
    image, audio = torch.randn(4, 1, 28, 28), torch.randn(4, 1, 16, 16)
    seen: list[torch.Tensor] = []
    network.get_submodule("fc1").register_forward_hook(lambda m, i, out: seen.append(out))
    logits = network(image, audio)
    assert (seen[0] < 0).any() and torch.equal(logits, network.get_submodule("fc2")(seen[0]))
