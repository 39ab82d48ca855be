"""One run from its config to its record: stages, training, selection, the only look at the test set, costs."""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors.torch import save
from torch import Tensor

from kdbench.engine import costs
from kdbench.engine.callbacks import Curves, Progress, Selection, remove_checkpoint, stop_asked
from kdbench.engine.distillation import assemble, distil
from kdbench.engine.distributed import check_place, check_started, processor_threads, rank
from kdbench.engine.method import Method
from kdbench.engine.module import DistillationModule
from kdbench.engine.own import try_networks
from kdbench.engine.seeds import AXES, axis, seeded
from kdbench.engine.stages import Stage, StageStore
from kdbench.engine.task import Task
from kdbench.engine.teachers import Teacher
from kdbench.errors import NonFiniteLossError, UsageError
from kdbench.hashing import collected_digests, digest, write_atomic
from kdbench.plan.catalog import imported, kind_module, method
from kdbench.plan.config import RunConfig, run_folder
from kdbench.plan.provenance import Made
from kdbench.results import outcomes, searches
from kdbench.results import record as records
from kdbench.results.finished import finished, set_aside, stale

warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)

RESTART = "restart-{}"
"""Folder of the checkpoint of a further attempt at the student's training."""
ABSENT = ("teacher", "selection", "metrics", "confusion", "predictions", "costs", "failure")


class Reporter(Protocol):
    """Where a run tells how far it is."""

    def stage(self, name: str) -> None:
        """A stage begins."""

    def epoch(self, done: int, total: int, value: float | None) -> None:
        """An epoch of the student's training is done."""

    def note(self, text: str) -> None:
        """Something the user should know."""


class Silent:
    """A reporter that tells nothing."""

    def stage(self, name: str) -> None: ...

    def epoch(self, done: int, total: int, value: float | None) -> None: ...

    def note(self, text: str) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """A finished run."""

    record: records.Record
    folder: Path
    reused: bool


def load_method(config: RunConfig) -> Method:
    """The method object of a run."""
    info = method(config.method, config.family, config.kind)
    module = imported(info.module)
    own = (kind for kind in vars(module).values() if isinstance(kind, type) and kind.__module__ == info.module)
    own_method = next(kind for kind in own if issubclass(kind, Method))
    options = getattr(module, "Hyperparameters", info.hyperparameters)
    return own_method(options(**asdict(config.hyperparameters)))


def load_task(config: RunConfig, store: StageStore) -> Task:
    """The task object of a run, from the module of its kind."""
    built: Task = kind_module(config.family, config.kind, "task").TASK(config, store)
    return built


def run(config: RunConfig, root: Path, reporter: Reporter, keep_stale: bool = False) -> Outcome | None:
    """Do one run, or return the record of an earlier one. A killed run goes on from its last checkpoint.

    An earlier record is stale where code, data or teacher files are not those that it was made of: it is said why and
    the run is done again, unless ``keep_stale``.

    Under several processes every one of them calls this; only the first gets an outcome. Raises
    :class:`NonFiniteLossError` after writing a ``failed`` record; other errors leave the run to be gone on with.
    """
    check_started(config.trainer)
    folder = run_folder(root, config)
    folder.mkdir(parents=True, exist_ok=True)
    with _only_process(folder, reporter) if is_first(config.trainer.processes) else nullcontext():
        earlier = _earlier(config, root, reporter, keep_stale)
        if earlier is not None:
            return Outcome(earlier, folder, reused=True)
        started, load = datetime.now(UTC), costs.load()
        try:
            check_place(config.trainer)
            with processor_threads(config.trainer.threads):
                session = Session(config, root, folder, reporter)
                fields = session.execute()
        except NonFiniteLossError as error:
            terms = {name: _storable(value) for name, value in error.terms.items()}
            failure = {"reason": str(error), "step": error.step, "terms": terms}
            if is_first(config.trainer.processes):
                _write(folder, config, {**session.facts(), "status": "failed", "failure": failure}, started, load)
            raise
        except UsageError:
            if is_first(config.trainer.processes):
                _forget(folder)
            raise
        if fields is None:
            return None
        return Outcome(_write(folder, config, fields, started, load), folder, reused=False)


