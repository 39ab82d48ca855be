"""Time per training step: the engine against a hand-written PyTorch loop; torchdistill too, where it is installed.

    python benchmarks/engine_overhead.py [--quick] [--json] [--rounds N]

Same networks, losses, optimizer and batches; every loop must end with the same weights, bit for bit, or the script
fails. 'step' runs from the beginning of one training step to that of the next (median of a training); 'fit' is the
whole training: set-up, the validations of the graph cases and, in the engine alone, F1, confusion and checkpoints.
"""

from __future__ import annotations

import copy
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import Row, alternate, options, report, row
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR
from training import (
    Clock,
    Rows,
    Silent,
    Trained,
    VectorModule,
    VectorSession,
    VectorTask,
    by_engine,
    mlp,
    same_weights,
    shuffled_rows,
    unchanged,
    vector_config,
    weights,
)

from kdbench.engine.losses import distillation_kl, info_nce
from kdbench.engine.runner import Session
from kdbench.engine.teachers import FrozenTeacher
from kdbench.plan.config import RunConfig, expand

HAND, ENGINE, TORCHDISTILL = "hand-written loop", "kdbench engine", "torchdistill"
ALPHA, TEMPERATURE, TAU = 0.5, 4.0, 0.07  # defaults of kd.py and lingugkd.py
CLASSES, WIDTH, BATCH = 10, 256, 128

Contestants = Mapping[str, Callable[[], Trained]]


def main() -> None:
    """Measure every case."""
    chosen = options(__doc__, rounds=8, quick_rounds=2)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as root:
        for method in ("kd", "lingugkd"):
            for batch in (None, BATCH):
                case = f"{method}, 2,277 nodes, {f'batches of {batch}' if batch else 'full batch'}"
                rows += measure(case, graph_case(method, batch, chosen.quick, Path(root)), chosen.rounds)
        for width in (256, 1024):
            case = f"kd, MLP of width {width}, batches of {BATCH}, live teacher"
            rows += measure(case, vector_case(width, chosen.quick, Path(root)), chosen.rounds)
    report("Time per training step", rows, chosen)


def measure(case: str, contestants: Contestants, rounds: int) -> list[Row]:
    """Compare all with the hand-written loop."""
    trainings = alternate(contestants, rounds)
    steps = same_weights(trainings, HAND)
    medians = {name: [1e3 * statistics.median(t.steps) for t in results] for name, results in trainings.items()}
    totals = {name: [t.seconds for t in results] for name, results in trainings.items()}
    rows = []
    for name in contestants.keys() - {HAND}:
        more = statistics.median(1e3 * (a - b) for a, b in zip(medians[name], medians[HAND], strict=True))
        rows.append(row(f"{case}: step", "ms", medians, name, HAND, overhead_us=round(more), steps=steps))
        rows.append(row(f"{case}: fit", "s", totals, name, HAND))
    return sorted(rows, key=lambda r: r.this)


def graph_case(method: str, batch: int | None, quick: bool, root: Path) -> Contestants:
    """Node classification on a generated graph of Cora's size (400 words), its teacher cached."""
    epochs = (3 if quick else 10) if batch else (15 if quick else 60)
    size = ["data.nodes=2277", "data.classes=7", "data.degree=4.58", "data.words=null", "student.width=256"]
    every = min(epochs, 10)
    trainer = [f"trainer.max_epochs={epochs}", f"trainer.check_val_every_n_epoch={every}", "trainer.accelerator=cpu"]
    batches = [f"data.batch_size={batch}"] if batch else []
    (config,) = expand(["task=gnn", f"method={method}", *size, *trainer, *batches])
    session = Session(config, root, root, Silent())
    for stage in session.stages():
        session.store.ensure(stage)

    def engine() -> Trained:
        module, _ = session.assemble()
        first = module.get_submodule("student.states.0")
        return by_engine(session, module, first, Path(tempfile.mkdtemp(dir=root)))

    def hand() -> Trained:
        module, _ = session.assemble()
        return graph_by_hand(session, module.student, module.networks)

    return {HAND: hand, ENGINE: engine}


