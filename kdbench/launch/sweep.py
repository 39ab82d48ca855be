"""A sweep: many runs under one name, where they are launched, and the folder that remembers it.

``<runs>/sweeps/<name>/`` holds ``sweep.json`` (what was asked), ``jobs.json`` (what was submitted), a state file for
each run, and logs. Results are in the run folders, where every other command finds them too.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt
from pydantic import BeforeValidator

from kdbench.errors import CardError, DamagedError, UsageError, shown, unknown
from kdbench.hashing import digest, write_atomic
from kdbench.plan.config import RunConfig, expand
from kdbench.plan.marked_yaml import line_of, read_yaml
from kdbench.plan.options import OptionError, build
from kdbench.plan.overrides import parse_overrides
from kdbench.plan.written import as_text


@dataclass(frozen=True)
class Local:
    """Worker processes on this machine. Set as ``local.OPTION=VALUE``."""

    workers: Annotated[int, Gt(0)] = 1
    """Runs at a time."""
    retries: Annotated[int, Ge(0)] = 1
    """How often a run whose process died is started again."""


_CLOCK = re.compile(r"(?:(\d{1,6})-)?(\d{1,9})(?::(\d{1,9}))?(?::(\d{1,9}))?", re.ASCII)


def minutes(given: Any) -> Any:
    """SLURM's time limits in minutes, rounded up as SLURM does; what is neither text nor number is left as it is.

    ``30`` is minutes, ``1:30`` minutes and seconds, ``1:30:00`` hours, minutes and seconds; after days come hours:
    ``1-12``, ``1-12:30``, ``1-12:30:00``.
    """
    text = as_text(given)
    if text is None:
        return given
    match = _CLOCK.fullmatch(text)
    if match is None:
        raise ValueError(
            "should be a time as SLURM has it: minutes, minutes:seconds, hours:minutes:seconds, days-hours, "
            "days-hours:minutes or days-hours:minutes:seconds"
        )
    days, *clock = (int(part) if part else 0 for part in match.groups())
    if match[1] is not None or match[4] is not None:
        hours, mins, seconds = clock
    else:
        hours, (mins, seconds) = 0, clock[:2]
    return -(-(((days * 24 + hours) * 60 + mins) * 60 + seconds) // 60)


@dataclass(frozen=True)
class Slurm:
    """What each run asks of a SLURM cluster. Set as ``slurm.OPTION=VALUE`` or in the file that ``profile=`` names."""

    partition: str | None = None
    """Partition; null for the cluster's default."""
    account: str | None = None
    """Account that is charged."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that a node must have, such as a100."""
    time: Annotated[int, BeforeValidator(minutes), Gt(0)] = 60
    """Minutes a run may take at a stretch, or a time as SLURM has it (1:30:00, 1-12); then it is queued again."""
    memory: str | None = "8GB"
    """Memory of each node; null to ask for none, or for another kind of it in sbatch."""
    cpus: Annotated[int, Gt(0)] = 2
    """Processor cores of each process."""
    gpus: Annotated[int, Ge(0)] = 0
    """GPUs of each node; a run with trainer.accelerator=gpu asks for trainer.devices of them."""
    throttle: Annotated[int, Gt(0)] = 50
    """Runs of one array that may be at work at a time (the % of --array)."""
    signal: Annotated[int, Gt(0)] = 90
    """Seconds before the time limit at which a run is told to checkpoint: longer than an epoch."""
    requeues: Annotated[int, Ge(0)] = 10
    """How often a run may be queued again after its time limit."""
    setup: tuple[str, ...] = ()
    """Shell lines before a run, such as "module load cuda"."""
    python: str | None = None
    """Python command on the nodes; null for the one that submits."""
    sbatch: dict[str, str] = field(default_factory=dict)
    """Further sbatch options, such as {nice: "100"}."""


OPTIONS: dict[str, type] = {"local": Local, "slurm": Slurm}
LAUNCHERS = tuple(OPTIONS)
KEYS = ("name", "launcher", "profile")


@dataclass(frozen=True)
class Run:
    """What planning needs to know of a run; the command says the rest."""

    hash: str
    task: str
    method: str
    command: str
    epochs: int
    nodes: int
    processes: int
    """Processes a node."""
    gpu: bool
    """Whether it asked for GPUs."""
    pairing: str
    """Runs of one pairing may share stages."""
    teacher: str | None
    """Settings of the frozen or moving teacher; None without one."""
    threads: int = 1
    """Threads that each process computes with."""
    keep_stale: bool = False
    """Whether a record that other code or data made will do."""

    @classmethod
    def of(cls, config: RunConfig) -> Run:
        """The run of a config."""
        trainer = config.trainer
        taught = " ".join(w for w in config.overrides if w.startswith("teacher.")) if config.teacher else None
        where = trainer.max_epochs, trainer.num_nodes, trainer.devices, trainer.accelerator == "gpu"
        shared = config.pairing, taught, trainer.threads
        return cls(config.hash, config.task, config.method, config.command, *where, *shared)

    def config(self) -> RunConfig:
        """The run, resolved. Raises :class:`UsageError` when this version of kdbench resolves its command otherwise."""
        config = expand(shlex.split(self.command)[2:])[0]
        if config.hash != self.hash:
            raise UsageError(f"This version of kdbench makes another run of '{self.command}'; submit the sweep anew.")
        return config


