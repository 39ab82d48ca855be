"""What a family gives the engine for one kind of task."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.core.hooks import DataHooks
from safetensors.torch import save_file
from torch import Tensor, nn

from kdbench.engine import outputs, own
from kdbench.engine.cache import CacheKey, TeacherCache
from kdbench.engine.callbacks import Selection, remove_checkpoint
from kdbench.engine.distillation import assemble, distil
from kdbench.engine.module import DistillationModule
from kdbench.engine.objective import Objective
from kdbench.engine.seeds import axis, seeded
from kdbench.engine.stages import Stage, StageResult, StageStore
from kdbench.engine.teachers import CachedTeacher, FrozenTeacher, Outputs, RandomTeacher, Teacher, shuffled
from kdbench.errors import UsageError
from kdbench.hashing import file_digest
from kdbench.plan.config import DataT, RunConfig, StudentT, TeacherT
from kdbench.plan.metrics import named
from kdbench.plan.options import UNCHANGING, Optimizer
from kdbench.plan.own import modules as own_modules
from kdbench.plan.provenance import closure_digest


@dataclass(frozen=True)
class DataFacts:
    """What a record says about the data, and the row groups that pairing and controls rely on."""

    name: str
    sha256: str
    split_sha256: str
    generated: bool
    licence: str
    sizes: Mapping[str, int]
    rows: int
    """Rows that a teacher has outputs for."""
    groups: Tensor
    """int ``[rows]``: the split that each row belongs to."""
    names: Sequence[str] = ()
    """What each row shows, where its number does not say so."""


class Task(ABC, Generic[DataT, StudentT, TeacherT]):
    """One task for one run: builds data, student, LightningModule and teacher. A family subclasses it for each kind.

    It is typed by the kind's option dataclasses, which are ``config.data``, ``config.student`` and ``config.teacher``.
    """

    chunk: int | None = None
    """Rows per teacher call while the cache is written; None for all at once."""
    cacheable: bool = True
    """Whether a row looks the same at every step; the teacher's outputs for random views cannot be cached.
    A task whose options decide sets it on itself."""
    selects: ClassVar[Literal["best", "last"]] = "best"
    """Which weights are deployed: of the best validation, or where no label may choose, of the last."""

    def __init__(self, config: RunConfig[DataT, StudentT, TeacherT], store: StageStore) -> None:
        self.config, self.store = config, store
        self._caches: dict[str, TeacherCache] = {}

    @property
    @abstractmethod
    def facts(self) -> DataFacts:
        """The data's fingerprint, split and sizes."""

    def balance(self) -> Mapping[str, Mapping[str, int]]:
        """How much there is of each class in each split, by name, for who checks the data; here nothing is known."""
        return {}

    @abstractmethod
    def data(self) -> pl.LightningDataModule:
        """Loaders. ``test_dataloader`` is asked for only when the selected weights are final."""

    @abstractmethod
    def student(self) -> nn.Module:
        """A freshly initialised student."""

    @abstractmethod
    def module(self, student: nn.Module) -> DistillationModule:
        """The family's LightningModule around a student."""

    @abstractmethod
    def example(self) -> Any:
        """One training batch, for shapes and costs."""

    def foundation(self) -> Sequence[Stage]:
        """Stages that every arm builds on, teacher or not (a pretrained student), in order."""
        return ()

    @abstractmethod
    def stages(self) -> Sequence[Stage]:
        """The stages that make the teacher, in order."""

    @abstractmethod
    def live_teacher(self) -> FrozenTeacher:
        """The frozen teacher, from the finished stages."""

    @abstractmethod
    def batch_of(self, rows: Tensor) -> Any:
        """The batch that holds these rows, in order and unaugmented."""

    @abstractmethod
    def rows_of(self, batch: Any) -> Tensor:
        """Row numbers of a batch (int64 ``[b]``)."""

    @abstractmethod
    def teacher_facts(self) -> dict[str, Any]:
        """The teacher for the record: ``kind``, ``description``, ``metrics`` of val and test, ``predictions``.

        ``outcomes``, where the kind keeps any, are a module's (:meth:`DistillationModule.outcomes`) for the test.
        """

    @property
    def logits_shape(self) -> tuple[int, ...] | None:
        """Shape of the logits of one row, ``[C, …]``; None where a network gives no such logits."""
        return None

    def fresh_student(self) -> nn.Module:
        """A student that nothing has been learnt by, from the same options as :meth:`student`."""
        return self.student()

    def teacher_network(self) -> nn.Module | None:
        """A fresh network of the frozen teacher's; None where the teacher is none that reads what the student reads."""
        return None

    def frozen(self, network: nn.Module) -> FrozenTeacher:
        """A teacher that gives the outputs of a network such as :meth:`teacher_network`."""
        raise UsageError(f"The task of {self.config.kind} does not say how its teacher's network gives outputs.")

    def teacher_stage(
        self, name: str, inputs: Mapping[str, Any], epochs: int, seed: int, data: pl.LightningDataModule | None = None
    ) -> Stage:
        """A stage that trains :meth:`teacher_network` as the student alone would be, or takes ``teacher.weights``.

        ``inputs`` say what the teacher and its training depend on beside the epochs and the seed. Weights that do not
        fit the network are refused at once.
        """
        options: Any = self.config.teacher
        build, code = self.teacher_network, own_modules(options)
        if options.weights is None:
            return self.supervised(name, build, inputs, epochs, seed, data, code)  # type: ignore[arg-type]
        path, network = Path(options.weights), build()
        assert network is not None
        own.load_weights(network, path)

        def take(folder: Path, upstream: Mapping[str, StageResult]) -> dict[str, Any]:
            shutil.copyfile(path, folder / "weights.safetensors")
            return {"weights": path.name}

        return Stage(name, {**inputs, "weights": file_digest(path)}, take, code)

    @cached_property
    def brought(self) -> FrozenTeacher | None:
        """The teacher whose outputs were computed elsewhere (``teacher.source=outputs``), checked; None without one.

        A kind asks for it before its own stages, so that a file that does not fit is refused before any work.
        """
        options: Any = self.config.teacher
        if getattr(options, "source", None) != "outputs":
            return None
        if not self.cacheable:
            raise UsageError(
                f"{self.config.task} draws its rows anew at every step: no file can hold outputs for them."
            )
        if self.logits_shape is None:
            raise UsageError(f"The teacher of {self.config.task} cannot be brought as outputs.")
        return outputs.teacher(options.path, self.facts.rows, self.logits_shape, self.rows_of)

    @cached_property
    def cache(self) -> TeacherCache:
        """The frozen teacher's outputs for every row, written on first use."""
        return self.cache_of(self.live_teacher())

    def cache_of(self, teacher: FrozenTeacher) -> TeacherCache:
        """A frozen teacher's outputs for every row, written on first use, by the accelerator where there is one."""
        if teacher.sha256 in self._caches:
            return self._caches[teacher.sha256]
        facts, device = self.facts, self.accelerator()
        first = self._outputs(teacher, torch.arange(1), device)
        code = closure_digest((type(self).__module__, teacher.module))
        kept = (teacher.sha256, tuple(first), facts.sha256, facts.rows)
        key = CacheKey(*kept, code=code, shared=teacher.shared, device=device.type)
        every = torch.split(torch.arange(facts.rows), self.chunk or facts.rows)
        chunks = (self._outputs(teacher, rows, device) for rows in every)
        cache = TeacherCache.ensure(self.store.root / "teacher-cache", key, chunks)
        return self._caches.setdefault(teacher.sha256, cache)

    def accelerator(self) -> torch.device:
        """Where the run trains, and its teacher's cache is written."""
        gpu = self.config.trainer.accelerator != "cpu" and torch.cuda.is_available()
        return torch.device("cuda" if gpu else "cpu")

    def _outputs(self, teacher: FrozenTeacher, rows: Tensor, device: torch.device) -> Outputs:
        teacher.to(device)
        return teacher(DataHooks().transfer_batch_to_device(self.batch_of(rows), device, 0))

    def teacher(self) -> Teacher:
        """The task's teacher as the run wants it (:meth:`wanted`)."""
        return self.wanted(self.live_teacher())

    def wanted(self, teacher: FrozenTeacher, number: int = 0) -> Teacher:
        """A frozen teacher as the run wants it: live, cached, or replaced by a control.

        ``number`` tells several teachers apart, whose random stand-ins differ; shuffled ones share one order of rows.
        """
        control, seed = self.config.control, self.config.seed
        options: Any = self.config.teacher
        if not self.cacheable:
            if options.cache or control != "none":
                raise UsageError(
                    f"{self.config.task} draws a random view of each example at every step: its teacher cannot be "
                    "cached or replaced by rows of a cache. Leave out teacher.cache and control."
                )
            return teacher
        if control == "none" and not options.cache:
            return teacher
        cache = self.cache_of(teacher)
        if control == "random_teacher":
            return RandomTeacher(cache, self.rows_of, seed, number)
        order = shuffled(self.facts.groups, seed) if control == "shuffled_teacher" else None
        return CachedTeacher(cache, self.rows_of, cache.key.teacher, order)

    def items_of(self, split: str, batch: Any) -> Tensor:
        """Row numbers of a batch of a split in the whole data set, whatever the split: int64 ``[b]``."""
        return self.rows_of(batch)

    def clusters(self, batch: Any) -> Tensor | None:
        """What an example of a validation or test batch shares with others, a number int64 ``[b]``, the same in all
        runs; None where they are independent."""
        return None

    def score(self, module: DistillationModule, split: str) -> dict[str, float]:
        """The metrics of the module's network as it stands."""
        return self.judged(module, split)[0]

    @torch.no_grad()
    def judged(self, module: DistillationModule, split: str) -> tuple[dict[str, float], dict[str, Tensor]]:
        """The metrics of the module's network as it stands, and what it gave for each example, with ``items``.

        The only place where the test loader is made. Raises :class:`UndefinedMetricError` where the module's
        ``headline`` has no value.
        """
        module.eval()
        data, items, clusters = self.data(), list[Tensor](), list[Tensor | None]()
        for number, batch in enumerate(data.test_dataloader() if split == "test" else data.val_dataloader()):
            items.append(self.items_of(split, batch))
            clusters.append(self.clusters(batch))
            module.judge(split, module.transfer_batch_to_device(batch, module.device, 0), number)
        scores, outcomes = module.scores(split), dict(module.outcomes(split))
        if outcomes:
            outcomes["items"] = torch.cat(items)
            if shared := [numbers for numbers in clusters if numbers is not None]:
                outcomes["clusters"] = torch.cat(shared)
        return scores, outcomes

    def selection(self) -> Selection:
        """Keeps the weights that are deployed: the best or the last by the card's metric."""
        return self._selection(self.config.metric, self.selects == "last")

    def _selection(self, metric: str, last: bool, networks: bool = False) -> Selection:
        config = self.config
        mode = "min" if metric == "loss" else named(config.family, config.kind, metric).mode
        return Selection(metric, mode, last, networks)

    def supervised(
        self,
        name: str,
        network: Callable[[], nn.Module],
        inputs: Mapping[str, Any],
        epochs: int,
        seed: int,
        data: pl.LightningDataModule | None = None,
        code: Sequence[str] = (),
    ) -> Stage:
        """A stage that trains ``network`` on the task's labels (or other ``data``) as the student alone would be.

        Arms share it, so that no arm's searched options count: see :attr:`RunConfig.shared`.
        """
        optimizer, taken = self.config.shared.optimizer, lambda: data or self.data()
        return self.distilled(
            name, network, Objective, inputs, epochs, seed, data=taken, optimizer=optimizer, code=code
        )

    def distilled(
        self,
        name: str,
        student: Callable[[], nn.Module],
        objective: Callable[[], Objective],
        inputs: Mapping[str, Any],
        epochs: int,
        seed: int,
        *,
        teachers: Callable[[], Mapping[str, Teacher]] = dict,
        data: Callable[[], pl.LightningDataModule] | None = None,
        example: Callable[[], Any] | None = None,
        module: Callable[[nn.Module], DistillationModule] | None = None,
        optimizer: Optimizer | None = None,
        last: bool | None = None,
        needs: tuple[str, ...] = (),
        code: Sequence[str] = (),
    ) -> Stage:
        """A stage that is a whole distillation: ``objective`` trains ``student``, as a method trains the student.

        It leaves the chosen weights of the student in ``weights.safetensors`` and of the objective's networks in
        ``networks.safetensors``, and reports curves, seconds, and the epoch and the value that chose them. They are
        chosen by the card's metric, or the loss where the objective is judged by it; with ``last`` they are those of
        the last epoch. A killed one goes on from its checkpoint. ``inputs`` says what student, objective, teachers and
        data are made of; the modules that the given functions are written in count as its code, and those of ``code``.

        Where they are not the task's own: ``data``, an ``example`` batch of it, the ``module`` around the student, and
        the ``optimizer``.
        """
        optimizer = optimizer or self.config.optimizer
        options, last = self.config.trainer.in_one_process(), self.selects == "last" if last is None else last
        every = min(options.check_val_every_n_epoch, epochs)
        options = replace(options, check_val_every_n_epoch=every if not last or epochs % every == 0 else 1)

        def run(folder: Path, upstream: Mapping[str, StageResult]) -> dict[str, Any]:
            with seeded(axis(seed, "student")):
                around = (module or self.module)(student())
            around.optimizer_options, wanted = optimizer, objective()
            selection = self._selection("loss" if wanted.judged_by == "loss" else self.config.metric, last, True)
            assemble(around, wanted, teachers(), (example or self.example)(), seed)
            curves, _ = distil(around, (data or self.data)(), selection, options, epochs, seed, folder)
            save_file(selection.weights, folder / "weights.safetensors")
            if selection.networks:
                save_file(selection.networks, folder / "networks.safetensors")
            remove_checkpoint(folder)
            report = {"epoch": selection.epoch, f"val/{selection.metric}": selection.value}
            return {**report, "train_seconds": curves.seconds, "curves": curves.values}

        trainer = {k: v for k, v in asdict(options).items() if k not in ("max_epochs", *UNCHANGING)}
        made_of = {**inputs, "optimizer": asdict(optimizer), "trainer": trainer, "epochs": epochs}
        made_of |= {"seed": seed, "metric": self.config.metric, "mode": self.selection().mode, "last": last}
        functions = (student, objective, teachers, data, example, module)
        written = {type(self).__module__, *(function.__module__ for function in functions if function)} - {"builtins"}
        return Stage(name, made_of, run, tuple(sorted(written | set(code))), needs)

    def folder(self, name: str) -> Path:
        """The folder of a finished stage."""
        if name not in self.store.results:
            raise UsageError(f"Stage '{name}' is not in the plan of this run.")
        return self.store.results[name].folder
