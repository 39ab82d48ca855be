"""A stranger's networks, from a folder outside: built, tried, trained, on record, and refused where they do not fit."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from kdbench import describe
from kdbench.engine.runner import Outcome
from kdbench.errors import UsageError
from kdbench.plan import provenance
from kdbench.plan.config import expand, from_json

Do = Callable[..., Outcome]
OWN = Path(__file__).parent.parent / "fixtures" / "own" / "mynet.py"
QUICK = ["trainer.max_epochs=1", "trainer.check_val_every_n_epoch=1"]
STUDENTS = {
    ("gnn", "lingugkd"): "Nodes",
    ("gnn", "kd"): "Nodes",
    ("graph_classification", "mirage"): "Graphs",
    ("hippocampus", "dsd"): "Volumes",
    ("paired_classification", "mst_distill"): "Pairs",
    ("domain_adaptation", "alone"): "Detector",
}
FEWER = {
    "domain_adaptation": [
        "student.source_epochs=1",
        "student.source_validations=1",
        "data.source_images=4",
        "data.target_images=4",
    ]
}
TEACHERS = {"graph_classification": "Graphs", "hippocampus": "Volumes", "paired_classification": "Pairs"}


def forget() -> None:
    """Let the stranger's module be read again, as in a new process."""
    sys.modules.pop("mynet", None)
    for one in (provenance.closure, provenance._top, provenance._place, provenance._parsed):
        one.cache_clear()


@pytest.fixture(autouse=True)
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder of the user's own that holds ``mynet.py`` and is on no path."""
    folder = tmp_path / "mine"
    folder.mkdir()
    shutil.copyfile(OWN, folder / "mynet.py")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(Path.cwd()))])
    forget()
    yield folder
    forget()


@pytest.mark.parametrize(("task", "method"), STUDENTS)
def test_a_student_of_ones_own_on_every_kind(task: str, method: str, do: Do) -> None:
    name = f"mynet:{STUDENTS[task, method]}"
    words = [f"task={task}", f"method={method}", *QUICK, *FEWER.get(task, [])]
    record = do(*words, f"student.name={name}", "student.options={width:12}").record
    assert record.status == "done" and record.code is not None and "mynet.py" in record.code.files
    assert record.config["student"]["name"] == name and record.config["student"]["options"] == {"width": 12}
    assert from_json(record.config).hash == record.config_hash
    assert f"student.name={name}" in record.command and "width:12" in record.command


@pytest.mark.parametrize("task", TEACHERS)
def test_a_teacher_of_ones_own_trained_or_by_its_weights(task: str, do: Do, tmp_path: Path) -> None:
    words = [f"task={task}", "method=kd", *QUICK, f"teacher.name=mynet:{TEACHERS[task]}", "teacher.options={width: 10}"]
    words += ["teacher.epochs=1"] if task != "paired_classification" else []
    trained = do(*words).record
    (folder,) = (path.parent for path in (tmp_path / "runs" / "stages").rglob("weights.safetensors"))
    weights = shutil.copyfile(folder / "weights.safetensors", tmp_path / "teacher.safetensors")
    assert any(value.shape[0] == 10 or 10 in value.shape for value in load_file(weights).values())
    taken = do(*words, f"teacher.weights={weights}").record
    assert trained.teacher is not None and taken.teacher is not None
    assert taken.teacher.sha256 == trained.teacher.sha256 and taken.metrics == trained.metrics
    assert taken.teacher.metrics == trained.teacher.metrics and "weights from a file" in taken.teacher.description


def test_the_readme_s_network(do: Do, outside: Path) -> None:
    readme = (Path(__file__).parent.parent.parent / "README.md").read_text(encoding="utf-8")
    text = readme.partition("## Bring your own network")[2]
    (outside / "mynet.py").write_text(text.partition("```python\n")[2].partition("```")[0])
    (line,) = [line for line in text.partition("```sh\n")[2].splitlines() if line.startswith("kdbench run")][:1]
    record = do(*shlex.split(line)[2:], *QUICK).record
    assert record.status == "done" and record.config["student"]["options"] == {"width": 16}


