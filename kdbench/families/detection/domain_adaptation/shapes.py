"""Generated two-domain images: discs, squares and rare small dots; the target domain is stained and blurred."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter

from kdbench.engine.seeds import axis
from kdbench.families.detection.domain_adaptation.data import Annotated, Domains, Images, Scale
from kdbench.families.detection.domain_adaptation.networks import Truth
from kdbench.families.detection.domain_adaptation.options import AdaptationData
from kdbench.hashing import digest

CLASSES = ("disc", "square", "dot")
COLOURS = ((90, 60, 150), (200, 90, 90), (60, 120, 70))
RADII = ((9, 12), (6, 9), (3, 4.5))
SHARES = (0.4, 0.4, 0.2)
SIDE = 64
STAIN = np.array([[0.5, 0.4, 0.1], [0.1, 0.6, 0.3], [0.3, 0.1, 0.6]])


def load(name: str, options: AdaptationData, scale: Scale) -> Domains:
    """The generated pair; the same for every run seed."""
    parts = {
        "source_train": _split(options, "source", 0, options.source_images, scale),
        "source_val": _split(options, "source", 1, max(2, options.source_images // 4), scale),
        "target_train": hidden(options, scale),
        "target_val": _split(options, "target", 1, max(2, options.target_images // 2), scale),
        "target_test": _split(options, "target", 2, max(2, options.target_images // 2), scale),
    }
    content = [[image.tolist() for image in part.images.sources] for part in parts.values()]  # type: ignore[union-attr]
    boxes = [[one.boxes.tolist() for one in part.truth] for part in parts.values()]
    return Domains(
        name,
        CLASSES,
        parts["source_train"],
        parts["source_val"],
        parts["target_train"].images,
        parts["target_val"],
        parts["target_test"],
        digest({"images": content, "boxes": boxes}),
    )


def hidden(options: AdaptationData, scale: Scale) -> Annotated:
    """The target's training images with their boxes."""
    return _split(options, "target", 0, options.target_images, scale)


def _split(options: AdaptationData, domain: str, part: int, count: int, scale: Scale) -> Annotated:
    rng = np.random.default_rng(axis(part, f"shapes of the {domain}"))
    shift = options.shift if domain == "target" else 0.0
    drawn = [_scene(rng, shift) for _ in range(count)]
    names = tuple(f"{domain}_{part}_{number:03d}" for number in range(count))
    return Annotated(Images(names, [image for image, _ in drawn], scale), [truth for _, truth in drawn])


def _scene(rng: np.random.Generator, shift: float) -> tuple[np.ndarray, Truth]:
    """One image uint8 ``[64, 64, 3]`` with three to five shapes whose boxes overlap little."""
    picture = Image.new("RGB", (SIDE, SIDE), tuple(int(v) for v in rng.integers(205, 235, size=3)))
    pen, boxes, labels = ImageDraw.Draw(picture), list[list[float]](), list[int]()
    for label in [2, *rng.choice(3, size=rng.integers(2, 5), p=SHARES).tolist()]:
        for _ in range(20):
            radius = rng.uniform(*RADII[label])
            x, y = rng.uniform(radius, SIDE - radius, size=2)
            box = [float(round(value)) for value in (x - radius, y - radius, x + radius, y + radius)]
            if all(box[2] <= b[0] or b[2] <= box[0] or box[3] <= b[1] or b[3] <= box[1] for b in boxes):
                break
        else:
            continue
        colour = tuple(int(v) for v in np.clip(np.array(COLOURS[label]) + rng.normal(scale=15, size=3), 0, 255))
        corners = [box[0], box[1], box[2] - 1, box[3] - 1]
        (pen.rectangle if label == 1 else pen.ellipse)(corners, fill=colour)
        boxes.append(box)
        labels.append(label)
    truth = Truth(torch.tensor(boxes), torch.tensor(labels))
    blurred = picture.filter(ImageFilter.GaussianBlur(1.2 * shift)) if shift else picture
    values = np.asarray(blurred, dtype=np.float64) + rng.normal(scale=4, size=(SIDE, SIDE, 3))
    mixed = (1 - shift) * values + shift * values @ STAIN.T * 0.9
    return np.clip(np.round(mixed), 0, 255).astype(np.uint8), truth
