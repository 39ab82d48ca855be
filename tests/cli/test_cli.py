"""The commands as a user sees them: what they print, write and return."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from kdbench.cli import main as cli
from kdbench.launch.reproduce import _same
from kdbench.plan import cards, catalog, family
from kdbench.plan.config import expand
from kdbench.results import record as records

COMMANDS = [
    *("run", "list", "show", "compare", "validate", "reproduce", "data", "doctor"),
    *("sweep", "status", "retry", "cancel", "check", "collect", "logs", "leaderboard", "reference", "audit"),
    *("tune", "measure"),
]
SHORT = ["task=gnn", "method=lingugkd", "trainer.max_epochs=2"]
DIVERGING = ["optimizer.name=sgd", "optimizer.lr=1e30"]


class Said(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Said]]:
    """``say("list", "--json")`` runs a command in this process, in an empty folder that must stay empty."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.delenv("KDBENCH_RUNS", raising=False)

    def command(*words: str | Path) -> Said:
        capfd.readouterr()
        code = cli.entry([str(word) for word in words])
        return Said(code, *capfd.readouterr())

    yield command
    assert not list((tmp_path / "cwd").iterdir()), "a command wrote into the working folder"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs of alone, kd and lingugkd for one seed."""
    runs = tmp_path_factory.mktemp("finished")
    assert cli.entry(["run", *SHORT, "--runs", str(runs)]) == 0
    return runs


def of(runs: Path, method: str) -> Path:
    (path,) = runs.glob(f"gnn/{method}/*/record.json")
    return path


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*")) if folder.exists() else []


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_gives_examples(say: Callable[..., Said], command: str) -> None:
    code, out, _ = say(command, "--help")
    assert code == 0 and f"\n  kdbench {command} " in out.replace("kdbench doctor\n", "kdbench doctor \n")
    assert set(cli.main.commands) == set(COMMANDS)
    assert f"  {command} " in say("--help").out


@pytest.mark.parametrize("command", ["build", "serve", "submit", "gains"])
def test_help_of_every_command_of_the_leaderboard_gives_examples(say: Callable[..., Said], command: str) -> None:
    code, out, _ = say("leaderboard", command, "--help")
    assert code == 0 and f"\n  kdbench leaderboard {command} " in out
    assert set(cli.cli_board.leaderboard.commands) == {"build", "serve", "submit", "gains"}
    assert f"  {command} " in say("leaderboard", "--help").out


def test_a_run_comes_to_the_leaderboard(say: Callable[..., Said], finished: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    code, out, err = say("leaderboard", "build", finished, "-o", site)
    assert (code, err) == (0, "") and out.startswith("3 records of 1 tasks on ") and str(site / "index.html") in out
    page = (site / "task" / "gnn.html").read_text()
    assert "generated data" in page and "lingugkd" in page
    told = json.loads(say("leaderboard", "build", finished, "-o", site, "--json").out)
    assert told["site"] == str(site) and told["problems"] == [] and told["pages"] == len(list(site.rglob("*.html")))


def test_a_leaderboard_of_a_wrong_record_is_refused_with_every_problem(
    say: Callable[..., Said], finished: Path, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.json"
    wrong.write_text(of(finished, "kd").read_text().replace('"method": "kd"', '"method": "\\u001b[31mkd"'))
    code, out, err = say("leaderboard", "build", finished, wrong, "-o", tmp_path / "site")
    assert (code, out) == (1, "") and f"{wrong}: method: '\N{REPLACEMENT CHARACTER}[31mkd'" in err
    assert "Nothing was written" in err
    told = json.loads(say("leaderboard", "build", wrong, "-o", tmp_path / "site", "--json").out)
    assert told["site"] is None and told["problems"] and not (tmp_path / "site").exists()


def test_help_and_version(say: Callable[..., Said]) -> None:
    assert "kdbench run task=gnn method=lingugkd" in say("-h").out
    assert say("--version") == (0, "kdbench, version 0.1.0\n", "")


def test_looking_around_imports_no_torch_and_no_hydra(tmp_path: Path) -> None:
    script = (
        "import sys; from kdbench.cli.main import entry\n"
        "codes = [entry(words) for words in (['--help'], ['list'], ['show', 'gnn'], ['show', 'lingugkd'], ['data'])]\n"
        "print(codes, [m for m in ('torch', 'pytorch_lightning', 'hydra', 'omegaconf', 'scipy') if m in sys.modules])\n"
        "entry(['run', 'task=gnn', 'method=kd', '--dry-run']); entry(['run', 'task=gnn', 'method=kdd'])\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert "[0, 0, 0, 0, 0] []" in lines and lines[-1] == "False"


def test_list_shows_tasks_and_methods_and_takes_wildcards(say: Callable[..., Said]) -> None:
    everything = say("list").out
    for name in (*cards.task_paths(), *(info.name for info in catalog.methods())):
        assert f"\n  {name} " in everything
    some = json.loads(say("list", "gnn/*", "--json").out)
    assert {task["name"] for task in some["tasks"]} == {n for n in cards.task_paths() if n.startswith("gnn/")}
    assert some["methods"] == []
    found = json.loads(say("list", "lingu", "--json").out)
    assert [method["name"] for method in found["methods"]] == ["lingugkd"] and found["tasks"] == []
    code, out, err = say("list", "lingukd")
    assert (code, out) == (2, "") and "Did you mean 'lingugkd'?" in err


def test_show_tells_a_method_whole(say: Callable[..., Said]) -> None:
    out = say("show", "lingugkd").out
    assert "https://arxiv.org/abs/2402.05894" in out and "L_KD" in out
    assert "temperature = 0.07  Temperature" in out
    assert say("show", "graph/lingugkd").out == out
    told = json.loads(say("show", "lingugkd", "--json").out)
    assert [method["family"] for method in told["methods"]] == ["graph"]


def test_show_tells_a_task_whole(say: Callable[..., Said]) -> None:
    out = say("show", "gnn/cora_text").out
    for part in ("licence: MIT", "scale=small", "scale=full", "lingugkd", "not measured here", "arXiv 2402.05894"):
        assert part in out
    told = json.loads(say("show", "gnn", "--json").out)
    assert told["scales"]["tiny"]["student"]["width"] == 64
    assert told["scales"]["tiny"]["student"]["layers"] == 2, "defaults are told too"
    assert {field["name"] for field in told["options"]["trainer"]} >= {"max_epochs", "precision"}
    code, _, err = say("show", "gnm")
    assert code == 2 and "Did you mean 'gnn'?" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rnu"], "Unknown command 'rnu'. Did you mean 'run'?"),
        (["run", "--fast"], "--fast"),
        (["run", "task=gnn"], "'method=…' is missing"),
        (["run", "task=gmn", "method=kd"], "Did you mean 'gnn'?"),
        (["run", "task=gnn", "method=kd", "optimizer.lr=fast"], "optimizer.lr=fast"),
        (["run", "task=gnn", "method=kd", "lr=1"], "Did you mean 'optimizer.lr'?"),
        (["run", "task=gnn", "method=kd", "seed=1", "seed=2"], "'seed' is given twice"),
        (["compare", "task=gnn"], "No such file or folder: runs"),
        (["validate", "nowhere"], "No such file or folder: nowhere"),
        (["validate"], "PATHS"),
        (["show", "nowhere.json"], "There is no record file 'nowhere.json'"),
        (["reproduce", "nowhere.json"], "There is no record file 'nowhere.json'"),
        (["data", "corra"], "Did you mean 'cora'?"),
        (["leaderboard", "bild"], "Unknown command 'bild'. Did you mean 'build'?"),
        (["leaderboard", "build", "nowhere", "-o", "site"], "No such file or folder: nowhere"),
        (["leaderboard", "serve", "nowhere"], "is no leaderboard"),
        (["data", "--fetch"], "--fetch needs the name of a data set"),
    ],
)
def test_a_wrong_request_is_one_message_exit_code_2_and_nothing_written(
    say: Callable[..., Said], words: list[str], said: str
) -> None:
    code, out, err = say(*words)
    assert (code, out) == (2, "")
    assert err.startswith("Error: ") and said in err and "Traceback" not in err


def test_a_wrong_request_leaves_the_run_folder_as_it_is(say: Callable[..., Said], tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for words in (["method=kdd"], ["method=kd", "student.wdith=3"], ["method=kd", "seed=-1"]):
        assert say("run", "task=gnn", *words, "--runs", runs).code == 2
    assert not runs.exists()


def test_a_dry_run_tells_the_runs_and_does_none(say: Callable[..., Said], tmp_path: Path) -> None:
    words = ["run", "task=gnn", "method=lingugkd", "seed=0..1", "--dry-run", "--runs", tmp_path / "runs"]
    told = json.loads(say(*words, "--json").out)
    assert [line["command"].split()[3] for line in told] == [f"method={m}" for m in ("alone", "kd", "lingugkd")] * 2
    assert len(say(*words).out.splitlines()) == 6
    assert len(say(*words, "--no-baselines").out.splitlines()) == 2
    assert not (tmp_path / "runs").exists()


def test_a_run_trains_the_baselines_prints_the_table_and_says_where_the_records_are(
    say: Callable[..., Said], tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    code, out, err = say("run", *SHORT, "--runs", runs)
    assert code == 0
    assert [line.split()[2] for line in err.splitlines()[1:]] == ["alone", "kd", "lingugkd"]
    assert err.startswith("No scale was given: running gnn at scale=tiny on generated data.\n")
    for part in ("teacher", "alone", "kd", "lingugkd", "one seed", f"Records: 3 under {runs}/gnn"):
        assert part in out
    before = {path: path.stat().st_mtime_ns for path in files(runs) if path.name != "lock"}
    again = say("run", *SHORT, "--runs", runs)
    assert again.code == 0 and again.out == out
    assert all(line.endswith("(done earlier)") for line in again.err.splitlines()[1:])
    assert {path: path.stat().st_mtime_ns for path in files(runs) if path.name != "lock"} == before
    assert len(list(runs.rglob("last.ckpt"))) == 0
    told = json.loads(say("run", *SHORT, "scale=tiny", "--runs", runs, "--json").out)
    assert sorted(told["records"]) == sorted(map(str, runs.rglob("record.json")))
    assert [row["label"] for row in told["comparisons"][0]["rows"]] == ["teacher", "alone", "kd", "lingugkd"]


def test_compare_filters_and_speaks_markdown_and_json(say: Callable[..., Said], finished: Path) -> None:
    assert "lingugkd" in say("compare", "task=gnn", "--runs", finished).out
    some = say("compare", "task=gnn", "method=kd", "--runs", finished).out
    assert "alone" in some and "lingugkd" not in some
    assert "| alone" in say("compare", "--markdown", "--from", finished / "gnn").out
    told = json.loads(say("compare", "--json", "--metric", "macro_f1", "--runs", finished).out)
    assert [comparison["metric"] for comparison in told["comparisons"]] == ["macro_f1"]
    assert "lingugkd" in say("compare", "trainer.max_epochs=2", "student.name=gcn", "--runs", finished).out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["task=gnn/cora"], "matches task=gnn/cora"),
        (["method=lingukd"], "Did you mean 'lingugkd'?"),
        (["student.wdith=3"], "No record has an option 'student.wdith'"),
        (["trainer.max_epochs=3"], "matches trainer.max_epochs=3"),
    ],
)
def test_compare_says_what_it_did_not_find(
    say: Callable[..., Said], finished: Path, words: list[str], said: str
) -> None:
    code, out, err = say("compare", *words, "--runs", finished)
    assert (code, out) == (2, "") and said in err


def test_validate_counts_and_names_the_wrong_field(say: Callable[..., Said], finished: Path, tmp_path: Path) -> None:
    assert say("validate", finished) == (0, "3 files read: 3 valid, 0 with problems\n", "")
    content = json.loads(of(finished, "kd").read_text())
    content["metrics"]["test"]["accuracy"] += 0.1
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps(content))
    code, out, err = say("validate", finished, wrong)
    assert (code, out) == (1, "4 files read: 3 valid, 1 with problems\n") and f"{wrong}: metrics.test.accuracy: " in err
    told = json.loads(say("validate", wrong, "--json").out)
    assert told["valid"] == 0 and "metrics.test.accuracy" in [problem["field"] for problem in told["problems"]]


def test_an_audit_names_what_is_unsound(say: Callable[..., Said], finished: Path) -> None:
    code, out, err = say("audit", finished)
    assert (code, err) == (1, "") and out.startswith("unsound  gnn: tiny")
    assert "alone: the task's card names no reference" in out
    assert out.endswith("1 comparisons: 0 sound, 0 excused, 1 unsound\n")
    (one,) = json.loads(say("audit", finished, "--json").out)
    assert one["state"] == "unsound" and {"check", "arm", "holds", "why", "excuse"} == one["verdicts"][0].keys()
    assert say("audit", finished / "nothing").code == 2
    assert say("audit", "gnn").err.startswith("Error: ")


def test_a_card_without_a_reference_has_none_to_run(say: Callable[..., Said]) -> None:
    code, _, err = say("reference", "gnn")
    assert code == 2 and "names no reference" in err


def test_show_prints_a_record(say: Callable[..., Said], finished: Path) -> None:
    path = of(finished, "lingugkd")
    assert json.loads(say("show", path).out)["method"] == "lingugkd"
    assert json.loads(say("show", path, "--json").out)["record"] == json.loads(path.read_text())


def test_a_records_command_names_the_same_run(finished: Path) -> None:
    for path in finished.rglob("record.json"):
        record = records.loads(path.read_bytes(), path)
        (config,) = expand(record.command.split()[2:])
        assert config.hash == record.config_hash and path.parent.name == config.hash[:16]


def resealed(path: Path, change: Callable[[dict[str, Any]], None]) -> str:
    content = json.loads(path.read_text())
    del content["digest"]
    change(content)
    return records.dumps(records.seal(content))


def test_reproduce_matches_and_tells_a_difference(say: Callable[..., Said], finished: Path, tmp_path: Path) -> None:
    path = of(finished, "lingugkd")
    before = files(finished)
    code, out, err = say("reproduce", path, "--runs", finished)
    assert (code, out) == (0, f"match: {path}\n"), err
    assert files(finished) == before

    def swap(content: dict[str, Any]) -> None:
        predictions = content["predictions"]
        at = next(i for i in range(1, len(predictions)) if predictions[i] != predictions[0])
        swapped = [predictions[at], *predictions[1:at], predictions[0], *predictions[at + 1 :]]
        content["predictions"] = "".join(swapped)
        content["metrics"]["val"]["macro_f1"] = 0.125
        del content["curves"]["val/macro_f1"]
        content["versions"]["torch"] = "1.0"

    other = tmp_path / "other.json"
    other.write_text(resealed(path, swap))
    code, out, _ = say("reproduce", other)
    assert code == 1 and out.startswith(f"DIFFERENCE: {other}\n")
    for part in ("metrics.val.macro_f1: 0.125 -> ", "predictions: 2 differ", "torch 1.0 -> "):
        assert part in out
    told = json.loads(say("reproduce", other, "--json").out)
    assert told["match"] is False and len(told["differences"]) == 2


def test_scores_that_were_float32_sums_are_compared_as_such(
    say: Callable[..., Said], finished: Path, tmp_path: Path
) -> None:
    path, other = of(finished, "alone"), tmp_path / "other.json"

    def rounded(content: dict[str, Any]) -> None:
        content["schema_version"] = 1
        for newer in records.ADDED:
            content.pop(newer, None)
        for scores in content["metrics"].values():
            scores.update({name: float(np.float32(value)) for name, value in scores.items()})

    other.write_text(resealed(path, rounded))
    assert other.read_text() != path.read_text()
    assert say("reproduce", other).out == f"match: {other}\n"

    def wrong(content: dict[str, Any]) -> None:
        content["metrics"]["val"]["macro_f1"] *= 1 + 4e-7

    other.write_text(resealed(path, wrong))
    told = say("reproduce", other)
    assert told.code == 1 and "metrics.val.macro_f1" in told.out


@pytest.mark.parametrize(("version", "same"), [(1, True), (2, False)])
def test_later_scores_are_compared_exactly(version: int, same: bool) -> None:
    assert _same(float(np.float32(0.7)), 0.7, version) is same
    assert _same(0.7, 0.7, version) and not _same(0.7, None, version) and not _same(0.7, 0.7001, version)


def test_reproduce_refuses_another_configuration(say: Callable[..., Said], finished: Path, tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        del content["config"]["student"]["layers"]
        content["config_hash"] = records.hashing.digest(content["config"])
        content["group"] = records.group_of(content["config"])

    other = tmp_path / "other.json"
    other.write_text(resealed(of(finished, "alone"), change))
    code, _, err = say("reproduce", other)
    assert code == 1 and "resolves the configuration to" in err


def test_data_tells_states_and_checksums(
    say: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KDBENCH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "cache"))
    out = say("data").out
    assert "block_model (graph): generated." in out and "cora (graph): missing." in out and "how: " in out
    (told,) = json.loads(say("data", "cora", "--json").out)
    assert told["state"] == "missing" and told["licence"] == "MIT"
    assert all(len(file["sha256"]) == 64 and file["path"] is None for file in told["files"])
    code, out, err = say("data", "cora_text", "--fetch")
    assert (code, out) == (2, "") and f"looked in {tmp_path}/data/graph/cora_text or {tmp_path}/cache" in err


def test_doctor_tells_versions_and_what_a_missing_extra_would_enable(
    say: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = json.loads(say("doctor", "--json").out)
    assert told["packages"]["kdbench"] and told["packages"]["torch"] and told["devices"][0].startswith("cpu")
    assert set(told["extras"]) == set(family.extras())
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert "extra [quantize]: missing bitsandbytes; pip install 'kdbench[quantize]' enables 4-bit" in say("doctor").out


def test_a_diverging_run_stops_and_leaves_a_failed_record_that_says_where(
    say: Callable[..., Said], tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    words = ["run", *SHORT, *DIVERGING, "--runs", runs, "--no-baselines"]
    code, out, err = say(*words)
    assert (code, out) == (1, "") and "Traceback" not in err
    assert "Error: 1 of 1 runs failed:\n  gnn tiny lingugkd seed=0: The loss is not finite at step 1: task = nan" in err
    path = of(runs, "lingugkd")
    record = records.loads(path.read_bytes(), path)
    assert record.status == "failed" and record.failure is not None and record.metrics is None
    assert record.failure.step == 1 and record.failure.terms == {**record.failure.terms, "task": "nan", "kd": "nan"}
    assert say("validate", runs).out == "1 files read: 1 valid, 0 with problems\n"
    assert say("reproduce", path).code == 2
    first = path.read_bytes()
    assert say(*words).code == 1, "a failed run is tried again"
    assert path.read_bytes() != first


def test_in_a_grid_the_other_runs_finish_and_the_failed_one_is_named(say: Callable[..., Said], tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    words = ["task=gnn", "method=kd", "trainer.max_epochs=2", "optimizer.name=sgd", "optimizer.lr=1e30,0.01"]
    code, out, err = say("run", *words, "--runs", runs, "--json")
    assert code == 1
    assert err.endswith(
        "Error: 2 of 4 runs failed:\n"
        "  gnn tiny alone optimizer.lr=1e+30 seed=0: The loss is not finite at step 1: task = nan.\n"
        "  gnn tiny kd optimizer.lr=1e+30 seed=0: The loss is not finite at step 1: task = nan, kd = nan.\n"
    )
    told = json.loads(out)
    assert len(told["records"]) == 2
    found = [records.loads(path.read_bytes(), path) for path in runs.rglob("record.json")]
    assert sorted(record.status for record in found) == ["done", "done", "failed", "failed"]
    assert "failed" in say("compare", "--runs", runs).out


def test_a_run_that_dies_of_a_bug_does_not_stop_the_others(
    say: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdbench.methods import kd

    def broken(self: object, step: object) -> dict[str, Any]:
        raise ValueError("a [bold] bug")

    monkeypatch.setattr(kd.KD, "loss_terms", broken)
    code, out, err = say("run", *SHORT, "seed=3", "--runs", tmp_path / "runs")
    assert code == 1 and "lingugkd" in out
    assert "gnn tiny kd seed=3: FAILED: ValueError: a [bold] bug\n" in err and "Traceback" not in err
    assert not list(tmp_path.glob("runs/gnn/kd/*/record.json"))
    debug = say("--debug", "run", "task=gnn", "method=kd", "trainer.max_epochs=2", "--runs", tmp_path / "runs")
    assert debug.code == 1 and "Traceback" in debug.err and "in broken" in debug.err


def test_debug_shows_where_an_error_was_raised(say: Callable[..., Said]) -> None:
    assert "Traceback" not in say("show", "gnm").err
    code, _, err = say("show", "gnm", "--debug")
    assert code == 2 and "Traceback" in err and "describe.py" in err


def test_an_error_nobody_foresaw_is_one_message_too(tmp_path: Path) -> None:
    script = (
        "import sys; from kdbench import describe; from kdbench.cli import main\n"
        "def listing(pattern): raise ZeroDivisionError('a bug')\n"
        "describe.listing = listing; sys.argv = ['kdbench', *sys.argv[1:]]; main.console()"
    )
    command = [sys.executable, "-c", script]
    plain = subprocess.run([*command, "list"], capture_output=True, text=True, cwd=tmp_path)
    assert plain.returncode == 1 and plain.stderr.startswith("Error: ZeroDivisionError: a bug\n")
    assert "Traceback" not in plain.stderr and "--debug" in plain.stderr
    debug = subprocess.run([*command, "--debug", "list"], capture_output=True, text=True, cwd=tmp_path)
    assert debug.returncode == 1 and "Traceback" in debug.stderr and "in listing" in debug.stderr


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "kdbench.cli", "show", "gnn"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    os.close(write)
    assert done.returncode == 1 and done.stderr == ""