def graph_by_hand(session: Session, student: Any, extras: Any) -> Trained:
    """What one writes without a framework: train, validate by accuracy, keep the best weights."""
    task: Any = session.task
    config, graph, clock = session.config, task.graph, Clock(student.states[0])
    table = task.cache.read(torch.arange(len(graph.y)))
    start = time.perf_counter()
    x, edges, y, val = graph.x, graph.edges, graph.y, graph.ids("val")
    loader = task.data().train_dataloader()
    if config.data.batch_size is None:
        fixed = {name: value[graph.ids("train")] for name, value in table.items()}

    def teacher(name: str, nodes: Tensor) -> Tensor:
        return fixed[name] if config.data.batch_size is None else table[name][nodes]

    def kd(nodes: Tensor) -> Tensor:
        logits = student(x, edges)[nodes]
        soft = distillation_kl(logits, teacher("logits", nodes), TEMPERATURE)
        return (1 - ALPHA) * F.cross_entropy(logits, y[nodes]) + ALPHA * soft

    def lingugkd(nodes: Tensor) -> Tensor:
        states = [student.states[0](x, edges)]
        for layer in student.states[1:]:
            states.append(layer(states[-1], edges))
        logits = student.head(student.post(states[-1], edges))[nodes]
        targets = y[nodes]
        negatives, positives = targets[:, None] != targets[None, :], torch.arange(len(nodes))
        contrasts = [
            info_nce(state[nodes], extras.projector(hop, teacher(f"hop{hop}", nodes)), positives, negatives, TAU)
            for hop, state in enumerate(states)
        ]
        contrast = (extras.weights.layers.softmax(0) * torch.stack(contrasts)).sum()
        alpha = extras.weights.losses.softmax(0)
        return alpha[0] * F.cross_entropy(logits, targets) + alpha[1] * contrast

    loss = {"kd": kd, "lingugkd": lingugkd}[config.method]
    epochs, best, kept = config.trainer.max_epochs, -1.0, {}
    optimizer = AdamW(
        [*student.parameters(), *extras.parameters()],
        lr=config.optimizer.lr,
        weight_decay=config.optimizer.weight_decay,
    )
    schedule = CosineAnnealingLR(optimizer, T_max=epochs)
    student.train()
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        for nodes in loader:
            optimizer.zero_grad()
            loss(nodes).backward()
            optimizer.step()
        schedule.step()
        if (epoch + 1) % config.trainer.check_val_every_n_epoch == 0:
            student.eval()
            with torch.no_grad():
                accuracy = float((student(x, edges)[val].argmax(dim=-1) == y[val]).float().mean())
            student.train()
            if accuracy > best:
                best, kept = accuracy, {name: value.clone() for name, value in student.state_dict().items()}
    seconds = time.perf_counter() - start
    assert kept
    return Trained(list(clock.intervals()), seconds, weights({"student": student, "method": extras}))


def vector_case(width: int, quick: bool, root: Path) -> Contestants:
    """Random vectors, a student of 3 blocks, a frozen teacher of 6 blocks that every loop runs at each step."""
    epochs = 2
    data = Rows(BATCH * (10 if quick else 25), WIDTH, CLASSES)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, network = mlp(WIDTH, width, 3, CLASSES), mlp(WIDTH, width, 6, CLASSES)
    network.eval().requires_grad_(False)
    config = vector_config(epochs)
    hand = partial(vectors_by_hand, first, network, data, config)

    def engine() -> Trained:
        student = copy.deepcopy(first)
        session = VectorSession(config, VectorTask(data, BATCH), root)
        module = VectorModule(student, config.optimizer)
        teacher = FrozenTeacher(network, lambda network, batch: {"logits": network(batch[0])})
        module.attach(session.method, {"teacher": teacher})
        return by_engine(session, module, student[0], Path(tempfile.mkdtemp(dir=root)))

    contestants: dict[str, Callable[[], Trained]] = {HAND: hand, ENGINE: engine}
    if importlib.util.find_spec("torchdistill"):
        contestants[TORCHDISTILL] = partial(vectors_by_torchdistill, first, network, data, config)
    return contestants


