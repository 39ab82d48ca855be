"""One run from its config to its record: stages, training, selection, the only look at the test set, costs."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from filelock import FileLock, Timeout
from pytorch_lightning.callbacks import ModelCheckpoint
from safetensors.torch import save

from kdbench.catalog import family_module, method
from kdbench.config import RunConfig
from kdbench.engine import costs
from kdbench.engine.callbacks import Curves, EpochStreams, Progress, Selection
from kdbench.engine.method import Method, Shapes
from kdbench.engine.module import DistillationModule
from kdbench.engine.seeds import AXES, axis, seeded
from kdbench.engine.stages import StageStore
from kdbench.engine.task import Task
from kdbench.engine.teachers import Teacher
from kdbench.errors import NonFiniteLossError
from kdbench.hashing import write_atomic
from kdbench.results import record as records

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="pytorch_lightning.*")
warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)


ABSENT = ("teacher", "selection", "metrics", "confusion", "predictions", "costs", "failure")


class Reporter(Protocol):
    """Where a run tells how far it is."""

    def stage(self, name: str) -> None:
        """A stage begins."""

    def epoch(self, done: int, total: int, value: float | None) -> None:
        """An epoch of the student's training is done."""

    def note(self, text: str) -> None:
        """Something the user should know."""


@dataclass(frozen=True)
class Outcome:
    """A finished run."""

    record: records.Record
    folder: Path
    reused: bool


def run_folder(root: Path, config: RunConfig) -> Path:
    """``<root>/<task>/<method>/<first 16 digits of the config hash>``."""
    return root / config.task / config.method / config.hash[:16]


def finished(root: Path, config: RunConfig) -> records.Record | None:
    """The record of this run if it is done and valid."""
    path = run_folder(root, config) / "record.json"
    if not path.exists():
        return None
    record = records.loads(path.read_text(), str(path))
    return record if record.status == "done" else None


def load_method(config: RunConfig) -> Method:
    """The method object of a run."""
    import importlib

    info = method(config.method, config.family, config.kind)
    module = importlib.import_module(info.module)
    found = next(
        c
        for c in vars(module).values()
        if isinstance(c, type) and issubclass(c, Method) and c.__module__ == info.module
    )
    options = getattr(module, "Hyperparameters", info.hyperparameters)
    from dataclasses import asdict

    return found(options(**asdict(config.hyperparameters)))


def load_task(config: RunConfig, store: StageStore) -> Task:
    """The task object of a run, from the family's module of that kind."""
    built: Task = family_module(config.family, config.kind).TASK(config, store)
    return built


def run(config: RunConfig, root: Path, reporter: Reporter) -> Outcome:
    """Do one run, or return the record of an earlier one. A killed run goes on from its last checkpoint.

    Raises :class:`NonFiniteLossError` after writing a ``failed`` record; other errors leave the run to be gone on with.
    """
    folder = run_folder(root, config)
    folder.mkdir(parents=True, exist_ok=True)
    with _only_process(folder, reporter):
        earlier = finished(root, config)
        if earlier is not None:
            return Outcome(earlier, folder, reused=True)
        started = datetime.now(UTC)
        session = Session(config, root, folder, reporter)
        try:
            fields = session.execute()
        except NonFiniteLossError as error:
            failure = {"reason": str(error), "step": error.step, "terms": {k: _told(v) for k, v in error.terms.items()}}
            fields = {**session.facts(), "status": "failed", "failure": failure}
            _write(folder, config, fields, started)
            raise
        return Outcome(_write(folder, config, fields, started), folder, reused=False)


def _told(value: float) -> float | str:
    return value if value == value and abs(value) != float("inf") else str(value)