@dataclass(frozen=True)
class Sweep:
    """What was asked: the runs in order, and how they are launched."""

    name: str
    root: Path
    runs: Mapping[str, Run]
    """The runs by config hash, in order."""
    launcher: Literal["local", "slurm"] = "local"
    local: Local = field(default_factory=Local)
    slurm: Slurm = field(default_factory=Slurm)

    @property
    def folder(self) -> Path:
        """Where the sweep keeps what it knows."""
        return sweeps_folder(self.root) / self.name

    def save(self) -> None:
        """Write ``sweep.json``."""
        asked = {
            "name": self.name,
            "launcher": self.launcher,
            "local": asdict(self.local),
            "slurm": asdict(self.slurm),
            "runs": [asdict(run) for run in self.runs.values()],
        }
        write_atomic(self.folder / "sweep.json", json.dumps(asked) + "\n")


def sweeps_folder(root: Path) -> Path:
    """Where sweeps are kept below the folder of runs."""
    return root / "sweeps"


def from_words(words: Sequence[str], root: Path) -> Sweep:
    """The sweep that ``key=value`` words ask for, or a YAML file and words that change how it is launched.

    Raises :class:`UsageError` for what cannot be read, with the nearest valid name.
    """
    file = next((word for word in words if "=" not in word), None)
    if file is None:
        mine, grid = _split(words)
        return _sweep(mine, expand(grid), root)
    mine, grid = _split([word for word in words if word is not file])
    if grid:
        valid = ", ".join([*KEYS, "local.OPTION", "slurm.OPTION"])
        raise UsageError(f"Runs are named in {shown(file)}; on the command line beside it go {valid} alone.")
    return _read(Path(file), mine, root)


