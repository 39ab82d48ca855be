"""Which detections take a true box at IoU 0.5: what average precision is made of, image by image.

As in COCO's evaluation: of each class and image the surest detections first, each takes the true box of the largest
overlap of at least 0.5 that is not taken yet (the last of equals).

Source: Lin et al., "Microsoft COCO: Common Objects in Context", arXiv 1405.0312, and its released evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from pycocotools.mask import iou
from torch import Tensor

OVERLAP = 0.5

Boxes = Sequence[Tensor]
"""Of each image, ``[k, 4]``: left, top, width, height."""


def outcomes(
    detected: tuple[Boxes, Sequence[Tensor], Sequence[Tensor]],
    true: tuple[Boxes, Sequence[Tensor]],
    classes: Sequence[str],
    most: int,
) -> dict[str, Tensor]:
    """Detections by class, as :func:`kdbench.results.pseudovalues.average_precision` takes them.

    ``detected`` are boxes, scores ``[k]`` and classes ``[k]`` of each image, ``true`` boxes and classes; of an image
    and class at most the ``most`` surest detections count.
    """
    arrays: dict[str, Tensor] = {}
    for number, name in enumerate(classes):
        parts: dict[str, list[Tensor]] = {"image": [], "score": [], "matched": [], "targets": []}
        for image, (boxes, score, label, real, kind) in enumerate(zip(*detected, *true, strict=True)):
            mine, due = label == number, real[kind == number]
            order = np.argsort(-score[mine].double().cpu().numpy(), kind="stable")[:most]
            parts["image"].append(torch.full((len(order),), image))
            parts["score"].append(score[mine].float().cpu()[order])
            parts["matched"].append(matched(boxes[mine].cpu()[order], due))
            parts["targets"].append(torch.tensor([len(due)]))
        arrays |= {f"{part} of {name}": torch.cat(values) for part, values in parts.items()}
    return arrays


def matched(detected: Tensor, true: Tensor) -> Tensor:
    """Whether each detection, the surest first, takes a true box: uint8 ``[k]``. Boxes are ``[·, 4]``, x, y, w, h."""
    takes = torch.zeros(len(detected), dtype=torch.uint8)
    if not len(detected) or not len(true):
        return takes
    overlaps = iou(detected.double().cpu().numpy(), true.double().cpu().numpy(), [0] * len(true))
    free = np.ones(len(true), dtype=bool)
    for row, mine in enumerate(overlaps):
        open_to = np.where(free, mine, -1.0)
        best = len(mine) - 1 - int(open_to[::-1].argmax())
        if open_to[best] >= OVERLAP:
            takes[row], free[best] = 1, False
    return takes
