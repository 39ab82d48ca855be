"""Everyday mishaps: each ends in one message that says what to do, and loses no finished run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import save_file

from kdbench.cli import main as cli
from kdbench.hashing import file_digest
from kdbench.plan import datasets
from kdbench.plan.config import expand, run_folder
from kdbench.results import record as records
from kdbench.results.record import SCHEMA_VERSION, Record

PYTHON = sys.executable
CORA = ["task=gnn/cora", "scale=small", "method=alone", "--no-baselines"]
TINY = ["task=gnn", "method=kd", "trainer.max_epochs=2"]


class Said(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def say(capfd: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run a command in this process; an error is one message without a traceback."""

    def command(*words: str | Path) -> Said:
        capfd.readouterr()
        code = cli.entry([str(word) for word in words])
        said = Said(code, *capfd.readouterr())
        assert "Traceback" not in said.err and len(re.findall("^Error: ", said.err, re.MULTILINE)) == (code != 0)
        return said

    return command


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of data sets, and no others in reach."""
    monkeypatch.setenv("KDBENCH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KDBENCH_OFFLINE", "1")
    return tmp_path / "data"


def python(script: str, *words: str | Path, before: Sequence[str] = ()) -> subprocess.Popen[str]:
    """Start a script in a process of its own, with the command line at hand."""
    text = f"import os, sys\nfrom kdbench.cli.main import console, entry\n{script}"
    command = [*before, PYTHON if before else sys.executable, "-c", text, *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str]) -> Said:
    out, err = process.communicate()
    assert "Traceback" not in err
    return Said(process.returncode, out, err)


def record_of(runs: Path, words: Sequence[str]) -> Record:
    (config,) = expand([word for word in words if "=" in word])
    path = run_folder(runs, config) / "record.json"
    return records.loads(path.read_bytes(), path)


@pytest.fixture
def nothing_loaded() -> None:
    """Forget graphs that earlier tests of this process loaded."""
    from kdbench.families.graph.node_classification.data import load

    load.cache_clear()


@pytest.mark.usefixtures("nothing_loaded")
def test_a_missing_file_says_where_it_looked_and_what_to_do(
    say: Callable[..., Said], data: Path, tmp_path: Path
) -> None:
    code, out, err = say("run", *CORA, "--runs", tmp_path / "runs")
    assert (code, out) == (2, "")
    for part in ("'cora' lacks ind.cora.", f"{data}/graph/planetoid/cora", f"{tmp_path}/cache", "kdbench data cora"):
        assert part in err
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]


@pytest.mark.usefixtures("nothing_loaded")
def test_an_unset_data_folder_is_mentioned(
    say: Callable[..., Said], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KDBENCH_DATA")
    assert "KDBENCH_DATA is not set" in say("run", *CORA, "--runs", tmp_path / "runs").err


@pytest.mark.usefixtures("nothing_loaded")
def test_a_corrupt_file_is_named_with_both_checksums(say: Callable[..., Said], data: Path, tmp_path: Path) -> None:
    folder = data / "graph/planetoid/cora"
    folder.mkdir(parents=True)
    for name in datasets.dataset("cora").files:
        (folder / name).write_bytes(b"wrong")
    code, _, err = say("run", *CORA, "--runs", tmp_path / "runs")
    first, file = next(iter(datasets.dataset("cora").files.items()))
    assert code == 2 and f"{folder}/{first} is corrupt" in err
    assert file.sha256 in err and file_digest(folder / first) in err
    assert "cora (graph): corrupt." in say("data", "cora").out


def test_a_failed_download_says_so(
    say: Callable[..., Said], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.delenv("KDBENCH_OFFLINE")
    monkeypatch.setattr("pooch.retrieve", refuse)
    code, _, err = say("data", "cora", "--fetch")
    assert code == 2 and "Downloading it failed: no route to host" in err and "looked in" in err


@pytest.mark.slow
def test_a_missing_extra_is_named_before_anything_starts(tmp_path: Path) -> None:
    script = "sys.modules['torch_geometric'] = None\ncode = entry(sys.argv[1:])\nprint(code, 'torch' in sys.modules)"
    for words in (["run", *TINY], ["reproduce", write_record(tmp_path)]):
        said = end(python(script, *words, "--runs", tmp_path / "runs"))
        assert said.out == "2 False\n"
        assert "The graph family needs 'torch_geometric'. Run: pip install 'kdbench[graph]'" in said.err
        assert not (tmp_path / "runs").exists()
    assert end(python(script, "list")).out.endswith("0 False\n")


LICENCE = datasets.dataset("block_model").licence


def write_record(folder: Path, **changes: Any) -> Path:
    """A record of a finished run of alone on the generated graph, made by hand."""
    (config,) = expand(["task=gnn", "method=alone", "trainer.max_epochs=2"])
    resolved = config.to_json()
    scores = {"accuracy": 0.5, "macro_f1": 0.5}
    empty = dict.fromkeys(("teacher", "confusion", "predictions", "failure"))
    zero = {"parameters": 1, "trained_parameters": 1, "flops": 1, "latency_ms": 1.0, "train_seconds": 1.0}
    content = {
        **{name: getattr(config, name) for name in ("family", "task", "scale", "method", "control", "seed", "command")},
        **{"schema_version": 1, "status": "done", "config": resolved, "config_hash": config.hash, **empty},
        **{"group": records.group_of(resolved), "versions": {}, "git": {"commit": None, "dirty": None}},
        "hardware": {"cpu": "x", "cores": 1, "threads": 1, "memory_bytes": 1, "accelerator": None, "os": "x"},
        "data": {
            "name": "block_model",
            "sha256": "a" * 64,
            "split_sha256": "b" * 64,
            "generated": True,
            "licence": LICENCE,
        }
        | {"sizes": {"train": 1, "val": 1, "test": 1}},
        **{"stages": [], "seeds": {}, "selection": {"metric": "accuracy", "mode": "max", "epoch": 0, "value": 0.5}},
        **{"metrics": {"val": scores, "test": scores}, "curves": {}, "notes": []},
        "costs": {**zero, "stage_seconds": 0.0, "peak_memory_bytes": None},
        **{"started": "2026-10-01T10:00:00Z", "finished": "2026-10-01T10:00:05Z"},
    }
    path = folder / "written.json"
    path.write_text(json.dumps({**json.loads(records.dumps(records.seal(content))), **changes}))
    return path


def test_a_record_of_a_newer_schema_asks_for_an_upgrade(say: Callable[..., Said], tmp_path: Path) -> None:
    path = write_record(tmp_path)
    assert say("validate", path).code == 0
    newer = write_record(tmp_path, schema_version=SCHEMA_VERSION + 1, more="fields")
    told = f"written by a newer kdbench (schema {SCHEMA_VERSION + 1}; this one reads up to {SCHEMA_VERSION}): upgrade"
    assert f"schema_version: {told}" in end(python("console()", "validate", newer)).err
    for words in (["show", newer], ["compare", "--from", newer], ["reproduce", newer]):
        code, out, err = say(*words)
        assert (code, out) == (1, "") and told in err
    (config,) = expand(["task=gnn", "method=alone", "trainer.max_epochs=2"])
    folder = run_folder(tmp_path / "runs", config)
    folder.mkdir(parents=True)
    (folder / "record.json").write_bytes(newer.read_bytes())
    said = say("run", "task=gnn", "method=alone", "trainer.max_epochs=2", "--no-baselines", "--runs", tmp_path / "runs")
    assert said.code == 1 and "upgrade" in said.err
    assert (folder / "record.json").read_bytes() == newer.read_bytes(), "a newer record is not overwritten"


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"\xff\xfe", b'{"schema_version": "x"}'])
def test_a_file_that_is_no_record_is_named(say: Callable[..., Said], tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "wrong.json"
    path.write_bytes(text)
    for words in (["show", path], ["compare", "--from", path], ["reproduce", path]):
        code, out, err = say(*words)
        assert (code, out) == (1, "") and f"{path} is not a valid record" in err


@pytest.mark.parametrize("place", ["file/runs", "/proc/kdbench"])
def test_a_run_folder_that_cannot_be_is_refused_before_any_work(
    say: Callable[..., Said], tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("a file")
    code, out, err = say("run", *TINY, "--runs", tmp_path / place)
    assert (code, out) == (2, "")
    assert f"Cannot write to the run folder '{tmp_path / place}'" in err and "--runs" in err


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write into any folder")
def test_a_read_only_run_folder_is_refused_before_any_work(say: Callable[..., Said], tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir(mode=0o500)
    code, _, err = say("run", *TINY, "--runs", tmp_path / "runs")
    assert code == 2 and "Cannot write to the run folder" in err


def test_a_teacher_file_of_another_task_is_refused(say: Callable[..., Said], tmp_path: Path) -> None:
    words = ["run", *TINY, "--runs", tmp_path / "runs", "teacher.source=file"]
    path = tmp_path / "teacher.safetensors"
    code, _, err = say(*words, f"teacher.model={path}")
    assert code == 2 and f"there is no file '{path}'" in err
    for tensors, said in (
        ({"features": torch.zeros(7, 3)}, "'features' [7, 3], wanted 'features' [600, D] or [600, 3, D]"),
        ({"features": torch.zeros(600, 2, 5)}, "'features' [600, 2, 5], wanted"),
        ({"weights": torch.zeros(3)}, "holds weights; a teacher of this task is 'features' [600, D]"),
    ):
        save_file(tensors, path)
        code, _, err = say(*words, f"teacher.model={path}")
        assert code == 2 and f"{path} holds" in err and said in err
    path.write_text("no tensors")
    code, _, err = say(*words, f"teacher.model={path}")
    assert code != 0 and "deserializing header" in err
    save_file({"features": torch.randn(600, 5, generator=torch.Generator().manual_seed(0))}, path)
    assert say(*words, f"teacher.model={path}").code == 0
    assert not list(tmp_path.glob("runs/gnn/kd/*/last.ckpt"))


FULL = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
runs = sys.argv[1]
wide = ["run", "task=gnn", "trainer.max_epochs=2", "data.words=390", "--no-baselines", "--runs", runs]
small = ["run", "task=gnn", "trainer.max_epochs=2", "data.words=5", "student.width=4", "--no-baselines", "--runs", runs]
attempts = [
    (0, [*wide, "method=kd"]),
    (100_000, [*wide, "method=kd"]),
    (1_500_000, [*wide, "method=kd"]),
    (100_000, [*wide, "method=alone", "trainer.checkpoint_every_n_epochs=1"]),
    (100_000, [*wide, "method=alone"]),
    (3_000, [*small, "method=alone"]),
]
print("first", entry([*small, "method=alone", "seed=1"]))
for limit, words in attempts:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    print("full", entry(words))
    print("full", entry(["validate", runs]))
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
for limit, words in attempts:
    print("room", entry(words))
entry(["validate", runs])
"""