def vectors_by_hand(first: nn.Sequential, network: nn.Module, data: Rows, config: RunConfig) -> Trained:
    """Plain KD without a framework."""
    student, epochs = copy.deepcopy(first), config.trainer.max_epochs
    clock, start = Clock(student[0]), time.perf_counter()
    sampler = shuffled_rows(data)
    loader = torch.utils.data.DataLoader(data, BATCH, sampler=sampler, collate_fn=unchanged)
    optimizer = AdamW(student.parameters(), lr=config.optimizer.lr, weight_decay=config.optimizer.weight_decay)
    schedule = CosineAnnealingLR(optimizer, T_max=epochs)
    student.train()
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for x, y, _ in loader:
            with torch.no_grad():
                target = network(x)
            optimizer.zero_grad()
            logits = student(x)
            soft = distillation_kl(logits, target, TEMPERATURE)
            loss = (1 - ALPHA) * F.cross_entropy(logits, y) + ALPHA * soft
            loss.backward()
            optimizer.step()
        schedule.step()
    return Trained(list(clock.intervals()), time.perf_counter() - start, weights({"student": student}))


class TheirKD(nn.Module):
    """The engine's KD term where torchdistill expects a loss: its own KDLoss rounds otherwise."""

    def forward(self, student: Mapping[str, Mapping[str, Tensor]], teacher: Mapping, targets: Tensor) -> Tensor:
        return distillation_kl(student["."]["output"], teacher["."]["output"], TEMPERATURE)


def vectors_by_torchdistill(first: nn.Sequential, network: nn.Module, data: Rows, config: RunConfig) -> Trained:
    """Plain KD in torchdistill's distillation box, driven as its examples drive it but for their log lines."""
    from torchdistill.core.distillation import get_distillation_box
    from torchdistill.datasets.registry import register_collate_func

    register_collate_func(unchanged)
    student, epochs, device = copy.deepcopy(first), config.trainer.max_epochs, torch.device("cpu")
    clock, start = Clock(student[0]), time.perf_counter()
    logits = {"is_from_teacher": False, "module_path": ".", "io": "output"}
    wrapper = {"key": "SimpleLossWrapper", "kwargs": {"input": logits, "target": {"uses_label": True}}}
    cross_entropy = {"criterion": {"key": "CrossEntropyLoss", "kwargs": {}}, "criterion_wrapper": wrapper}
    terms = {"ce": {**cross_entropy, "weight": 1 - ALPHA}, "kd": {"criterion": TheirKD(), "weight": ALPHA}}
    optimizer = {"lr": config.optimizer.lr, "weight_decay": config.optimizer.weight_decay}
    asked = {
        "num_epochs": epochs,
        "train_data_loader": {
            "dataset_id": "train",
            "requires_supp": False,
            "sampler": {"class_or_func": shuffled_rows},
            "collate_fn": "unchanged",
            "kwargs": {"batch_size": BATCH},
        },
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "AdamW", "kwargs": optimizer},
        "scheduler": {"key": "CosineAnnealingLR", "kwargs": {"T_max": epochs}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": terms}},
    }
    box = get_distillation_box(network, student, {"train": data}, asked, device, None, False, 1)
    for epoch in range(epochs):
        box.pre_epoch_process(epoch=epoch)
        box.train_data_loader.sampler.set_epoch(epoch)
        for x, y, more in box.train_data_loader:
            loss = box.forward_process(x, y, more)
            box.post_forward_process(loss=loss)
            if not torch.isfinite(loss):
                raise ValueError(f"loss = {loss}")
        box.post_epoch_process()
    return Trained(list(clock.intervals()), time.perf_counter() - start, weights({"student": student}))


if __name__ == "__main__":
    main()
