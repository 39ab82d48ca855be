"""What a sweep is asked for and remembers: words, files, profiles, errors, names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdbench.cli import main as cli
from kdbench.errors import UsageError
from kdbench.launch import sweep as sweeps
from kdbench.launch.sweep import from_words, labels, load, names, shared

WORDS = ["task=gnn", "method=alone,kd,lingugkd", "seed=0..2"]


def test_words_make_every_combination_named_by_its_hash(tmp_path: Path) -> None:
    asked = from_words(WORDS, tmp_path)
    assert len(asked.runs) == 9 and asked.launcher == "local"
    assert all(run.config().hash == key == run.hash for key, run in asked.runs.items())
    assert [run.method for run in asked.runs.values()] == 3 * ["alone", "kd", "lingugkd"]


def test_the_same_runs_have_the_same_name_however_they_are_written(tmp_path: Path) -> None:
    other = from_words(["seed=0,2,1", "method=kd,lingugkd,alone", "task=gnn", "launcher=slurm"], tmp_path)
    assert other.name == from_words(WORDS, tmp_path).name
    assert from_words([*WORDS[:2], "seed=0..3"], tmp_path).name != other.name


def test_a_sweep_is_read_as_it_was_written(tmp_path: Path) -> None:
    words = [*WORDS, "name=first", "launcher=slurm", "slurm.time=7", "slurm.setup=[module load a,b]", "local.workers=2"]
    asked = from_words(words, tmp_path)
    asked.save()
    assert load("first", tmp_path) == asked
    assert names(tmp_path) == ["first"]
    assert asked.slurm.setup == ("module load a", "b")


def test_a_file_names_runs_and_how_they_are_launched(tmp_path: Path) -> None:
    profile, file = tmp_path / "gpu.yaml", tmp_path / "cora.yaml"
    profile.write_text("partition: gpu\ntime: 30\n")
    lines = ["task=gnn method=alone seed=0..1", "task=gnn method=kd seed=1", "task=gnn method=alone seed=1"]
    runs = "".join(f"  - {line}\n" for line in lines)
    file.write_text(f"runs:\n{runs}launcher: slurm\nprofile: {profile}\nslurm: {{time: 40, gpus: 1}}\n")
    asked = from_words([str(file), "slurm.gpus=2"], tmp_path)
    assert asked.name == "cora" and len(asked.runs) == 3
    assert (asked.slurm.partition, asked.slurm.time, asked.slurm.gpus) == ("gpu", 40, 2)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        *(("30", 30), ("030", 30), ("1:30", 2), ("90:00", 90), ("0:01", 1), ("1:30:00", 90), ("0:00:01", 1)),
        *(
            ("1-12", 2160),
            ("1-12:30", 2190),
            ("1-12:30:00", 2190),
            ("1-12:30:01", 2191),
            ("0-1", 60),
            ("100:00:00", 6000),
        ),
    ],
)
def test_a_time_means_what_it_means_to_slurm(text: str, minutes: int, tmp_path: Path) -> None:
    words = ["task=gnn", "method=alone", "slurm.signal=10"]
    assert from_words([*words, f"slurm.time={text}"], tmp_path).slurm.time == minutes
    (tmp_path / "p.yaml").write_text(f"time: {text}\n")
    asked = from_words([*words, f"profile={tmp_path}/p.yaml", "name=a"], tmp_path)
    asked.save()
    assert load("a", tmp_path).slurm.time == asked.slurm.time == minutes


@pytest.mark.parametrize(
    "text", ["1e3", "30.5", "1:2:3:4", "1-", "-5", "1-2-3", "UNLIMITED", "1h", "''", "null", "true", "[1]", "1_0"]
)
def test_what_is_no_time_of_slurm_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"slurm\.time="):
        from_words(["task=gnn", "method=alone", f"slurm.time={text}"], tmp_path)


def test_a_time_that_the_signal_fills_is_refused(tmp_path: Path) -> None:
    for words in (["slurm.time=1"], ["slurm.time=1:00"], ["slurm.time=2", "slurm.signal=120"]):
        with pytest.raises(UsageError, match=r"slurm\.time=. \(minutes\) is not above slurm\.signal"):
            from_words(["task=gnn", "method=alone", *words], tmp_path)
    assert from_words(["task=gnn", "method=alone", "slurm.time=2", "slurm.signal=119"], tmp_path).slurm.time == 2


def test_texts_for_slurm_are_as_they_were_written(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(
        "account: 0123\nqos: 1e3\npartition: yes\nmemory: null\nsbatch: {mem-per-cpu: 4G, nice: 0100}\n"
    )
    asked = from_words(["task=gnn", "method=alone", f"profile={tmp_path}/p.yaml"], tmp_path).slurm
    assert (asked.account, asked.qos, asked.partition, asked.memory) == ("0123", "1e3", "yes", None)
    assert asked.sbatch == {"mem-per-cpu": "4G", "nice": "0100"}
    words = ["slurm.qos=1e3", "slurm.memory=null", "slurm.sbatch={mem-per-cpu: 4G, nice: 1_0}", "name=010"]
    told = from_words(["task=gnn", "method=alone", *words], tmp_path)
    assert (told.slurm.qos, told.slurm.memory, told.name) == ("1e3", None, "010")
    assert told.slurm.sbatch == {"mem-per-cpu": "4G", "nice": "1_0"}
    (tmp_path / "s.yaml").write_text("name: 010\nruns: [task=gnn method=alone]\n")
    assert from_words([f"{tmp_path}/s.yaml"], tmp_path).name == "010"


@pytest.mark.parametrize("sbatch", ['"4G\\n#SBATCH --account=other"', '"4G\\r"', '"\\u2028"'])
def test_a_text_for_sbatch_is_one_line(sbatch: str, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(f"time: 60\nsbatch: {{mem-per-cpu: {sbatch}}}\n")
    with pytest.raises(UsageError, match=f"{tmp_path}/p.yaml:2: slurm.sbatch.mem-per-cpu=.*one line"):
        from_words(["task=gnn", "method=alone", f"profile={tmp_path}/p.yaml"], tmp_path)
    (tmp_path / "p.yaml").write_text('time: 60\nsbatch: {"a\\nb": c}\n')
    with pytest.raises(UsageError, match=f"{tmp_path}/p.yaml:2: slurm.sbatch=.*one line"):
        from_words(["task=gnn", "method=alone", f"profile={tmp_path}/p.yaml"], tmp_path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["task=gnn", "method=alone", "launcher=slrum"], "Did you mean 'slurm'"),
        (["task=gnn", "method=alone", "local.wrkers=2"], "Did you mean 'workers'"),
        (["task=gnn", "method=alone", "local.threads=2"], "trainer.threads"),
        (["task=gnn", "method=alone", "slurm.time=0"], "slurm.time=0"),
        (["task=gnn", "method=alone", "slurm.time=1,2"], "takes one value"),
        (["task=gnn", "method=alon"], "Did you mean 'alone'"),
        (["task=gnn", "method=alone", "name=../up"], "name=../up"),
        (["task=gnn", "method=alone", "profile=none.yaml"], "no profile"),
        (["nothing.yaml"], "no sweep file 'nothing.yaml'"),
        (["a" * 5000], "no sweep file 'aaa"),
        (["a\n\x1b[31m"], "no sweep file 'a.n.x1b.31m'"),
        (["task=gnn", "method=alone", "profile=" + "a" * 5000], "no profile 'aaa"),
        (["method=alone"], "'task=…' is missing"),
    ],
)
def test_what_cannot_be_is_told_with_the_nearest_name(words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said.replace("(", r"\(").replace("…", ".")):
        from_words(words, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("# a\nrun: [a]", "2: Unknown key 'run'. Did you mean 'runs'"),
        ("# a\nruns: {}", "2: 'runs' is a list of lines"),
        ("runs: [1]", "1: 'runs' is a list of lines"),
        ("runs: ['task=gnn method=alone']\nslurm: {tme: 3}", "2: Unknown option 'tme'. Did you mean 'time'"),
        ("runs: ['task=gnn method=alone']\nlocal: {threads: 3}", "2: local.threads is no option"),
        ("runs: ['task=gnn method=alone']\nslurm:\n  gpus: 1\n  time: x", "4: slurm.time=x: should be a time"),
        ("runs: ['task=gnn method=alone']\nslurm: 3", "2: 'slurm' should be a mapping"),
        ("runs:\n- task=gnn method=alone\n- task=gnn method='alone", "3: Cannot read the line"),
        ("runs:\n- task=gnn method=alone\n- task=gnn method=alon", "3: Unknown method"),
        ("runs:\n- task=gnn method=alone\n- task=gnn method=kd optimizer.lr=-1", "3: optimizer.lr=-1: should be"),
        ("runs:\n- task=gnn method=alone seed=0..9999 data.words=0..9999", "2: These are 100,000,000 runs"),
        ("runs:\n- task=gnn method=alone seed=" + "1" * 5000, "2: Cannot read 'seed=1111"),
        ("runs: &a [*a]", "1: the alias 'a' is within"),
        ("[1]", "1: this should be a mapping"),
        ("", "1: this should be a mapping"),
    ],
    ids=range(15),
)
def test_a_faulty_file_is_named_with_its_line(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "faulty.yaml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        from_words([str(file)], tmp_path)
    assert str(caught.value).startswith(f"{file}:{said}")


def test_runs_beside_a_file_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("runs: ['task=gnn method=alone']")
    with pytest.raises(UsageError, match="Runs are named in"):
        from_words([str(file), "seed=3"], tmp_path)


def test_an_unknown_sweep_is_told_with_the_nearest(tmp_path: Path) -> None:
    from_words([*WORDS, "name=first"], tmp_path).save()
    with pytest.raises(UsageError, match="Did you mean 'first'"):
        load("frist", tmp_path)


def test_a_run_that_is_another_today_is_refused(tmp_path: Path) -> None:
    (run,) = from_words(["task=gnn", "method=alone"], tmp_path).runs.values()
    with pytest.raises(UsageError, match="makes another run"):
        sweeps.Run(**{**vars(run), "hash": "0" * 64}).config()


def test_a_sweep_s_list_loses_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = from_words(["task=gnn", "method=alone", "seed=0..2", "name=first"], tmp_path)
    first.save()
    other = ["task=gnn", "method=alone", "seed=2..3", "trainer.max_epochs=1", "name=first"]
    before = (first.folder / "sweep.json").read_bytes()
    assert cli.entry(["sweep", *other, "--runs", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "has 3 runs, 3 of them not among these" in said and "--extend" in said and "name=" in said
    assert (first.folder / "sweep.json").read_bytes() == before and not (tmp_path / "gnn").exists()

    asked = from_words(other, tmp_path)
    assert list(sweeps.extended(asked, True).runs) == [*first.runs, *asked.runs]
    grown = from_words(["task=gnn", "method=alone", "seed=0..5", "name=first"], tmp_path)
    assert sweeps.extended(grown, False) == grown, "more of the same drops nothing"


def test_runs_of_several_processes_are_refused_on_this_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", "task=gnn", "method=alone", "trainer.devices=1,2", "trainer.strategy=ddp"]
    assert cli.entry([*words, "--runs", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr().err
    assert "trainer.devices=2" in said and "launcher=slurm" in said
    assert not (tmp_path / "runs").exists()


def test_a_sweep_that_an_earlier_version_wrote_is_read(tmp_path: Path) -> None:
    asked = from_words([*WORDS, "name=first"], tmp_path)
    asked.save()
    path = asked.folder / "sweep.json"
    told = json.loads(path.read_text())
    told["local"]["threads"] = 0
    for run in told["runs"]:
        del run["threads"], run["keep_stale"]
    path.write_text(json.dumps(told))
    assert load("first", tmp_path) == asked


def test_what_several_runs_share_is_named_once(tmp_path: Path) -> None:
    words = ["task=gnn", "method=alone,kd,lingugkd", "control=none,shuffled_teacher", "seed=0..1"]
    groups = shared(list(from_words(words, tmp_path).runs.values()))
    assert len(groups) == 2, "one for each seed"
    assert all(len(group) == 2 for group in groups), "one run with the teacher and one without"
    alone = from_words(["task=gnn", "method=alone", "seed=0..9"], tmp_path)
    assert shared(list(alone.runs.values())) == []
    teachers = from_words(["task=gnn", "method=kd,lingugkd", "teacher.source=tfidf,minilm"], tmp_path)
    assert [len(group) for group in shared(list(teachers.runs.values()))] == [2]


def test_labels_leave_out_what_all_share(tmp_path: Path) -> None:
    told = labels(
        from_words(["task=gnn", "method=alone,kd", "seed=3,4", "trainer.max_epochs=2"], tmp_path).runs.values()
    )
    assert sorted(told.values()) == ["alone seed=3", "alone seed=4", "kd seed=3", "kd seed=4"]


def test_ten_thousand_runs_are_planned_by_resolving_each_combination_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdbench.plan import config

    resolved = []
    resolve = config.resolve
    monkeypatch.setattr(config, "resolve", lambda chosen: resolved.append(chosen) or resolve(chosen))
    asked = from_words(["task=gnn", "method=alone,kd", "seed=0..4999"], tmp_path)
    assert len(asked.runs) == 10_000 and len(resolved) == 2
    assert [run.config().seed for run in list(asked.runs.values())[-2:]] == [4999, 4999]
