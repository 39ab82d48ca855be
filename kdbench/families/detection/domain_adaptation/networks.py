"""Faster R-CNN of mmdet: its configuration from options, its losses, its predictions and what its RoI head says.

Boxes are [x1, y1, x2, y2] in pixels of the image as the network sees it; the background is the last class.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from kdbench.engine import own
from kdbench.engine.teachers import Outputs
from kdbench.errors import KdbenchError, UsageError
from kdbench.families.detection.domain_adaptation.lite0 import Lite0
from kdbench.families.detection.domain_adaptation.options import LITE0, Detector
from kdbench.networks import efficientnet_lite
from kdbench.networks.openmmlab import provide
from kdbench.plan.own import module_of

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
STAGES = {"strides": (1, 2, 2, 2), "dilations": (1, 1, 1, 1)}
STRIDES = (8, 16, 32)
"""Of a pyramid's levels."""
RATIOS = (0.5, 1.0, 2.0)
SCORE, OVERLAP, DETECTIONS = 0.05, 0.5, 100  # of the final detections
LOSSES = ("rpn_cls", "rpn_box", "roi_cls", "roi_box")


def configuration(options: Detector, classes: int) -> dict[str, Any]:
    """mmdet's configuration of the detector."""
    parts = {"r18_fpn": _resnet_pyramid, "lite0_fpn": _lite0_pyramid, "r50_c4": _stage_four}[options.name](
        options, classes
    )
    nms = {"type": "nms", "iou_threshold": 0.7}
    few, many = options.proposals, options.training_proposals

    def sampler(number: int, positive: float) -> dict[str, Any]:
        share = {"num": number, "pos_fraction": positive, "neg_pos_ub": -1, "add_gt_as_proposals": False}
        return {"type": "RandomSampler", **share}

    def assigner(positive: float, negative: float, low: float, match: bool) -> dict[str, Any]:
        bounds = {"pos_iou_thr": positive, "neg_iou_thr": negative, "min_pos_iou": low}
        return {"type": "MaxIoUAssigner", **bounds, "match_low_quality": match, "ignore_iof_thr": -1}

    more = {"pos_weight": -1, "debug": False}
    rpn = {"assigner": assigner(0.7, 0.3, 0.3, True), "sampler": sampler(options.anchors, 0.5)}
    rcnn = {"assigner": assigner(0.5, 0.5, 0.5, False), "sampler": sampler(options.regions, 0.25)}
    final = {"score_thr": SCORE, "nms": {"type": "nms", "iou_threshold": OVERLAP}, "max_per_img": DETECTIONS}
    return {
        "type": "FasterRCNN",
        **parts,
        "train_cfg": {
            "rpn": {**rpn, "allowed_border": -1, **more},
            "rpn_proposal": {"nms_pre": 6 * many, "max_per_img": many, "nms": nms, "min_bbox_size": 0},
            "rcnn": {**rcnn, **more},
        },
        "test_cfg": {
            "rpn": {"nms_pre": 20 * few, "max_per_img": few, "nms": nms, "min_bbox_size": 0},
            "rcnn": final,
        },
    }


def _coder(*stds: float) -> dict[str, Any]:
    return {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4, "target_stds": list(stds)}


def _rpn(options: Detector, channels: int, strides: Sequence[int]) -> dict[str, Any]:
    shape = {"scales": list(options.anchor_scales), "ratios": list(RATIOS), "strides": list(strides)}
    return {
        "type": "RPNHead",
        "in_channels": channels,
        "feat_channels": channels,
        "anchor_generator": {"type": "AnchorGenerator", **shape},
        "bbox_coder": _coder(1, 1, 1, 1),
        "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True},
        "loss_bbox": {"type": "L1Loss"},
    }