@pytest.mark.slow
@pytest.mark.usefixtures("quick_start")
def test_a_full_disk_stops_with_one_message_and_loses_nothing(tmp_path: Path) -> None:
    """Every kind of file is once the one that does not fit: stage, teacher cache, checkpoint, weights, record."""
    said = end(python(FULL, tmp_path / "runs"))
    assert [line for line in said.out.splitlines() if line.startswith("first")] == ["first 0"]
    assert [line for line in said.out.splitlines() if line.startswith("full")] == ["full 1", "full 0"] * 6
    assert said.err.count("Error: The disk is full") == said.err.count("Error: ") == 6
    assert said.out.count("1 valid, 0 with problems") == 6, "what was finished before stays valid"
    assert [line for line in said.out.splitlines() if line.startswith("room")] == ["room 0"] * 6
    assert said.out.endswith("4 valid, 0 with problems\n")  # how often it checkpoints makes no other run
    assert not [path for path in tmp_path.rglob(".*")], "no half-written file is left"


def can_mount() -> bool:
    words = ["unshare", "-m", "true"]
    return os.geteuid() == 0 and bool(shutil.which("unshare")) and subprocess.run(words, check=False).returncode == 0


SMALL = """
import subprocess
runs = sys.argv[1]
words = ["run", "task=gnn", "trainer.max_epochs=2", "--no-baselines", "--runs", runs]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", runs], check=True)
print("first", entry([*words, "method=alone"]))
print("full", entry([*words, "method=kd"]))
subprocess.run(["mount", "-o", "remount,size=64m", runs], check=True)
print("room", entry([*words, "method=kd"]))
entry(["validate", runs])
"""


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="mounting a small file system takes root and a mount namespace")
def test_a_full_file_system_stops_with_one_message_and_a_rerun_with_room_completes(tmp_path: Path) -> None:
    said = end(python(SMALL, tmp_path, before=("unshare", "-m")))
    assert [line for line in said.out.splitlines() if line[:5] in ("first", "full ", "room ")] == [
        "first 0",
        "full 1",
        "room 0",
    ]
    assert said.err.count("Error: The disk is full") == said.err.count("Error: ") == 1
    assert said.out.endswith("2 valid, 0 with problems\n")


