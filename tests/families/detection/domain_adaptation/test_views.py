"""Views: strong ones leave every pixel where it is, flips move boxes with their pixels."""

from __future__ import annotations

import torch

from kdbench.families.detection.domain_adaptation import views
from kdbench.families.detection.domain_adaptation.networks import Truth


def pictures(count: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Dark images with one bright rectangle at rows 8…15 and columns 20…35, of height 40 and width 48 in 64 × 64."""
    images = torch.zeros(count, 3, 64, 64)
    images[:, :, :40, :48] = 40
    images[:, :, 8:16, 20:36] = 220
    return images, torch.tensor([[40, 48]] * count)


def test_a_strong_view_changes_colours_and_leaves_shapes_where_they_are() -> None:
    images, sizes = pictures()
    torch.manual_seed(0)
    seen = views.strong(images, sizes)
    assert not torch.equal(seen, images) and seen.min() >= 0 and seen.max() <= 255
    inside, around = seen[:, :, 9:15, 22:34].mean(dim=(1, 2, 3)), seen[:, :, 20:38, 2:46].mean(dim=(1, 2, 3))
    assert (inside > around).float().mean() > 0.7, "the rectangle is where it was, but where it was erased"
    mean = seen.mean(dim=(0, 1))
    rows, columns = mean[8:16, 20:36].mean(), mean[8:16, 2:18].mean()
    assert rows > columns + 40


def test_the_padding_stays_as_it_is() -> None:
    images, sizes = pictures()
    seen = views.strong(images, sizes)
    assert not seen[:, :, 40:].any() and not seen[:, :, :, 48:].any()
    assert torch.equal(images, pictures()[0]), "the weak view is not overwritten"


def test_views_are_drawn_from_the_global_stream() -> None:
    images, sizes = pictures()
    seen = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        seen.append(views.strong(images, sizes))
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])
    assert any(not torch.equal(seen[0][0], other) for other in seen[0][1:]), "each image has its own"


def test_a_flip_moves_boxes_with_their_pixels() -> None:
    images, sizes = pictures()
    truth = [Truth(torch.tensor([[20.0, 8, 36, 16]]), torch.tensor([2])) for _ in images]
    torch.manual_seed(0)
    seen, moved = views.jittered(images, sizes, truth)
    places = set()
    for image, one in zip(seen, moved, strict=True):
        x1, y1, x2, y2 = one.boxes[0].int().tolist()
        places.add(x1)
        assert (y1, y2, one.labels.tolist()) == (8, 16, [2])
        outside = image[:, y1:y2, :48].mean(dim=(0, 1))
        outside = torch.cat([outside[:x1], outside[x2:]])
        assert image[:, y1:y2, x1:x2].mean() > outside.max()
    assert places == {20, 12}
    assert not seen[:, :, :, 48:].any()
    assert all(one.boxes[0, 0] == 20 for one in truth)