def _earlier(config: RunConfig, root: Path, reporter: Reporter, keep_stale: bool) -> records.Record | None:
    """The record to take over. One that is damaged or stale is told and set aside (:func:`set_aside`)."""
    try:
        earlier = finished(root, config)
        why = [] if earlier is None else stale(earlier, config, run_folder(root, config))
        if why and keep_stale:
            reporter.note(f"{config.command}: its record is kept though {'; '.join(why)}.")
        if not why or keep_stale:
            return earlier
        reporter.note(f"{config.command}: its record is stale and the run is done again, since {'; '.join(why)}.")
    except records.InvalidRecord as error:
        if error.problems[0].field == "schema_version":  # of a newer kdbench
            raise
        reporter.note(f"{error.short} The run is done again.")
    if is_first(config.trainer.processes):
        set_aside(run_folder(root, config))
    return None


def is_first(processes: int) -> bool:
    """Whether we are the only one or the first of the ``processes`` of a run: the one that writes its record."""
    return rank(processes) == 0


def stop() -> None:
    """End what is being trained after its epoch, with a checkpoint and :class:`StoppedError`; for signal handlers."""
    stop_asked.set()


def prepare(config: RunConfig, root: Path, reporter: Reporter) -> None:
    """Do what the runs that pair with this one share: the stages of its task and teacher, and the teacher's cache."""
    check_place(config.trainer.in_one_process())
    with processor_threads(config.trainer.threads):
        _prepare(config, root, reporter)


def _prepare(config: RunConfig, root: Path, reporter: Reporter) -> None:
    session = Session(config, root, run_folder(root, config), reporter)
    taught = session.method.teacher == "frozen"
    for stage in [*session.task.foundation(), *(session.task.stages() if taught else ())]:
        reporter.stage(stage.name)
        session.store.ensure(stage)
    if taught:
        session.task.teacher()


def _forget(folder: Path) -> None:
    """Remove the folder of a run that came to nothing, and those around it that are empty then."""
    if {path.name for path in folder.iterdir()} <= {"lock", "made.json"}:
        for name in ("made.json", "lock"):
            (folder / name).unlink(missing_ok=True)
        for place in (folder, folder.parent, folder.parent.parent):
            with suppress(OSError):
                place.rmdir()