@contextmanager
def _only_process(folder: Path, reporter: Reporter) -> Iterator[None]:
    if int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_PROCID", "0"))) > 0:
        yield
        return
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        reporter.note(f"Another process is at this run ({folder}); waiting for it.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _write(folder: Path, config: RunConfig, fields: dict[str, Any], started: datetime) -> records.Record:
    record = records.seal(
        {
            "schema_version": records.SCHEMA_VERSION,
            "family": config.family,
            "task": config.task,
            "scale": config.scale,
            "method": config.method,
            "control": config.control,
            "seed": config.seed,
            "command": config.command,
            "config": config.to_json(),
            "config_hash": config.hash,
            "group": records.group_of(config.to_json()),
            "versions": costs.versions(),
            "git": costs.git_state(),
            "seeds": {name: axis(config.seed, name) for name in AXES},
            "started": started,
            "finished": datetime.now(UTC),
            **dict.fromkeys(ABSENT),
            "notes": [],
            "curves": {},
            **fields,
        }
    )
    write_atomic(folder / "record.json", records.dumps(record))
    (folder / "last.ckpt").unlink(missing_ok=True)
    return record


class Session:
    """The work of one run, in order."""

    def __init__(self, config: RunConfig, root: Path, folder: Path, reporter: Reporter) -> None:
        self.config, self.folder, self.reporter = config, folder, reporter
        self.store = StageStore(root / "stages")
        self.task = load_task(config, self.store)
        self.method = load_method(config)
        self.memory = costs.PeakMemory()

    def execute(self) -> dict[str, Any]:
        """Stages, training, selection, test, costs; returns the record's fields."""
        self.memory.start()
        if self.method.teacher != "none":
            for stage in (*self.task.stages(), *self.method.stages(self.task)):
                self.reporter.stage(stage.name)
                self.store.ensure(stage)
        module, teachers = self.assemble()
        selection, curves = self.train(module)
        module.student.load_state_dict(selection.weights)
        module.eval()
        val = self.evaluate(module, "val")
        test = self.evaluate(module, "test")
        peak = self.memory.bytes()
        write_atomic(self.folder / "student.safetensors", save(selection.weights))
        return {
            **self.facts(),
            "status": "done",
            "teacher": self.teacher_facts(teachers),
            "selection": {
                "metric": self.config.metric,
                "mode": selection.mode,
                "epoch": selection.epoch,
                "value": val[self.config.metric],
            },
            "metrics": {"val": val, "test": test},
            **module.test_details(),
            "costs": {**self.costs(module), "train_seconds": curves.seconds, "peak_memory_bytes": peak},
            "curves": curves.values,
        }

    def assemble(self) -> tuple[DistillationModule, dict[str, Teacher]]:
        """Student, method networks and teachers, put together; each initialised from its own stream."""
        seed = self.config.seed
        with seeded(axis(seed, "student")):
            student = self.task.student()
        module = self.task.module(student)
        teachers = dict(self.method.teachers(self.task))
        module.attach(self.method, teachers, {})
        with seeded(axis(seed, "training")), torch.no_grad():
            batch = self.task.example()
            module.eval()
            _, features = module.observe(batch)
            outputs = {name: value for teacher in teachers.values() for name, value in teacher(batch).items()}
            module.train()
        shapes = Shapes(*({name: tuple(v.shape[1:]) for name, v in values.items()} for values in (features, outputs)))
        with seeded(axis(seed, "method")):
            module.method_modules.update(self.method.modules(shapes))
        return module, teachers

    def train(self, module: DistillationModule) -> tuple[Selection, Curves]:
        """Fit, from the last checkpoint if there is one."""
        options, metric = self.config.trainer, self.config.metric
        epochs = self.method.epochs(options.max_epochs)
        selection, curves = Selection(metric), Curves()
        keep = ModelCheckpoint(
            dirpath=self.folder,
            filename="last",
            every_n_epochs=options.checkpoint_every_n_epochs,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        callbacks: list[pl.Callback] = [
            EpochStreams(self.config.seed),
            self.method,
            *self.method.companions(),
            selection,
            curves,
            Progress(self.reporter.epoch, metric),
            keep,
        ]
        trainer = pl.Trainer(
            max_epochs=epochs,
            accelerator=options.accelerator,
            devices=options.devices,
            num_nodes=options.num_nodes,
            strategy=options.strategy,
            precision=options.precision,
            accumulate_grad_batches=options.accumulate_grad_batches,
            gradient_clip_val=options.gradient_clip_val or None,
            check_val_every_n_epoch=min(options.check_val_every_n_epoch, epochs),
            callbacks=callbacks,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            default_root_dir=self.folder,
        )
        last = self.folder / "last.ckpt"
        trainer.fit(
            module, datamodule=self.task.data(), ckpt_path=str(last) if last.exists() else None, weights_only=False
        )
        return selection, curves

    @torch.no_grad()
    def evaluate(self, module: DistillationModule, split: str) -> dict[str, float]:
        """The metrics of the student as it stands; the test loader is made here and nowhere else."""
        data = self.task.data()
        data.setup("test" if split == "test" else "validate")
        loader = data.test_dataloader() if split == "test" else data.val_dataloader()
        for batch in loader:
            moved = module.transfer_batch_to_device(batch, module.device, 0)
            module.evaluate(split, module.forward_batch(moved), module.targets(moved))
        return module.results(split)

    def facts(self) -> dict[str, Any]:
        """Data, hardware and stages: what a failed record says too."""
        facts, config = self.task.facts, self.config
        device = torch.device("cuda" if torch.cuda.is_available() and config.trainer.accelerator != "cpu" else "cpu")
        return {
            "data": {
                "name": facts.name,
                "sha256": facts.sha256,
                "split_sha256": facts.split_sha256,
                "generated": facts.generated,
                "licence": facts.licence,
                "sizes": dict(facts.sizes),
            },
            "hardware": costs.hardware(device),
            "stages": [
                {"name": s.name, "key": s.key, "seconds": s.seconds, "reused": s.reused}
                for s in self.store.results.values()
            ],
        }

    def teacher_facts(self, teachers: dict[str, Teacher]) -> dict[str, Any] | None:
        """The record's account of the teacher; None without one."""
        if not teachers:
            return None
        told = self.task.teacher_facts()
        return {**told, "sha256": "-".join(teacher.sha256 for teacher in teachers.values())}

    def costs(self, module: DistillationModule) -> dict[str, Any]:
        """Costs of the deployed student and of what was trained with it."""
        batch = self.task.example()
        forward: Callable[[], Any] = lambda: module.forward_batch(batch)  # noqa: E731
        return {
            "parameters": costs.parameters(module.student),
            "trained_parameters": costs.parameters(module),
            "flops": costs.flops(forward),
            "latency_ms": costs.latency_ms(forward, module.device),
            "stage_seconds": sum(result.seconds for result in self.store.results.values()),
        }