TWO = """
import kdbench.engine.runner
for name in ("a", "b"):
    if os.fork() == 0:
        for number, kind in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{sys.argv[1]}/{name}.{kind}", os.O_WRONLY | os.O_CREAT), number)
        console()
print(*(os.waitstatus_to_exitcode(os.wait()[1]) for _ in "ab"))
"""


@pytest.mark.slow
@pytest.mark.usefixtures("quick_start")
def test_two_processes_at_one_run_do_it_once(tmp_path: Path) -> None:
    script = TWO.replace("sys.argv[1]", repr(str(tmp_path)))
    assert end(python(script, "run", *TINY, "--no-baselines", "--runs", tmp_path / "runs")).out == "0 0\n"
    first, second = ((tmp_path / f"{name}.out").read_text() for name in "ab")
    assert first == second and "Records: 1" in first
    told = [(tmp_path / f"{name}.err").read_text() for name in "ab"]
    assert sorted(text.count("(done earlier)") for text in told) == [0, 1]
    assert all(text.count("test accuracy") == 1 and "Error" not in text for text in told)
    assert len(list(tmp_path.rglob("record.json"))) == 1


STOPPED = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job may have inherited none
from kdbench.launch.display import Bars
at = {8: signal.SIGINT, 22: signal.SIGKILL}
Bars.epoch = lambda bars, done, total, value: os.kill(os.getpid(), at.pop(done)) if done in at else None
os.write(1, b"interrupted %d" % entry(sys.argv[1:]))
console()
"""


@pytest.mark.slow
@pytest.mark.usefixtures("quick_start")
def test_a_run_interrupted_and_killed_goes_on_from_its_checkpoint_to_the_same_numbers(
    say: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["task=gnn", "method=lingugkd", "trainer.max_epochs=30", "trainer.checkpoint_every_n_epochs=5"]
    said = end(python(STOPPED, "run", *words, "--no-baselines", "--runs", tmp_path / "killed"))
    assert (said.code, said.out) == (-9, "interrupted 130")
    assert "Error: Interrupted. The same command goes on from the last checkpoint.\n" in said.err
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    assert not list(tmp_path.rglob("record.json"))
    started: list[object] = []
    fit = pl.Trainer.fit

    def spy(self: pl.Trainer, *args: Any, **options: Any) -> None:
        started.append(options["ckpt_path"])
        fit(self, *args, **options)

    monkeypatch.setattr(pl.Trainer, "fit", spy)
    for folder in ("killed", "whole"):
        assert say("run", *words, "--no-baselines", "--runs", tmp_path / folder).code == 0
    assert started == [str(checkpoint), None]
    resumed, whole = (record_of(tmp_path / folder, words) for folder in ("killed", "whole"))
    for name in ("metrics", "predictions", "confusion", "selection", "curves", "config_hash", "data"):
        assert getattr(resumed, name) == getattr(whole, name), name
    weights = [file_digest(next((tmp_path / folder).rglob("student.safetensors"))) for folder in ("killed", "whole")]
    assert weights[0] == weights[1]
    assert not list(tmp_path.rglob("last.ckpt"))


def test_a_request_that_fails_late_leaves_nothing_and_stops_no_other_run(
    say: Callable[..., Said], tmp_path: Path
) -> None:
    words = ("run", "task=gnn", "teacher.source=cached", "trainer.max_epochs=1", "--runs", tmp_path / "runs")
    code, _, err = say(*words, "method=kd", "--no-baselines")
    assert code == 2 and "No language-model features" in err and not (tmp_path / "runs" / "gnn").exists()
    code, out, err = say(*words, "method=kd,alone")
    assert code == 2 and "1 of 2 runs failed" in err and "No language-model features" in err and "alone" in out
    assert [path.parent.parent.name for path in (tmp_path / "runs").rglob("record.json")] == ["alone"]
    assert sorted(path.name for path in (tmp_path / "runs" / "gnn").iterdir()) == ["alone"]
