"""What arms cost, side by side: forward passes of their students, training steps, operations and memory.

Rounds go through the arms there and back, so that a machine that slows down slows all of them. A forward pass is that
of the student as it is deployed, in eval mode; its time does not depend on its weights, which are those that it begins
with. A training step is all that happens to a batch: inputs, teachers, losses, gradients, optimiser, callbacks; what
loads the batch and validates is not part of it.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from kdbench.engine import costs
from kdbench.engine.distributed import check_place, processor_threads
from kdbench.engine.fitting import fit
from kdbench.engine.module import DistillationModule
from kdbench.engine.runner import Session, Silent, load_method
from kdbench.errors import UsageError
from kdbench.plan.catalog import imported, kind_module, method
from kdbench.plan.config import RunConfig, expand, run_folder
from kdbench.plan.family import require_extra
from kdbench.results.measured import BUSY, Measurement
from kdbench.results.record import group_of

WARM_UP, FEWEST, MOST, SECONDS = 3, 3, 30, 1.0
"""Of a round's forward passes and steps: those that are not timed, and how many are: until a second is over."""
EPOCHS = 1_000_000
"""More than a measured fit comes to."""


class Bench:
    """One arm, ready to be measured: its stages are done."""

    def __init__(self, config: RunConfig, root: Path) -> None:
        check_place(config.trainer.in_one_process())
        if config.trainer.processes > 1:
            raise UsageError("What a run of several processes costs is not measured: leave out trainer.devices.")
        self.config = config
        self.session = Session(config, root, run_folder(root, config), Silent())
        for stage in self.session.stages():
            self.session.store.ensure(stage)
        task = self.session.task
        self.device, self.example = task.accelerator(), task.example()
        rows = task.rows_of(self.example)
        self.examples, self.first = len(rows), task.batch_of(rows[:1])

    def assemble(self) -> DistillationModule:
        """The arm as it begins to train, made anew: a method may keep what an earlier fit left."""
        self.session.method = load_method(self.config)
        return self.session.assemble()[0].to(self.device)

    def forward(self, module: DistillationModule, batch: Any) -> Callable[[], Any]:
        """One forward pass of the deployed student, waited for."""
        there = module.eval().transfer_batch_to_device(batch, self.device, 0)

        def once() -> None:
            with torch.no_grad():
                module.predict(there)
            _wait(self.device)

        return once

    def steps(self, module: DistillationModule, seconds: float = SECONDS) -> list[float]:
        """Seconds of training steps, one after another; empty where the student is deployed as it begins."""
        if not self.session.method.epochs(self.config.trainer.max_epochs):
            return []
        clock, objective = Clock(self.device, seconds), module.train().objective
        options = replace(
            self.config.trainer, max_steps=None, check_val_every_n_epoch=EPOCHS, checkpoint_every_n_epochs=EPOCHS
        )
        callbacks = [Begins(clock), objective, *objective.companions(), Ends(clock)]
        with tempfile.TemporaryDirectory() as folder:
            data = self.session.method.data(self.session.task)
            with suppress(Enough):
                fit(module, data, options, EPOCHS, self.config.seed, Path(folder), callbacks)
        return clock.seconds

    def measure(self, rounds: list[dict[str, Any]]) -> None:
        """One round of this arm: milliseconds of its parts, added to the rounds."""
        module = self.assemble()
        forward = {"one": timed(self.forward(module, self.first)), "batch": timed(self.forward(module, self.example))}
        rounds.append({**forward, "step": self.steps(module)})

    def facts(self) -> dict[str, Any]:
        """What is counted, not timed."""
        module = self.assemble()
        flops = costs.flops(self.forward(module, self.example))
        parameters = {"parameters": costs.parameters(module.student), "trained_parameters": costs.parameters(module)}
        return {**parameters, "examples": self.examples, "flops": flops}


class Enough(Exception):
    """Ends a fit of which enough steps were timed."""


class Clock:
    """Times steps until ``seconds`` are over, the first few not counted."""

    def __init__(self, device: torch.device, seconds: float) -> None:
        self.device, self.budget = device, seconds
        self.seconds: list[float] = []
        self._left, self._since = WARM_UP, 0.0

    def start(self) -> None:
        """A step begins."""
        _wait(self.device)
        self._since = time.perf_counter()

    def stop(self) -> None:
        """It ended. Raises :class:`Enough`."""
        _wait(self.device)
        taken = time.perf_counter() - self._since
        if self._left:
            self._left -= 1
            return
        self.seconds.append(taken)
        if len(self.seconds) >= FEWEST and (len(self.seconds) >= MOST or sum(self.seconds) >= self.budget):
            raise Enough


class Begins(pl.Callback):
    """Starts the clock: the first of a fit's callbacks."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        self.clock.start()


class Ends(pl.Callback):
    """Stops the clock: the last of a fit's callbacks."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.clock.stop()


