"""Precision and recall of confident and low-confidence pseudo-labels against the target's hidden training labels.

    python benchmarks/pseudo_labels.py [--json] [--images N] RUN/record.json …

For each finished run of source-free adaptation: the labels of the source detector, with which adaptation began, and of
the deployed teacher, on the target's training images in their weak view, by class. Thresholds are the run's own, where
its method has them, else LPLD's. ``confident``: detections above the threshold, against all true boxes.
``low-confidence``: the regions that LPLD mines, against the true boxes that no confident label is at. ``random``: as
many of the regions apart from confident labels, drawn at random, with the class they are most like. A label is right
when its class is and its IoU with a true box is at least 0.5.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from kdbench.engine.runner import load_task
from kdbench.engine.seeds import axis
from kdbench.engine.stages import StageStore
from kdbench.families.detection.domain_adaptation import domains
from kdbench.families.detection.domain_adaptation.data import collate
from kdbench.families.detection.domain_adaptation.label_quality import Quality, matches
from kdbench.families.detection.domain_adaptation.methods.lpld import Hyperparameters, decoded, low_confidence
from kdbench.families.detection.domain_adaptation.networks import Truth
from kdbench.families.detection.domain_adaptation.pseudo_labels import high_confidence
from kdbench.families.detection.domain_adaptation.task import SOURCE, AdaptationTask, forward
from kdbench.plan.config import from_json
from kdbench.results import record as records


@torch.no_grad()
def quality(task: AdaptationTask, network: Any, options: Hyperparameters, images: int | None) -> Quality:
    """The labels that ``network`` gives the target's training images."""
    labelled = domains.hidden_of_run(task.config.dataset, task.config.data, task.config.seed)
    told = Quality(task.domains.classes)
    generator = torch.Generator().manual_seed(axis(task.config.seed, "random regions"))
    for row in range(len(labelled))[:images]:
        batch = collate(labelled, [row])
        (truth,) = batch.truth  # type: ignore[attr-defined]
        outputs = forward(network.eval(), batch)
        (confident,) = high_confidence(outputs, options.threshold)
        told.add("confident", confident, truth, torch.ones(len(truth.boxes), dtype=torch.bool))
        p, z, d = (outputs[name][0] for name in ("proposals", "logits", "deltas"))
        every = Truth(decoded(p, z, d), z[:, :-1].argmax(dim=1))
        chosen = low_confidence(p, z, d, confident.boxes, options)
        anywhere = Hyperparameters(overlap=options.overlap, foreground=0.0, background=1.0)
        apart = low_confidence(p, z, d, confident.boxes, anywhere).nonzero().flatten()
        drawn = apart[torch.randperm(len(apart), generator=generator)[: int(chosen.sum())]]
        left = ~matches(confident, truth).any(dim=0) if len(confident.boxes) else torch.ones(len(truth.boxes)).bool()
        for kind, mine in (("low-confidence", chosen), ("random", drawn)):
            told.add(kind, Truth(every.boxes[mine], every.labels[mine]), truth, left)
    return told


def analyse(path: Path, images: int | None) -> list[dict[str, Any]]:
    """Rows for the source detector and the deployed one of a finished run."""
    record = records.loads(path.read_text(), path)
    config = from_json(record.config)
    root = path.parents[3]
    task = load_task(config, StageStore(root / "stages"))
    if not isinstance(task, AdaptationTask):
        raise SystemExit(f"{path} is no run of source-free adaptation.")
    for stage in task.foundation():
        task.store.ensure(stage)
    known = {field.name for field in fields(Hyperparameters)}
    given = {name: value for name, value in vars(config.hyperparameters).items() if name in known}
    networks = {"source": load_file(task.folder(SOURCE) / "weights.safetensors")}
    if config.method != "alone":
        networks[config.method] = load_file(path.parent / "student.safetensors")
    rows = []
    for name, weights in networks.items():
        network = task.network()
        network.load_state_dict(weights)
        told = quality(task, network, Hyperparameters(**given), images).table()
        rows += [{"run": config.method, "seed": config.seed, "detector": name, **row} for row in told]
    return rows


def main() -> None:
    """Print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", nargs="+", type=Path, help="record.json of finished runs, where they were made")
    parser.add_argument("--images", type=int, help="only the first so many images")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    chosen = parser.parse_args()
    rows = [row for path in chosen.records for row in analyse(path.resolve(), chosen.images)]
    if chosen.json:
        told = [{k: None if v != v else v for k, v in row.items()} for row in rows]
        print(json.dumps(told, indent=1))
        return
    shown = [[f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    lines = [list(rows[0]), *shown]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in (lines[0], ["-" * width for width in widths], *lines[1:]):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |")


if __name__ == "__main__":
    main()
