"""The detectors: mmdet's own answers, losses, the full-scale network, weights from files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from kdbench.errors import KdbenchError, UsageError
from kdbench.families.detection.domain_adaptation import networks as models
from kdbench.families.detection.domain_adaptation.networks import Truth
from kdbench.families.detection.domain_adaptation.options import Detector
from kdbench.networks import efficientnet_lite


def pictures(count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.rand(count, 3, 64, 64) * 255, torch.tensor([[64, 64], [48, 60]][:count])


def test_predictions_are_those_of_mmdet(detector: Any) -> None:
    detector.eval()
    images, sizes = pictures()
    with torch.no_grad():
        outputs = models.predict(detector, images, sizes)
        inputs = models.normalised(images, sizes)
        wanted = detector.predict(inputs, models.samples(images, sizes), rescale=False)
    for row, sample in enumerate(wanted):
        expected = sample.pred_instances
        kept = outputs["scores"][row] > 0
        assert kept.sum() == len(expected.scores) > 0
        torch.testing.assert_close(outputs["boxes"][row][kept], expected.bboxes)
        torch.testing.assert_close(outputs["scores"][row][kept], expected.scores)
        assert outputs["labels"][row][kept].tolist() == expected.labels.tolist()
        height, width = sizes[row].tolist()
        assert expected.bboxes.min() >= 0 and (expected.bboxes.amax(dim=0) <= torch.tensor([width, height] * 2)).all()


def test_what_the_head_says_is_aligned_with_the_proposals(detector: Any) -> None:
    detector.eval()
    images, sizes = pictures()
    with torch.no_grad():
        outputs = models.predict(detector, images, sizes)
        maps = detector.extract_feat(models.normalised(images, sizes))
        for row, count in enumerate(outputs["proposed"].tolist()):
            rois = models.as_rois([outputs["proposals"][row, :count]])
            own = models.classify(detector, [level[row : row + 1] for level in maps], rois)
            for name, value in zip(("logits", "deltas", "features"), own, strict=True):
                torch.testing.assert_close(outputs[name][row, :count], value)
                assert not outputs[name][row, count:].any()
    assert (
        outputs["logits"].shape[-1] == 4 and outputs["deltas"].shape[-1] == 12 and outputs["features"].shape[-1] == 16
    )


@pytest.mark.parametrize(
    "part", ["backbone.conv1", "rpn_head.rpn_reg", "rpn_head.rpn_cls", "roi_head.bbox_head.fc_reg"]
)
def test_a_detector_of_nan_finds_not_nothing_but_fails(part: str, detector: Any) -> None:
    detector.get_parameter(f"{part}.weight").data[0] = float("nan")
    with pytest.raises(KdbenchError, match="head says NaN"), torch.no_grad():
        models.predict(detector.eval(), *pictures())


def test_the_padding_says_nothing(detector: Any) -> None:
    images, sizes = pictures()
    other = images.clone()
    other[1, :, 48:] = 77
    other[1, :, :, 60:] = 99
    assert torch.equal(models.normalised(images, sizes), models.normalised(other, sizes))
    inside = models.normalised(images, sizes)[0, :, 5, 7]
    wanted = (images[0, :, 5, 7] - torch.tensor([123.675, 116.28, 103.53])) / torch.tensor([58.395, 57.12, 57.375])
    torch.testing.assert_close(inside, wanted)


def truth(*boxes: list[float]) -> Truth:
    return Truth(torch.tensor(boxes).reshape(-1, 4), torch.arange(len(boxes)))


def test_losses_are_mmdets_own(detector: Any) -> None:
    from mmengine.structures import InstanceData

    images, sizes = pictures()
    with torch.no_grad():  # boxes near proposals, so that some regions are positive
        near = models.predict(detector.eval(), images, sizes)["proposals"]
    there = [truth(*(near[0, :2] + 0.5).tolist()), truth(near[1, 3].tolist())]
    detector.train()
    inputs, samples = models.normalised(images, sizes), models.samples(images, sizes)
    torch.manual_seed(5)
    mine = models.losses(detector, detector.extract_feat(inputs), samples, there)
    for sample, one in zip(samples, there, strict=True):
        sample.gt_instances = InstanceData(bboxes=one.boxes, labels=one.labels)
    torch.manual_seed(5)
    outputs = detector.loss(inputs, samples)
    wanted = [sum(outputs["loss_rpn_cls"]), sum(outputs["loss_rpn_bbox"]), outputs["loss_cls"], outputs["loss_bbox"]]
    assert list(mine) == ["rpn_cls", "rpn_box", "roi_cls", "roi_box"]
    for value, one in zip(mine.values(), wanted, strict=True):
        assert value.item() == pytest.approx(one.item(), rel=1e-6) and value.item() > 0


def test_losses_of_a_batch_are_over_all_its_samples_together(small: Callable[..., Detector]) -> None:
    """Two copies of an image count as one where nothing is drawn at random."""
    torch.manual_seed(2)
    network: Any = models.build(small(anchors=10_000, regions=10_000), 3).train()
    images, sizes = torch.rand(1, 3, 64, 64).expand(2, -1, -1, -1) * 255, torch.tensor([[64, 64]] * 2)
    there, outputs = [truth([4, 4, 20, 22], [30, 30, 44, 44])] * 2, []
    maps, samples = network.extract_feat(models.normalised(images, sizes)), models.samples(images, sizes)
    for count in (1, 2):
        outputs.append(models.losses(network, [level[:count] for level in maps], samples[:count], there[:count]))
    for one, two in zip(outputs[0].values(), outputs[1].values(), strict=True):
        assert one.item() == pytest.approx(two.item(), rel=1e-5)


def test_an_image_without_boxes_is_background(detector: Any) -> None:
    detector.train()
    images, sizes = pictures(1)
    maps = detector.extract_feat(models.normalised(images, sizes))
    outputs = models.losses(detector, maps, models.samples(images, sizes), [truth()])
    assert outputs["rpn_cls"] > 0 and outputs["roi_cls"] > 0 and outputs["rpn_box"] == outputs["roi_box"] == 0


def test_true_boxes_are_not_appended_to_the_proposals(detector: Any) -> None:
    assert not detector.roi_head.bbox_sampler.add_gt_as_proposals
    assert not detector.rpn_head.sampler.add_gt_as_proposals


@pytest.mark.slow
def test_the_full_detector_is_built_offline_with_its_frozen_parts(tmp_path: Path) -> None:
    from torchvision.models import resnet50

    torch.manual_seed(0)
    state = resnet50(weights=None).state_dict()
    path = tmp_path / "backbone.pth"
    torch.save(state, path)
    network: Any = models.build(Detector(weights=str(path)), 8)
    for mine, theirs in (("backbone", "layer3.5.conv2.weight"), ("roi_head.shared_head", "layer4.2.conv3.weight")):
        assert torch.equal(network.get_submodule(mine).get_parameter(theirs), state[theirs])
    network.train()
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == 53 and not any(m.training or m.weight.requires_grad for m in norms)
    frozen = {name for name, p in network.named_parameters() if not p.requires_grad and "bn" not in name}
    assert all(
        name.startswith(("backbone.conv1", "backbone.layer1", "backbone.layer2.0.downsample.1")) or "downsample" in name
        for name in frozen
    )
    assert any(name.startswith("backbone.layer1.0.conv1") for name in frozen)
    images, sizes = torch.rand(1, 3, 128, 160) * 255, torch.tensor([[128, 160]])
    maps = network.extract_feat(models.normalised(images, sizes))
    assert maps[0].shape == (1, 1024, 8, 10)
    before = norms[5].running_mean.clone()
    outputs = models.losses(network, maps, models.samples(images, sizes), [truth([10, 10, 90, 100])])
    sum(outputs.values()).backward()  # type: ignore[union-attr]
    assert network.backbone.layer1[0].conv1.weight.grad is None and torch.equal(norms[5].running_mean, before)
    network.eval()
    with torch.no_grad():
        outputs = models.predict(network, images, sizes)
    assert outputs["features"].shape[-1] == 2048 and outputs["logits"].shape[-1] == 9
    settings = network.test_cfg.rpn, network.train_cfg.rpn_proposal, network.train_cfg.rcnn.sampler
    assert (settings[0].nms_pre, settings[0].max_per_img) == (6000, 300)
    assert (settings[1].nms_pre, settings[1].max_per_img) == (12000, 2000)
    assert (settings[2].num, settings[2].pos_fraction) == (512, 0.25)


def test_the_lite0_detector_begins_with_the_packages_weights_and_keeps_the_finest(
    small: Callable[..., Detector],
) -> None:
    torch.manual_seed(0)
    network: Any = models.build(small(name="lite0_fpn", weights="efficientnet-lite0"), 3).train()
    begun = {name: value.clone() for name, value in network.backbone.state_dict().items()}
    package = efficientnet_lite.imagenet_weights()
    assert begun and all(torch.equal(value, package[name]) for name, value in begun.items())
    images, sizes = pictures(1)
    maps = network.extract_feat(models.normalised(images, sizes))
    assert [one.shape[1:] for one in maps] == [(16, 8, 8), (16, 4, 4)]
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    sum(models.losses(network, maps, models.samples(images, sizes), [truth([4, 4, 20, 22])]).values()).backward()
    optimizer.step()
    moved = {name for name, value in network.backbone.state_dict().items() if not torch.equal(value, begun[name])}
    blocks = {name.split(".")[1] for name in moved}
    assert blocks == {str(number) for number in range(3, 11)}, "the stem and the blocks of stride 2 and 4 are frozen"
    norms = {name for name, part in network.backbone.named_modules() if isinstance(part, torch.nn.BatchNorm2d)}
    assert not any(name.rpartition(".")[0] in norms for name in moved)


def test_the_lite0_backbone_reads_pixels_as_its_weights_do(small: Callable[..., Detector]) -> None:
    network: Any = models.build(small(name="lite0_fpn"), 3).eval()
    images, sizes = torch.rand(1, 3, 64, 64) * 255, torch.tensor([[64, 64]])
    plain = efficientnet_lite.EfficientNetLite0(network.backbone.strides).eval()
    plain.load_state_dict(network.backbone.state_dict())
    wanted = plain((images - efficientnet_lite.MEAN) / efficientnet_lite.STD)
    for one, other in zip(network.backbone(models.normalised(images, sizes)), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_weights_come_from_a_file_and_a_wrong_one_is_named(tmp_path: Path, small: Callable[..., Detector]) -> None:
    donor: Any = models.build(small(), 3)
    state = {key: value.contiguous() for key, value in donor.backbone.state_dict().items()}
    path = tmp_path / "backbone.safetensors"
    save_file(state, path)
    network: Any = models.build(small(weights=str(path)), 3)
    assert all(torch.equal(value, state[key]) for key, value in network.backbone.state_dict().items())
    state.pop("layer2.0.conv1.weight")
    save_file(state, path)
    with pytest.raises(UsageError, match=r"lacks 1 tensors of the backbone, such as layer2\.0\.conv1\.weight"):
        models.build(small(weights=str(path)), 3)
    with pytest.raises(UsageError, match="neither a file nor the name"):
        models.build(small(weights="no_such_weights"), 3)


def test_the_stage_four_detector_has_one_width() -> None:
    with pytest.raises(UsageError, match="r50_c4 is built with 64"):
        models.build(Detector(base_channels=32), 3)