def timed(once: Callable[[], Any]) -> list[float]:
    """Seconds of a call, again and again, the first few not counted."""
    for _ in range(WARM_UP):
        once()
    taken: list[float] = []
    while len(taken) < FEWEST or (len(taken) < MOST and sum(taken) < SECONDS):
        begin = time.perf_counter()
        once()
        taken.append(time.perf_counter() - begin)
    return taken


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measurement(
    configs: Sequence[RunConfig], root: Path, rounds: int, busy: bool, say: Callable[[str], None]
) -> Measurement:
    """The costs of these arms, of one group.

    Raises :class:`UsageError` where other processes are at work, unless the machine may be ``busy``.
    """
    first = configs[0]
    if len({group_of(config.to_json()) for config in configs}) > 1:
        raise UsageError("Arms of one student and one setting are measured at a time.")
    started, before = datetime.now(UTC), costs.load()
    at_work = before is not None and before > BUSY
    if at_work:
        why = f"Other processes are at work (load {before:.1f}, of {BUSY} at most)"
        if not busy:
            raise UsageError(f"{why}: times would be too long. Wait until they end; --busy measures and says so.")
        say(f"{why}: times are too long.")
    require_extra(first.family)
    hardware, taken = measure(configs, root, rounds, say)
    return Measurement.seal(
        {
            "task": first.task,
            "scale": first.scale,
            "student": getattr(first.student, "name", None),
            "settings": [word for word in first.overrides if not word.startswith("student.name=")],
            "group": group_of(first.to_json()),
            "seed": first.seed,
            "versions": costs.versions(),
            "git": costs.git_state(),
            "hardware": hardware,
            "load": None if before is None else {"start": before, "end": costs.load()},
            "busy": at_work,
            "started": started,
            "finished": datetime.now(UTC),
            "arms": [_arm(config, one) for config, one in zip(configs, taken, strict=True)],
        }
    )


def _arm(config: RunConfig, measured: dict[str, Any]) -> dict[str, Any]:
    times = {"forward_one": measured.pop("one"), "forward_batch": measured.pop("batch"), "step": measured.pop("step")}
    method = config.to_json()["method"]
    return {
        "method": method.pop("name"),
        "hyperparameters": method,
        **measured,
        **{name: {"rounds": values} if values else None for name, values in times.items()},
    }


def measure(
    configs: Sequence[RunConfig], root: Path, rounds: int, say: Callable[[str], None] = lambda text: None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The hardware, and the costs of each arm: counts, milliseconds of each round (the median within it), memory.

    Stages that the arms need and ``root`` lacks are done first.
    """
    with processor_threads(configs[0].trainer.threads):
        benches, done, stages = list[Bench](), set[str](), list[float | None]()
        for config in configs:
            say(f"{config.method}: stages")
            benches.append(Bench(config, root))
            stages.append(_stage_seconds(benches[-1], done))
        taken: list[list[dict[str, Any]]] = [[] for _ in benches]
        for number in range(rounds):
            pairs = list(zip(benches, taken, strict=True))
            for bench, times in pairs if number % 2 == 0 else reversed(pairs):
                say(f"{bench.config.method}: round {number + 1} of {rounds}")
                bench.measure(times)
        facts, hardware = [bench.facts() for bench in benches], costs.hardware(benches[0].device)
    memory = [_in_a_process(config, root) for config in configs]
    return hardware, [
        {**counted, "stage_seconds": seconds, **_by_part(times), "memory_bytes": peak}
        for counted, seconds, times, peak in zip(facts, stages, taken, memory, strict=True)
    ]


def _stage_seconds(bench: Bench, done: set[str]) -> float | None:
    """Wall time of the arm's stages; None unless all are among those ``done`` by now, to which its own are added."""
    results = bench.session.store.results.values()
    done |= {result.key for result in results if not result.reused}
    return sum(result.seconds for result in results) if all(result.key in done for result in results) else None


def _by_part(times: Sequence[dict[str, list[float]]]) -> dict[str, list[float]]:
    return {part: _rounds(times, part) for part in ("one", "batch", "step")}


def _rounds(times: Sequence[dict[str, list[float]]], part: str) -> list[float]:
    """Milliseconds by round; empty where there was nothing to time."""
    return [1e3 * statistics.median(one[part]) for one in times if one[part]]


def _in_a_process(config: RunConfig, root: Path) -> int | None:
    """:func:`growth` in a fresh process."""
    words = [f"task={config.asked}", f"method={config.method}", f"scale={config.scale}", f"seed={config.seed}"]
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(growth, [*words, *config.overrides], root).result()


def growth(words: Sequence[str], root: Path) -> int | None:
    """Bytes by which this process grows at most from its libraries alone to training steps of the run of these words.

    On a GPU: what its allocator handed out at most. None where the system does not tell.
    """
    (config,) = expand(words)
    kind_module(config.family, config.kind, "task")
    imported(method(config.method, config.family, config.kind).module)
    with processor_threads(config.trainer.threads):
        before, peak = _resident(), costs.PeakMemory()
        bench = Bench(config, root)
        module = bench.assemble()
        if not bench.steps(module, seconds=0.0):
            bench.forward(module, bench.example)()
        most = peak.bytes()
    if bench.device.type == "cuda" or most is None:
        return most
    return max(0, most - before)


def _resident() -> int:
    """Bytes of this process that lie in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