def _split(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Words about launching, parsed, and words about runs."""

    def launching(word: str) -> bool:
        key = word.partition("=")[0]
        return key in KEYS or key.startswith(("local.", "slurm."))

    mine = parse_overrides([word for word in words if launching(word)])
    for override in mine:
        if len(override.values) > 1:
            raise UsageError(f"'{override.key}' takes one value.")
    return {o.key: o.values[0] for o in mine}, [word for word in words if not launching(word)]


def _read(path: Path, mine: Mapping[str, Any], root: Path) -> Sweep:
    """The sweep of a file: ``runs`` (a list of lines in the grammar of the command line) and how they are launched.

    ``mine``, from the command line, goes before what the file says of launching.
    """
    if not os.path.isfile(path):
        raise UsageError(f"There is no sweep file '{shown(str(path))}'; runs are asked for as key=value.")
    content, lines = _mapping(path)
    valid = ["runs", *KEYS, *LAUNCHERS]
    for key in content:
        if key not in valid:
            raise CardError(f"{path}:{lines[key]}: {unknown('key', key, valid)}")
    asked = content.get("runs")
    if not isinstance(asked, list) or not asked or not all(isinstance(line, str) for line in asked):
        raise CardError(
            f"{path}:{lines.get('runs', 1)}: 'runs' is a list of lines such as 'task=gnn method=alone,kd seed=0..9'."
        )
    settings: dict[str, Any] = {key: content[key] for key in KEYS if key in content}
    settings.setdefault("name", path.stem)
    for launcher in LAUNCHERS:
        options = content.get(launcher, {})
        if not isinstance(options, dict):
            raise CardError(f"{path}:{lines[launcher]}: '{launcher}' should be a mapping of options to values.")
        with _named(path, lines):
            _built(launcher, options)
        settings |= {f"{launcher}.{key}": value for key, value in options.items()}
    configs: list[RunConfig] = []
    for place, line in enumerate(asked):
        with _named(path, lines, f"runs.{place}"):
            configs += expand(_split_line(line))
    return _sweep({**settings, **mine}, configs, root)


def _split_line(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        raise UsageError(f"Cannot read the line '{shown(line)}': {str(error).lower()}.") from None


@contextmanager
def _named(path: Path, lines: Mapping[str, int], field: str = "") -> Iterator[None]:
    """Errors name the file and the line of the field, or of the option that they are about."""
    try:
        yield
    except UsageError as error:
        place = error.field if isinstance(error, OptionError) and not field else field
        raise CardError(f"{path}:{line_of(lines, place)}: {error}") from None


def _sweep(settings: Mapping[str, Any], configs: Iterable[RunConfig], root: Path) -> Sweep:
    runs = {run.hash: run for run in map(Run.of, configs)}
    launcher = settings.get("launcher", "local")
    if launcher not in LAUNCHERS:
        raise unknown("launcher", str(launcher), LAUNCHERS)
    name = str(settings.get("name", digest(sorted(runs))[:12]))
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
        raise UsageError(f"name={shown(name)}: a name has letters, digits, '_', '.' and '-', and is no longer than 64.")
    profile = _profile(Path(str(settings["profile"]))) if "profile" in settings else {}
    own = {
        name: {k.partition(".")[2]: v for k, v in settings.items() if k.startswith(f"{name}.")} for name in LAUNCHERS
    }
    slurm: Slurm = build(Slurm, {**profile, **own["slurm"]}, "slurm")
    if slurm.time * 60 <= slurm.signal:
        raise UsageError(
            f"slurm.time={slurm.time} (minutes) is not above slurm.signal={slurm.signal} (seconds): a run would be "
            "told to stop as it begins."
        )
    return Sweep(name, root, runs, launcher, _built("local", own["local"]), slurm)


def _built(launcher: str, options: Mapping[str, Any]) -> Any:
    """The options of a launcher, checked."""
    if launcher == "local" and "threads" in options:
        why = "local.threads is no option: a run computes with trainer.threads threads, 1 by default."
        raise OptionError("local.threads", why)
    return build(OPTIONS[launcher], options, launcher)


def _profile(path: Path) -> dict[str, Any]:
    if not os.path.isfile(path):
        raise UsageError(f"There is no profile '{shown(str(path))}'.")
    content, lines = _mapping(path)
    with _named(path, {f"slurm.{field}": line for field, line in lines.items()}):
        build(Slurm, content, "slurm")
    return content


def _mapping(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    content, lines = read_yaml(path)
    if not isinstance(content, dict):
        raise CardError(f"{path}:1: this should be a mapping of keys to values.")
    return content, lines


def load(name: str, root: Path) -> Sweep:
    """The sweep of that name. Raises :class:`UsageError` with the nearest name when there is none, or DamagedError."""
    path = sweeps_folder(root) / name / "sweep.json"
    if not path.is_file():
        raise unknown(f"sweep under {root}", name, names(root))
    try:
        asked = json.loads(path.read_text(encoding="utf-8"))
        runs = [Run(**run) for run in asked["runs"]]
        local = {key: value for key, value in asked["local"].items() if key != "threads"}  # of an earlier version
        options = build(Local, local, "local"), build(Slurm, asked["slurm"], "slurm")
        return Sweep(name, root, {run.hash: run for run in runs}, asked["launcher"], *options)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, UsageError) as error:
        raise DamagedError(path, error) from None


def extended(asked: Sweep, extend: bool) -> Sweep:
    """The sweep, and the runs that the one of its name has already: no run is dropped from a list.

    Raises :class:`UsageError` where that one has others and ``extend`` was not said.
    """
    path = asked.folder / "sweep.json"
    if not path.is_file():
        return asked
    try:
        before = load(asked.name, asked.root).runs
    except DamagedError:
        return asked  # asking for its runs again is how it is mended
    others = before.keys() - asked.runs.keys()
    if others and not extend:
        raise UsageError(
            f"The sweep '{asked.name}' under {asked.root} has {len(before)} runs, {len(others)} of them not among "
            "these. Take another name=…, or add these to it by --extend."
        )
    return replace(asked, runs={**before, **asked.runs})


def names(root: Path) -> list[str]:
    """The sweeps that there are."""
    return sorted(path.parent.name for path in sweeps_folder(root).glob("*/sweep.json"))


def shared(runs: Sequence[Run]) -> list[list[Run]]:
    """For each pairing of several runs one run with each of its teachers: what they share is worth doing first."""
    pairings: dict[str, list[Run]] = {}
    for run in runs:
        pairings.setdefault(run.pairing, []).append(run)
    several = (members for members in pairings.values() if len(members) > 1)
    return [list({run.teacher: run for run in members}.values()) for members in several]


def labels(runs: Iterable[Run]) -> dict[str, str]:
    """A short name for each run by its hash: the words of its command that not all share, and its seed."""
    words = {run.hash: shlex.split(run.command)[2:] for run in runs}
    common = set.intersection(*map(set, words.values())) if len(words) > 1 else set()
    plain = ("task=", "method=", "scale=")

    def short(word: str) -> str:
        return word.partition("=")[2] if word.startswith(plain) else word

    return {key: " ".join(short(word) for word in listed if word not in common) for key, listed in words.items()}