def test_weights_of_another_network_are_refused(do: Do, tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("none")
    for path, said in (("none.safetensors", "no such file"), (str(tmp_path / "text.safetensors"), "safetensors file")):
        with pytest.raises(UsageError, match=said):
            do("task=paired_classification", "method=kd", *QUICK, f"teacher.weights={path}")
    assert not list((tmp_path / "runs").rglob("stage.json"))


def test_changing_the_class_makes_the_record_stale(do: Do, outside: Path) -> None:
    words = ["task=gnn", "method=alone", *QUICK, "student.name=mynet:Nodes"]
    (outside / "mylayers.py").write_text("SLOPE = 1\n")
    text = "from mylayers import SLOPE\n" + (outside / "mynet.py").read_text().replace("from __future__", "# ", 1)
    (outside / "mynet.py").write_text(text)
    assert not do(*words).reused and do(*words).reused
    forget()
    (outside / "mynet.py").write_text(text.replace(".tanh()", ".sigmoid()"))
    assert not do(*words).reused and do(*words).reused
    forget()
    (outside / "mylayers.py").write_text("SLOPE = 2\n")
    assert not do(*words).reused


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (None, "there is no module 'mynet', neither installed nor in"),
        ("def broken(:", "importing it failed: SyntaxError"),
        ("import nowhere_to_be_found", "importing it failed: ModuleNotFoundError"),
        ("class Nods: pass", "Unknown network of mynet 'Nodes'"),
        ("class Nodes:\n  def __init__(self, inputs, classes): pass", "gives a Nodes, not a torch.nn.Module"),
        ("import torch\nclass Nodes(torch.nn.Module): pass", "cannot be built with inputs, classes: TypeError"),
        (
            "import torch\ndef Nodes(inputs, classes): return torch.nn.Linear(inputs, classes)",
            "fails on a batch of gnn",
        ),
        (
            "import torch\nclass Nodes(torch.nn.Linear):\n  def __init__(self, inputs, classes):\n"
            "    super().__init__(inputs, 7)\n  def forward(self, x, edges): return super().forward(x)",
            "gives logits [240, 7] for a batch, not [240, 4]",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(
    source: str | None, said: str, do: Do, outside: Path, tmp_path: Path
) -> None:
    (outside / "mynet.py").unlink()
    if source is not None:
        (outside / "mynet.py").write_text(source)
    with pytest.raises(UsageError) as caught:
        do("task=gnn", "method=kd", "student.name=mynet:Nodes")
    assert said in str(caught.value) and "mynet" in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("stage.json"))


def test_what_a_method_reads_must_be_there(do: Do, outside: Path) -> None:
    text = OWN.read_text()
    (outside / "mynet.py").write_text(
        text.replace("self.states", "self.layers").replace("self.stages =", "self.steps =")
    )
    for task, method, name in (("gnn", "lingugkd", "Nodes"), ("hippocampus", "dsd", "Volumes")):
        with pytest.raises(UsageError, match=f"student.name=mynet:{name} lacks what '{method}' reads of it"):
            do(f"task={task}", f"method={method}", f"student.name=mynet:{name}")
    forget()
    (outside / "mynet.py").write_text(text.replace("    masked =", "    hidden_names ="))
    with pytest.raises(UsageError, match="its attribute 'masked' names 0 layers, not 2"):
        do("task=paired_classification", "method=mst_distill", *QUICK, "teacher.name=mynet:Pairs")


def test_options_that_the_data_dictate_are_not_the_user_s(do: Do) -> None:
    with pytest.raises(UsageError, match="the data dictate classes"):
        do("task=gnn", "method=alone", "student.name=mynet:Nodes", "student.options={classes: 3}")


def test_a_name_of_neither_is_refused_with_both_ways() -> None:
    with pytest.raises(UsageError, match="should be 'gcn', 'gat', 'sage' or 'gin', or a network of your own"):
        expand(["task=gnn", "method=alone", "student.name=gnc"])


@pytest.mark.parametrize(
    "task", ["gnn", "graph_classification", "hippocampus", "paired_classification", "domain_adaptation"]
)
def test_every_kind_says_its_contract(task: str) -> None:
    assert "One of your own is built as ``Class(" in describe.description(task)["sections"]["student"]