def _roi(size: int, samples: int, channels: int, strides: Sequence[int], finest: int) -> dict[str, Any]:
    layer = {"type": "RoIAlign", "output_size": size, "sampling_ratio": samples, "use_torchvision": True}
    extractor = {"type": "SingleRoIExtractor", "roi_layer": layer, "out_channels": channels}
    return {**extractor, "featmap_strides": list(strides), "finest_scale": finest}


def _head(kind: str, classes: int, channels: int, **more: Any) -> dict[str, Any]:
    return {
        "type": kind,
        "in_channels": channels,
        "roi_feat_size": 7,
        "num_classes": classes,
        "reg_class_agnostic": False,
        "bbox_coder": _coder(0.1, 0.1, 0.2, 0.2),
        "loss_cls": {"type": "CrossEntropyLoss"},
        "loss_bbox": {"type": "L1Loss"},
        **more,
    }


def _pyramid(options: Detector, classes: int, backbone: Mapping[str, Any], channels: Sequence[int]) -> dict[str, Any]:
    width, strides = options.neck_channels, STRIDES[: options.levels]
    neck = {"in_channels": list(channels), "out_channels": width, "num_outs": options.levels}
    roi_head = {
        "type": "StandardRoIHead",
        "bbox_roi_extractor": _roi(7, 2, width, strides, 4 * strides[0]),
        "bbox_head": _head("Shared2FCBBoxHead", classes, width, fc_out_channels=options.head_channels),
    }
    return {
        "backbone": dict(backbone),
        "neck": {"type": "FPN", **neck},
        "rpn_head": _rpn(options, width, strides),
        "roi_head": roi_head,
    }


def _resnet_pyramid(options: Detector, classes: int) -> dict[str, Any]:
    base, stages = options.base_channels, options.levels + 1
    backbone = {
        **{"type": "ResNet", "depth": 18, "base_channels": base, "num_stages": stages},
        **{name: values[:stages] for name, values in STAGES.items()},
        "out_indices": range(1, stages),
        **{"frozen_stages": -1, "norm_cfg": {"type": "GN", "num_groups": 8}, "norm_eval": False, "style": "pytorch"},
    }
    return _pyramid(options, classes, backbone, [base * 2**level for level in range(1, stages)])


def _lite0_pyramid(options: Detector, classes: int) -> dict[str, Any]:
    strides = STRIDES[: options.levels]
    backbone = {"type": Lite0, "strides": strides, "mean": MEAN, "std": STD}
    return _pyramid(options, classes, backbone, [efficientnet_lite.CHANNELS[stride] for stride in strides])


def _stage_four(options: Detector, classes: int) -> dict[str, Any]:
    base, norm = options.base_channels, {"type": "BN", "requires_grad": False}
    common = {"depth": 50, "norm_cfg": norm, "norm_eval": True, "style": "pytorch"}
    stages = {"num_stages": 3, "strides": (1, 2, 2), "dilations": (1, 1, 1), "out_indices": (2,), "frozen_stages": 1}
    shared = {"type": "ResLayer", "stage": 3, "stride": 2, "dilation": 1, **common}
    if base != 64:
        raise UsageError(f"student.base_channels={base}: r50_c4 is built with 64, as its RoI head's stage is.")
    roi_head = {
        "type": "StandardRoIHead",
        "shared_head": shared,
        "bbox_roi_extractor": _roi(14, 0, 16 * base, (16,), 56),
        "bbox_head": _head("BBoxHead", classes, 32 * base, with_avg_pool=True),
    }
    return {
        "backbone": {"type": "ResNet", "base_channels": base, **stages, **common},
        "rpn_head": _rpn(options, 16 * base, (16,)),
        "roi_head": roi_head,
    }


