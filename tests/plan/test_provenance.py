"""What made a run: which code counts, what does not change its digest, and when a finished run is stale."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kdbench.errors import StoppedError
from kdbench.hashing import collected_digests, file_digest, remembered
from kdbench.plan import provenance
from kdbench.plan.config import RunConfig, from_json, resolve
from kdbench.plan.options import identity
from kdbench.plan.provenance import Made, changes, closure
from kdbench.results import finished, store
from kdbench.results.finished import stale
from kdbench.results.record import loads

LOSS = '''"""A method."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from . import terms
from helpers_of_made_up.scale import SCALE

if TYPE_CHECKING:
    from nowhere import Nothing


def loss(x: float) -> float:
    """Squared."""
    return SCALE * terms.square(x) + math.pi
'''


def forget() -> None:
    for cached in (provenance.closure, provenance._parsed, provenance._place, provenance._top):
        cached.cache_clear()


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package ``made_up`` with a method and a module that it imports, and another package that it imports too."""
    folder = tmp_path / "made_up"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "loss.py").write_text(LOSS)
    (folder / "terms.py").write_text("def square(x):\n    return x * x\n")
    (folder / "unused.py").write_text("A = 1\n")
    (tmp_path / "helpers_of_made_up").mkdir()
    (tmp_path / "helpers_of_made_up" / "scale.py").write_text("SCALE = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    forget()
    yield folder
    forget()


def code(*modules: str) -> dict[str, str]:
    forget()
    importlib.invalidate_caches()
    return closure(modules)


def test_the_closure_is_what_is_imported_inside_the_package(made_up: Path) -> None:
    assert set(code("made_up.loss")) == {"made_up/__init__.py", "made_up/loss.py", "made_up/terms.py"}
    assert "made_up" not in sys.modules


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""Squared."""', '"""Something else\n\n    in two paragraphs.\n    """'),
        ('"""A method."""', "# a comment"),
        ("SCALE * terms.square(x) + math.pi", "(\n        SCALE * terms.square(x)  # why\n        + math.pi\n    )"),
        ("from nowhere import Nothing", "from nowhere import Nothing, Something"),
    ],
)
def test_comments_docstrings_layout_and_types_do_not_count(made_up: Path, old: str, new: str) -> None:
    before = code("made_up.loss")
    assert old in LOSS
    (made_up / "loss.py").write_text(LOSS.replace(old, new))
    assert code("made_up.loss") == before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("loss.py", "SCALE *", "2 * SCALE *"),
        ("loss.py", "+ math", "- math"),
        ("loss.py", "if TYPE_CHECKING:", "if not TYPE_CHECKING:"),
        ("loss.py", "x: float", "x: int"),
        ("terms.py", "x * x", "x * x * 1.0"),
        ("terms.py", "x * x", "x * x * 1"),
    ],
)
def test_what_is_computed_counts(made_up: Path, file: str, old: str, new: str) -> None:
    before = code("made_up.loss")
    path = made_up / file
    path.write_text(path.read_text().replace(old, new))
    after = code("made_up.loss")
    assert changes(before, after) == [f"made_up/{file} changed"]


def test_numbers_of_one_value_and_another_type_differ(made_up: Path) -> None:
    path = made_up / "terms.py"
    texts = ("def square(x):\n    return x * x * 1.0\n", "def square(x):\n    return x * x * 1\n")
    digests = set()
    for text in (*texts, texts[0].replace("1.0", "'1.0'"), texts[0].replace("1.0", "True")):
        path.write_text(text)
        digests.add(code("made_up.terms")["made_up/terms.py"])
    assert len(digests) == 4


def test_an_import_that_leads_nowhere_is_told(made_up: Path) -> None:
    (made_up / "loss.py").write_text("import made_up.gone\n")
    assert code("made_up.loss")["made_up/gone.py"] == "missing"


def test_a_file_that_does_not_parse_is_read_as_it_is(made_up: Path) -> None:
    (made_up / "loss.py").write_text("def (:\n")
    assert code("made_up.loss")["made_up/loss.py"] == file_digest(made_up / "loss.py")[:16]


@pytest.mark.parametrize(
    ("task", "method", "kind", "wanted"),
    [
        ("gnn", "lingugkd", "graph/node_classification", ("methods/lingugkd", "teacher", "options")),
        ("graph_classification", "mirage", "graph/graph_classification", ("methods/mirage", "condense", "draws")),
        ("hippocampus", "dsd", "medical/segmentation_3d", ("methods/dsd", "volumes", "heads")),
        ("blood_cells", "lpld", "detection/domain_adaptation", ("methods/lpld", "views", "pseudo_labels")),
        ("avdigits", "mst_distill", "vision_language/paired_classification", ("methods/mst_distill", "masks")),
    ],
)
def test_a_run_depends_on_its_method_its_task_and_the_engine(
    task: str, method: str, kind: str, wanted: tuple[str, ...]
) -> None:
    found = provenance.code_of(resolve({"task": task, "method": method}))
    engine = ("cache", "callbacks", "fitting", "module", "runner", "seeds", "stages", "task", "teachers")
    assert {f"kdbench/families/{kind}/{name}.py" for name in wanted} <= set(found)
    assert {f"kdbench/engine/{name}.py" for name in engine} <= set(found)
    rooms = ("kdbench/engine/", "kdbench/families/", "kdbench/networks/")
    assert {path for path in found if not path.startswith(rooms)} == {"kdbench/axes.py", "kdbench/plan/metrics.py"}
    others = {"lingugkd", "mirage", "dsd", "lpld", "mst_distill"} - {method}
    assert not [path for path in found if Path(path).stem in others]
    assert "missing" not in found.values()


def test_files_are_named_by_the_folder_of_data_that_holds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDBENCH_DATA", str(tmp_path / "a"))
    (tmp_path / "a" / "set").mkdir(parents=True)
    (tmp_path / "a" / "set" / "labels").write_text("0 1")
    teacher = tmp_path / "teacher.bin"
    teacher.write_text("weights")
    config = resolve({"task": "gnn", "method": "alone"})
    with collected_digests() as read:
        file_digest(tmp_path / "a" / "set" / "labels")
        file_digest(teacher)
    made = Made.of(config, read)
    assert set(made.inputs) == {"$KDBENCH_DATA/set/labels", teacher.resolve().as_posix()}
    made.save(tmp_path)
    assert Made.load(tmp_path) == made
    (tmp_path / "made.json").write_text('{"code": 3')
    assert Made.load(tmp_path) is None


def test_what_a_remembered_function_read_counts_at_each_call(tmp_path: Path) -> None:
    path, calls = tmp_path / "x", []
    path.write_text("1")

    @remembered(2)
    def load(name: str) -> str:
        calls.append(name)
        return file_digest(path)

    for _ in range(2):
        with collected_digests() as read:
            assert load("a") == file_digest(path)
        assert read == {path: file_digest(path)}
    assert calls == ["a"]
    load.cache_clear()
    load("a")
    assert calls == ["a", "a"]


def test_a_relative_file_is_that_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "teacher.bin").write_text(folder)
    monkeypatch.chdir(tmp_path / "a")
    with collected_digests() as read:
        file_digest(Path("teacher.bin"))
    made = Made.of(resolve({"task": "gnn", "method": "alone"}), read)
    monkeypatch.chdir(tmp_path / "b")
    assert file_digest(provenance.here(*made.inputs)) != made.inputs["teacher.bin"]


def test_options_that_change_no_number_leave_the_hash() -> None:
    chosen: dict[str, object] = {"task": "gnn", "method": "kd", "seed": 3}
    plain = resolve(chosen)
    for key, value in (
        ("trainer.accelerator", "cpu"),
        ("trainer.checkpoint_every_n_epochs", 3),
        ("trainer.threads", 1),
    ):
        assert resolve({**chosen, key: value}).hash == plain.hash
    assert resolve({**chosen, "trainer.threads": 2}).hash != plain.hash
    assert "threads" not in plain.to_json()["trainer"]
    assert resolve({**chosen, "trainer.threads": 2}).to_json()["trainer"]["threads"] == 2
    assert identity({"trainer": {"accelerator": "gpu", "x": 1}}) == {"trainer": {"accelerator": "auto", "x": 1}}


@pytest.fixture
def once(tmp_path: Path) -> Callable[..., list[str]]:
    """Runs ``alone`` for two epochs and gives the notes; ``once(reused=True)`` holds whether it was done earlier."""
    from kdbench.engine import runner

    class Notes(runner.Silent):
        def __init__(self) -> None:
            self.told: list[str] = []

        def note(self, text: str) -> None:
            self.told.append(text)

    def run(reused: bool, keep: bool = False, **options: object) -> list[str]:
        words = {f"trainer.{name}": value for name, value in options.items()}
        config = resolve({"task": "gnn", "method": "alone", "student.width": 8, "trainer.max_epochs": 2, **words})
        notes = Notes()
        outcome = runner.run(config, tmp_path, notes, keep)
        assert outcome is not None and outcome.reused == reused
        return notes.told

    return run


@pytest.mark.slow
def test_a_finished_run_is_done_again_when_its_code_changes(
    once: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert once(reused=False) == [] and once(reused=True) == []
    real = provenance.code_of
    for user in (finished, provenance):
        monkeypatch.setattr(user, "code_of", lambda config: {**real(config), "kdbench/engine/module.py": "0" * 16})
    (kept,) = once(reused=True, keep=True)
    assert "its record is kept though kdbench/engine/module.py changed" in kept
    (note,) = once(reused=False)
    assert "stale" in note and "kdbench/engine/module.py changed" in note and "method=alone" in note
    assert len(list(tmp_path.rglob("record.json.stale"))) == 1
    assert once(reused=True) == []


def test_a_run_that_does_not_say_what_it_read_is_done_again(once: Callable[..., list[str]], tmp_path: Path) -> None:
    once(reused=False)
    (made,) = tmp_path.rglob("made.json")
    made.write_text(made.read_text()[:-20])
    (note,) = once(reused=False)
    assert "which files it read is not known" in note


def test_a_record_set_aside_is_no_record(once: Callable[..., list[str]], tmp_path: Path) -> None:
    once(reused=False)
    (path,) = tmp_path.rglob("record.json")
    finished.set_aside(path.parent)
    assert store.read([tmp_path]) == []
    assert once(reused=False) == []
    assert store.validate([tmp_path]).valid == 1


def test_threads_and_processors_make_a_run_stale(once: Callable[..., list[str]], tmp_path: Path) -> None:
    once(reused=False)
    assert once(reused=True, accelerator="cpu") == []
    (path,) = tmp_path.rglob("record.json")
    record = loads(path.read_bytes(), path)

    def why(config: RunConfig, **hardware: object) -> list[str]:
        changed = record.model_copy(update={"hardware": record.hardware.model_copy(update=hardware)})
        return stale(changed, config, path.parent)

    plain = from_json(record.config)
    gpu = replace(plain, trainer=replace(plain.trainer, accelerator="gpu"))
    assert why(plain) == [] and why(plain, threads=3) == ["it was computed with 3 threads"]
    assert why(plain, accelerator="H200", threads=3) == [] and why(gpu) == ["it ran on the processor"]
    cpu = replace(plain, trainer=replace(plain.trainer, accelerator="cpu"))
    assert why(cpu, accelerator="H200") == ["it ran on H200"]
    unknown = record.model_copy(update={"code": None})
    assert stale(unknown, plain, path.parent) == ["the code that made it is not known"]


def test_a_checkpoint_of_other_code_is_not_gone_on_with(
    once: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from kdbench.engine import callbacks

    callbacks.stop_asked.set()
    try:
        with pytest.raises(StoppedError):
            once(reused=False)
    finally:
        callbacks.stop_asked.clear()
    assert len(list(tmp_path.rglob("last.ckpt"))) == 1
    real = provenance.code_of
    for user in (finished, provenance):
        monkeypatch.setattr(user, "code_of", lambda config: {**real(config), "kdbench/engine/module.py": "0" * 16})
    (note,) = once(reused=False)
    assert "begins anew, not from its checkpoint, since kdbench/engine/module.py changed" in note


def test_a_changed_file_makes_a_run_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher's file: the same path and another content."""
    import torch
    from safetensors.torch import save_file

    from kdbench.engine import runner
    from kdbench.families.graph.node_classification.data import load

    said: list[str] = []

    class Notes(runner.Silent):
        def note(self, text: str) -> None:
            said.append(text)

    config = resolve({"task": "gnn", "method": "kd", "student.width": 8, "trainer.max_epochs": 2})
    nodes = len(load(config.dataset, config.data, config.seed).y)
    path = tmp_path / "teacher.safetensors"
    save_file({"features": torch.ones(nodes, 4)}, path)
    chosen = {"teacher.source": "file", "teacher.model": str(path)}
    config = resolve({"task": "gnn", "method": "kd", "student.width": 8, "trainer.max_epochs": 2, **chosen})
    results = []
    for _ in range(2):
        outcome = runner.run(config, tmp_path / "runs", Notes())
        assert outcome is not None
        results.append(outcome.reused)
    save_file({"features": torch.eye(nodes, 4)}, path)
    outcome = runner.run(config, tmp_path / "runs", Notes())
    assert outcome is not None
    assert [*results, outcome.reused] == [False, True, False]
    assert len(said) == 1 and f"{path} changed" in said[0]


def test_a_teacher_s_outputs_are_computed_anew_by_other_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights and the same data, but what makes outputs of them has changed."""
    from kdbench.engine import runner, task
    from kdbench.families.graph.node_classification import teacher

    chosen = {"task": "gnn", "method": "kd", "student.width": 8, "trainer.max_epochs": 2}
    runner.run(resolve(chosen), tmp_path, runner.Silent())
    real = teacher.HopTeacher.forward
    scaled = lambda self, rows: {name: -3 * value for name, value in real(self, rows).items()}  # noqa: E731
    monkeypatch.setattr(teacher.HopTeacher, "forward", scaled)
    monkeypatch.setattr(task, "closure_digest", lambda modules: "0" * 64)
    for user in (finished, provenance):
        monkeypatch.setattr(user, "code_of", lambda config: {"teacher.py": "0" * 16})
    again = runner.run(resolve(chosen), tmp_path, runner.Silent())
    fresh = runner.run(resolve(chosen), tmp_path / "fresh", runner.Silent())
    assert again and fresh and not again.reused
    assert again.record.curves == fresh.record.curves and again.record.teacher == fresh.record.teacher