def _storable(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _report(info: Mapping[str, Any]) -> dict[str, Any]:
    """What a stage reported, as a record holds it."""
    values = {name: _storable(value) for name, value in info.items() if name != "curves"}
    return {"values": values, "curves": info.get("curves", {})}


@contextmanager
def _only_process(folder: Path, reporter: Reporter) -> Iterator[None]:
    while (lock := _locked(folder, reporter)) is None:
        pass
    try:
        yield
    finally:
        lock.release()


def _locked(folder: Path, reporter: Reporter) -> FileLock | None:
    """The lock of a run's folder; None when another process removed the folder meanwhile, as :func:`_forget` does."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            reporter.note(f"Another process is at this run ({folder}); waiting for it.")
            lock.acquire()
    except FileNotFoundError:
        return None
    return lock


def _write(
    folder: Path, config: RunConfig, fields: dict[str, Any], started: datetime, load: float | None
) -> records.Record:
    content = {
        "schema_version": records.SCHEMA_VERSION,
        "protocol": records.PROTOCOL,
        **{name: getattr(config, name) for name in ("family", "task", "scale", "method", "control", "seed", "command")},
        "config": config.to_json(),
        "config_hash": config.hash,
        "group": records.group_of(config.to_json()),
        "versions": costs.versions(),
        "git": costs.git_state(),
        "seeds": {name: axis(config.seed, name) for name in AXES},
        "notes": [],
        "curves": {},
        "load": None if load is None else {"start": load, "end": costs.load()},
        "started": started,
        "finished": max(started, datetime.now(UTC)),
        **dict.fromkeys(ABSENT),
    }
    record, path = records.seal({**content, **fields}), folder / "record.json"
    write_atomic(path, records.dumps(record))
    forget_training(folder)
    return record.at(path)


def forget_training(folder: Path) -> None:
    """Remove what the student's training of a run would go on from, of every attempt at it."""
    remove_checkpoint(folder)
    for attempt in folder.glob(RESTART.format("*")):
        shutil.rmtree(attempt)


def _array(values: Tensor) -> np.ndarray[Any, Any]:
    """A tensor for a file: on the processor, and no number in fewer than 32 bits, which NumPy has not."""
    narrow = values.is_floating_point() and values.dtype != torch.float64
    return (values.float() if narrow else values).detach().cpu().numpy()


class Session:
    """The work of one run, in order."""

    def __init__(self, config: RunConfig, root: Path, folder: Path, reporter: Reporter) -> None:
        self.config, self.folder, self.reporter = config, folder, reporter
        self.search = searches.budget(config)
        self.store = StageStore(root / "stages", reporter.note)
        with collected_digests() as self.read:
            self.task = load_task(config, self.store)
        self.method = load_method(config)
        self.made = Made(code={})
        self.notes: list[str] = []
        self.seconds = 0.0  # of the student's training, of all attempts
        self.device = torch.device("cpu")

    def execute(self) -> dict[str, Any] | None:
        """Stages, training, selection, test, costs; the record's fields, or None in all processes but the first."""
        memory = costs.PeakMemory()
        with collected_digests() as read:
            stages = self.stages()
        self.begin({**self.read, **read})
        for stage in stages:
            self.reporter.stage(stage.name)
            self.store.ensure(stage)
        for attempt in range(self.config.trainer.restarts + 1):
            module, teachers = self.assemble(attempt)
            selection, curves = self.train(module, attempt)
            if not self.begun_anew(module, selection, curves, attempt):
                break
        if not is_first(self.config.trainer.processes):
            return None
        module.student.load_state_dict(selection.weights)
        module.to(self.device).eval()
        (val, validated), (test, tested) = (self.evaluate(module, split) for split in ("val", "test"))
        peak = memory.bytes()
        write_atomic(self.folder / "student.safetensors", save(selection.weights))
        chosen = {"metric": selection.metric, "mode": selection.mode, "epoch": selection.epoch}
        teacher, taught = self.teacher_facts(teachers, module)
        return {
            **self.facts(),
            "status": "done",
            "teacher": teacher,
            "steps": curves.steps,
            "outcomes": self.keep({"val": validated, "test": tested, "teacher": taught}),
            "selection": {**chosen, "value": val[selection.metric]},
            "metrics": {"val": val, "test": test},
            **module.details(),
            "costs": {**self.costs(module), "train_seconds": self.seconds, "peak_memory_bytes": peak},
            "curves": curves.values,
            "notes": self.notes,
        }

    def stages(self) -> list[Stage]:
        """What is done before the student is trained; the task's teacher only for a method that asks for it.

        Networks and files of the user's own are tried here, before any work is done for them.
        """
        try_networks(self.task, self.method, taught=self.method.teacher in ("frozen", "several"))
        teacher = self.task.stages() if self.method.teacher == "frozen" else ()
        return [*self.task.foundation(), *teacher, *self.method.stages(self.task)]

    def begin(self, read: Mapping[Path, str]) -> None:
        """Say what the run is made of; a checkpoint of a run that was made of something else is not gone on with."""
        self.made = Made.of(self.config, read)
        if not is_first(self.config.trainer.processes):
            return
        last, before = self.folder / "last.ckpt", Made.load(self.folder)
        if (last.exists() or any(self.folder.glob(RESTART.format("*")))) and before != self.made:
            why = before.differences(self.made) if before else ["what made it is not known"]
            self.reporter.note(f"{self.config.command}: begins anew, not from its checkpoint, since {'; '.join(why)}.")
            forget_training(self.folder)
        self.made.save(self.folder)

    def assemble(self, attempt: int = 0) -> tuple[DistillationModule, dict[str, Teacher]]:
        """Student, method networks and teachers, put together; each initialised from its own stream."""
        seed = self.config.seed
        with seeded(axis(seed, "student", attempt) if attempt else axis(seed, "student")):
            student = self.method.student(self.task)
        module, teachers = self.task.module(student), dict(self.method.teachers(self.task))
        assemble(module, self.method, teachers, self.task.example(), seed)
        return module, teachers

    def train(self, module: DistillationModule, attempt: int = 0) -> tuple[Selection, Curves]:
        """Fit, from the last checkpoint if there is one; a method of no epochs deploys its student as it begins."""
        folder = self.folder / RESTART.format(attempt) if attempt else self.folder
        folder.mkdir(parents=True, exist_ok=True)
        config, selection = self.config, self.task.selection()
        epochs = self.method.epochs(config.trainer.max_epochs)
        data = self.method.data(self.task) if epochs else self.task.data()
        progress = Progress(self.reporter.epoch, config.metric)
        curves, self.device = distil(module, data, selection, config.trainer, epochs, config.seed, folder, [progress])
        return selection, curves

    def begun_anew(self, module: DistillationModule, selection: Selection, curves: Curves, attempt: int) -> bool:
        """Whether the chosen student has collapsed and another initialisation is to be tried."""
        self.seconds += curves.seconds
        chosen = [number for number, epoch in enumerate(curves.values["epoch"]) if epoch == selection.epoch]
        scores = {name[4:]: v[chosen[0]] for name, v in curves.values.items() if chosen and name.startswith("val/")}
        if not scores or not module.collapsed(scores):
            return False
        last = attempt == self.config.trainer.restarts
        note = f"Collapsed from initialisation {attempt}" + (", the last." if last else "; trained anew from another.")
        self.notes.append(note)
        self.reporter.note(f"{self.config.command}: {note}")
        return not last

    def evaluate(self, module: DistillationModule, split: str) -> tuple[dict[str, float], dict[str, Tensor]]:
        """The metrics of the student as it stands, and what it gave for each example."""
        return self.task.judged(module, split)

    def keep(self, parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any] | None:
        """Write what was given for each example; what the record says of it, None where no split has any."""
        arrays = {f"{part}/{name}": _array(value) for part, named in parts.items() for name, value in named.items()}
        path = outcomes.sidecar(self.folder / "record.json")
        if not arrays:
            path.unlink(missing_ok=True)
            return None
        data, facts = outcomes.packed(arrays)
        write_atomic(path, data)
        return facts

    def facts(self) -> dict[str, Any]:
        """Data, hardware and stages: what a failed record says too."""
        facts, stages = self.task.facts, self.store.results.values()
        fields = ("name", "sha256", "split_sha256", "generated", "licence")
        return {
            "code": {"sha256": digest(self.made.code), "files": self.made.code},
            "data": {**{name: getattr(facts, name) for name in fields}, "sizes": dict(facts.sizes)},
            "hardware": costs.hardware(self.device),
            "search": self.search,
            "stages": [{name: getattr(s, name) for name in ("name", "key", "seconds", "reused")} for s in stages],
            "reports": {stage.name: _report(stage.info) for stage in stages},
        }

    def teacher_facts(
        self, teachers: dict[str, Teacher], module: DistillationModule
    ) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
        """The record's account of the teacher, and its outcomes for the test examples; None and nothing without one."""
        hashes = sorted(teacher.sha256 for teacher in teachers.values())
        if not hashes:
            return None, {}
        sha256 = hashes[0] if len(hashes) == 1 else digest(hashes)
        facts = {**self.method.teacher_facts(self.task, module), "sha256": sha256}
        taught = facts.pop("outcomes", {})
        return facts, taught

    def costs(self, module: DistillationModule) -> dict[str, Any]:
        """Costs of the deployed student and of what was trained with it."""
        batch = module.transfer_batch_to_device(self.task.example(), module.device, 0)
        forward = partial(module.predict, batch)
        return {
            "parameters": costs.parameters(module.student),
            "trained_parameters": costs.parameters(module),
            "flops": costs.flops(forward),
            "latency_ms": costs.latency_ms(forward, module.device),
            "stage_seconds": sum(result.seconds for result in self.store.results.values()),
        }