def build(options: Detector, classes: int) -> nn.Module:
    """A detector, initialised from torch's global stream; its backbone from ``options.weights`` if there are any."""
    provide()
    if module_of(options.name):
        return own.build(options.name, "student", options.options, classes=classes)
    import mmdet.models  # noqa: F401
    from mmdet.registry import MODELS
    from mmengine.config import ConfigDict

    before = logging.root.manager.disable
    logging.disable(logging.INFO)  # mmengine tells of every initialised tensor
    try:
        network: nn.Module = MODELS.build(ConfigDict(configuration(options, classes)))
        network.init_weights()  # type: ignore[operator]
    finally:
        logging.disable(before)
    if options.weights is not None:
        _begin_with(network, _read_weights(options.weights), options.weights)
    return network


def _read_weights(name: str) -> Mapping[str, Tensor]:
    if name == LITE0:
        return efficientnet_lite.imagenet_weights()
    path = Path(name)
    if path.suffix == ".safetensors" and path.exists():
        from safetensors.torch import load_file

        return load_file(path)
    if path.exists():
        state: Mapping[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        return state
    import torchvision

    try:
        weights = torchvision.models.get_weight(name)
    except ValueError:
        raise UsageError(f"student.weights={name}: neither a file nor the name of torchvision weights.") from None
    hub: Mapping[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
    return hub


def _begin_with(network: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Load tensors by their names into the backbone and, where it has one, the RoI stage.

    The names are those of the backbone: torchvision's (conv1, bn1, layer1 … layer4) for a ResNet.
    """
    state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    parts = [network.get_submodule("backbone")]
    if any(key == "roi_head.shared_head" for key, _ in network.named_modules()):
        parts.append(network.get_submodule("roi_head.shared_head"))
    wanted = {key for part in parts for key in part.state_dict() if not key.endswith("num_batches_tracked")}
    if missing := sorted(wanted - state.keys()):
        raise UsageError(f"student.weights={name} lacks {len(missing)} tensors of the backbone, such as {missing[0]}.")
    for part in parts:
        part.load_state_dict({key: state[key] for key in part.state_dict() if key in state}, strict=False)


def normalised(images: Tensor, sizes: Tensor) -> Tensor:
    """Images of values 0…255 ``[b, 3, H, W]`` as the network reads them; what lies outside ``sizes`` becomes 0."""
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (MEAN, STD))
    result = (images - mean) / std
    for image, (height, width) in zip(result, sizes.tolist(), strict=True):
        image[:, height:] = 0
        image[:, :, width:] = 0
    return result


def samples(images: Tensor, sizes: Tensor) -> list[Any]:
    """mmdet's description of each image."""
    from mmdet.structures import DetDataSample

    padded = tuple(images.shape[-2:])

    def facts(size: list[int]) -> dict[str, Any]:
        same = {"img_shape": tuple(size), "ori_shape": tuple(size)}
        return {**same, "pad_shape": padded, "batch_input_shape": padded, "scale_factor": (1.0, 1.0), "img_id": 0}

    return [DetDataSample(metainfo=facts(size)) for size in sizes.tolist()]


@dataclass
class Truth:
    """What one image holds: ``boxes`` float32 ``[n, 4]``, ``labels`` int64 ``[n]``."""

    boxes: Tensor
    labels: Tensor


def losses(
    network: Any, features: Sequence[Tensor], samples: Sequence[Any], truth: Sequence[Truth]
) -> dict[str, Tensor]:
    """The four detection losses of images, from their features ``[b, c, h, w]`` a level.

    ``rpn_cls`` (binary cross-entropy of the sampled anchors), ``rpn_box`` (L1), ``roi_cls`` (cross-entropy of the
    sampled regions), ``roi_box`` (L1), each summed and divided by the number of samples, positive and negative, in all
    images together. An image without a true box trains everything as background. Source: Ren et al., arXiv 1506.01497.
    """
    from mmengine.structures import InstanceData

    def labelled(sample: Any, one: Truth, labels: Tensor) -> Any:
        copied = sample.new(metainfo=sample.metainfo)
        copied.gt_instances = InstanceData(bboxes=one.boxes, labels=labels)
        return copied

    pairs = list(zip(samples, truth, strict=True))
    objects = [labelled(sample, one, torch.zeros_like(one.labels)) for sample, one in pairs]
    rpn, proposals = network.rpn_head.loss_and_predict(
        tuple(features), objects, proposal_cfg=network.train_cfg.rpn_proposal
    )
    roi = network.roi_head.loss(
        tuple(features), proposals, [labelled(sample, one, one.labels) for sample, one in pairs]
    )
    values = (rpn["loss_rpn_cls"], rpn["loss_rpn_bbox"], roi["loss_cls"], roi["loss_bbox"])
    return {name: _sum(value) for name, value in zip(LOSSES, values, strict=True)}


def _sum(value: Tensor | Sequence[Tensor]) -> Tensor:
    return value.sum() if isinstance(value, Tensor) else torch.stack([part.sum() for part in value]).sum()


def classify(network: Any, features: Sequence[Tensor], rois: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the RoI head says of regions ``[n, 5]`` (image, box): logits ``[n, C+1]``, deltas ``[n, 4C]``, and the
    spatial mean of the region's feature ``[n, d]``."""
    outputs = network.roi_head._bbox_forward(tuple(features), rois)
    return outputs["cls_score"], outputs["bbox_pred"], outputs["bbox_feats"].mean(dim=(2, 3))


def predict(network: Any, images: Tensor, sizes: Tensor) -> Outputs:
    """Detections of a batch, and all that the RoI head said of the region proposals. Rows are padded with zeros.

    ``boxes`` ``[b, m, 4]`` clipped to the image, ``scores`` ``[b, m]`` (0 where padded), ``labels`` ``[b, m]``;
    ``proposals`` ``[b, r, 4]``, ``proposed`` int64 ``[b]`` (how many there are), ``logits`` ``[b, r, C+1]``, ``deltas``
    ``[b, r, 4C]``, ``features`` ``[b, r, d]``.

    Raises :class:`KdbenchError` for a head that says NaN or infinity: such regions are dropped as if they were empty.
    """
    maps = network.extract_feat(normalised(images, sizes))
    metas = [description.metainfo for description in samples(images, sizes)]
    objectness = network.rpn_head(maps)
    proposed = network.rpn_head.predict_by_feat(*objectness, batch_img_metas=metas, rescale=False)
    regions = [one.bboxes for one in proposed]
    rois = as_rois(regions)
    counts = [len(boxes) for boxes in regions]
    classified = classify(network, maps, rois)
    for name, values in {"region proposal": itertools.chain(*objectness), "RoI": classified}.items():
        if not all(bool(torch.isfinite(value).all()) for value in values):
            raise KdbenchError(f"The detector's {name} head says NaN or infinity: weights or images are not finite.")
    said = [torch.split(part, counts) for part in (rois, *classified)]
    head, settings = network.roi_head.bbox_head, network.roi_head.test_cfg
    detections = head.predict_by_feat(*said[:3], batch_img_metas=metas, rcnn_test_cfg=settings, rescale=False)
    return {
        **{name: _padded([getattr(one, mine) for one in detections]) for name, mine in DETECTED.items()},
        "proposals": _padded(regions),
        "proposed": torch.tensor(counts, device=images.device),
        **{name: _padded(part) for name, part in zip(("logits", "deltas", "features"), said[1:], strict=True)},
    }


DETECTED = {"boxes": "bboxes", "scores": "scores", "labels": "labels"}


def as_rois(regions: Sequence[Tensor]) -> Tensor:
    """Boxes of each image as one list ``[n, 5]`` of (image, box)."""
    numbered = [torch.cat([boxes.new_full((len(boxes), 1), i), boxes], dim=1) for i, boxes in enumerate(regions)]
    return torch.cat(numbered)


def _padded(rows: Sequence[Tensor]) -> Tensor:
    return pad_sequence(list(rows), batch_first=True)
