"""The runs of one command on this machine; what is done is skipped, and a failed run does not stop the others."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar

from kdbench.errors import DISK_FULL, KdbenchError, UsageError
from kdbench.launch import pool
from kdbench.launch.check import check_plans
from kdbench.launch.display import Bars, names_of
from kdbench.launch.endings import Ending, disk_full, in_one_line
from kdbench.launch.states import record_of
from kdbench.launch.sweep import Local, Run
from kdbench.plan.cards import card
from kdbench.plan.config import RunConfig, expand_baselines
from kdbench.plan.datasets import dataset
from kdbench.plan.family import require_extra
from kdbench.results.record import Record

T = TypeVar("T")
Split = Literal["val", "test"]


@dataclass
class Report:
    """What became of the runs, by hash: a record, or the run's name and its error."""

    records: dict[str, Record] = field(default_factory=dict)
    failures: dict[str, tuple[str, Exception]] = field(default_factory=dict)
    split: Split = "test"
    """The split whose scores are shown as runs end."""

    @property
    def reasons(self) -> list[str]:
        """One line a failure."""
        return [f"{name}: {in_one_line(error)}" for name, error in self.failures.values()]


def with_baselines(configs: Sequence[RunConfig]) -> list[RunConfig]:
    """The runs and, before each, its ``alone`` and ``kd`` with the same seed and settings."""
    planned: dict[str, RunConfig] = {}
    for config in configs:
        for one in (*expand_baselines(config), config):
            planned.setdefault(one.hash, one)
    return list(planned.values())


def launch(
    configs: Sequence[RunConfig],
    root: Path,
    workers: int | None = None,
    keep_stale: bool = False,
    split: Split = "test",
) -> Report:
    """Do the runs, ``workers`` at a time or as many as suits them and this machine; scores on ``split`` are shown.

    Finished runs that are stale are done again, unless ``keep_stale``. A run that fails is reported and the others go
    on; a full disk stops them all. Raises :class:`UsageError` where workers are asked for, but a run is one of several
    processes, and where data is not sound or an arm cannot be planned on it: before any run, unless each has a worker
    and none a setting or a card of the user's.
    """
    for family in {config.family for config in configs}:
        require_extra(family)
    number = min(_workers(configs, workers), len(configs))
    ready(root)
    if number == 1 or any(config.card or config.overrides for config in configs):
        check_plans(configs, root)  # with workers it reads data once more: for what nobody may have tried before
    report = Report(split=split)
    with Bars(names_of(configs), workers=max(number, 1)) as bars:
        if number > 1:
            _side_by_side(configs, root, number, keep_stale, bars, report)
        else:
            _one_by_one(configs, root, keep_stale, bars, report)
    return Report(_in_order(report.records, configs), _in_order(report.failures, configs))


def _in_order(by_hash: Mapping[str, T], configs: Sequence[RunConfig]) -> dict[str, T]:
    return {config.hash: by_hash[config.hash] for config in configs if config.hash in by_hash}


def _workers(configs: Sequence[RunConfig], asked: int | None) -> int:
    """Workers for these runs: 1, which is this process, where each is several processes or takes the GPU."""
    several = any(config.trainer.processes > 1 for config in configs) or _launched()
    if several and (asked or 1) > 1:
        why = "runs of several processes, and those that srun or torchrun starts, are done one after another"
        raise UsageError(f"--workers {asked}: {why}.")
    if several or len(configs) < 2:
        return 1
    return asked or (1 if _gpu(configs) else cores())


def _launched() -> bool:
    """Whether srun or torchrun started this process."""
    return "SLURM_STEP_NUM_TASKS" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ


def _gpu(configs: Sequence[RunConfig]) -> bool:
    """Whether a run would take a GPU."""
    asked = {config.trainer.accelerator for config in configs}
    if asked == {"cpu"}:
        return False
    if "gpu" in asked:
        return True
    import torch

    return torch.cuda.is_available() or torch.backends.mps.is_available()


def cores() -> int:
    """Processor cores that this process may use, as the system, its container and SLURM allow."""
    allowed = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        most, _, period = quota.read_text().partition(" ")
        allowed += [int(most) // int(period)] if most.isdigit() else []
    given = os.environ.get("SLURM_CPUS_ON_NODE", "")
    allowed += [int(given)] if given.isdigit() else []
    return max(1, min(allowed))


def _side_by_side(
    configs: Sequence[RunConfig], root: Path, workers: int, keep_stale: bool, bars: Bars, report: Report
) -> None:
    """The runs in worker processes."""
    known = {config.hash: config for config in configs}

    def ended(run: Run, ending: Ending, worker: int) -> None:
        try:
            if ending.reason is not None:
                raise ending.error()
            record = record_of(root, run)
            if record is None:
                raise KdbenchError("its record is gone.")
        except KdbenchError as error:
            _failed(known[run.hash], error, bars, report, worker)
        else:
            _done(known[run.hash], record, ending.reused, bars, report, worker)

    runs = [replace(Run.of(config), keep_stale=keep_stale) for config in configs]
    pool.launch(root, runs, Local(workers=workers), bars, ended)


def _one_by_one(configs: Sequence[RunConfig], root: Path, keep_stale: bool, bars: Bars, report: Report) -> None:
    """The runs in this process."""
    from kdbench.engine.runner import run

    for config in configs:
        bars.begin(config)
        try:
            outcome = run(config, root, bars, keep_stale)
        except Exception as error:
            if (full := disk_full(error)) is not None:
                raise full from error
            _failed(config, error, bars, report)
            continue
        if outcome is not None:  # else we are not the first of several processes
            _done(config, outcome.record, outcome.reused, bars, report)


def _done(config: RunConfig, record: Record, reused: bool, bars: Bars, report: Report, worker: int = 0) -> None:
    assert record.metrics is not None
    report.records[config.hash] = record
    score = getattr(record.metrics, report.split)[config.metric]
    bars.end(config, f"{report.split} {config.metric} {score:.4f}" + (" (done earlier)" if reused else ""), worker)


def _failed(config: RunConfig, error: Exception, bars: Bars, report: Report, worker: int = 0) -> None:
    report.failures[config.hash] = bars.names[config.hash], error
    bars.end(config, f"FAILED: {in_one_line(error)}", worker)


def ready(root: Path) -> None:
    """Make the folder of runs, and a file in it that goes at once: a folder of no use is refused before any work."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=root).close()
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        raise UsageError(
            f"Cannot write to the run folder '{root}': {error.strerror}. Choose another by --runs."
        ) from None


def scale_note(configs: Sequence[RunConfig], given: Sequence[str]) -> str | None:
    """Says which scale was taken when the user named none."""
    if any(word.startswith("scale=") for word in given) or not configs:
        return None
    task = card(configs[0].asked)
    others = [scale for scale in task.scales if scale != configs[0].scale]
    more = f"; others: {', '.join(others)}" if others else ""
    data = " on generated data" if dataset(configs[0].dataset).generated else ""
    return f"No scale was given: running {task.name} at scale={configs[0].scale}{data}{more}."
