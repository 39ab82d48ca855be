"""What there is to run: method files read without importing them, task cards checked with file and line."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from kdbench import describe
from kdbench.errors import CardError, MissingExtraError, UsageError, unknown
from kdbench.plan import cards, catalog, datasets, family
from kdbench.plan.cards import read_card
from kdbench.plan.catalog import MethodInfo, read_method
from kdbench.plan.marked_yaml import read_yaml

METHODS = catalog.methods()
METHOD = '''"""A method: ``L = L_task``."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Gt
from kdbench.engine.method import Method


@dataclass(frozen=True)
class Hyperparameters:
    scale: Annotated[float, Gt(0)] = 2.0
    """Scale of the term,
    in two lines."""
    mode: Literal["a", "b"] = "a"
    silent: int = 1


class Mine(Method):
    """Does nothing."""

    title = "a method"
    paper = "https://example.org"
    teacher = "frozen"
    kinds = ("node_classification",)
'''
CARD = """\
title: A task
family: graph
kind: node_classification
dataset: block_model
metric: accuracy
defaults:
  student: {width: 16}
scales:
  tiny:
    data: {words: 60}
    optimizer:
      name: adam
      lr: 0.005
reported:
  - {arm: kd, metric: accuracy, value: 0.8, source: "a paper"}
  - {arm: kd, metric: accuracy, value: 0.9, source: "another", student: gat, spread: 0.01}
"""


def ids(info: MethodInfo) -> str:
    return f"{info.family or 'all'}/{info.name}"


def write(folder: Path, text: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def method_fault(folder: Path, text: str) -> str:
    with pytest.raises(CardError) as caught:
        read_method(write(folder, text), "graph", "mine")
    return str(caught.value)


def card_fault(folder: Path, text: str) -> str:
    with pytest.raises(CardError) as caught:
        read_card(write(folder, text, "mine.yaml"), "mine")
    return str(caught.value)


def test_everything_is_listed_and_checked_without_importing_torch() -> None:
    script = (
        "import sys; from kdbench import describe; from kdbench.plan import cards, catalog\n"
        "catalog.methods(); [cards.card(name) for name in cards.task_paths()]; describe.listing()\n"
        "[describe.description(m.name) for m in catalog.methods()]; [describe.task(n) for n in cards.task_paths()]\n"
        "print([m for m in ('torch', 'pytorch_lightning', 'kdbench.engine') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("info", METHODS, ids=ids)
def test_every_method_file_tells_its_paper_equations_and_options(info: MethodInfo) -> None:
    assert info.doc and "=" in info.doc.split("\n\n", 1)[1], "the docstring gives the equations below its first line"
    if info.name != "alone":
        assert info.paper.startswith("https://") and "Source: " in info.doc
    assert info.title and info.teacher in catalog.LIFETIMES
    assert [field.name for field in info.fields] == [field.name for field in dataclasses.fields(info.hyperparameters)]
    for field in info.fields:
        assert field.doc and field.default is not None, f"{field.name} has a default and a docstring line"


@pytest.mark.parametrize("task", cards.task_paths())
def test_every_shipped_card_resolves_at_each_scale_with_each_of_its_methods(task: str) -> None:
    from kdbench.plan.config import resolve

    card = cards.card(task)
    offered = catalog.offered_methods(card.family, card.kind)
    assert {"alone", "kd"} <= set(offered)
    assert all(datasets.dataset(card.dataset_of(scale)).licence for scale in card.scales)
    for scale in card.scales:
        for name in offered:
            config = resolve({"task": task, "scale": scale, "method": name})
            assert (config.task, config.scale, config.method) == (task, scale, name)


def test_every_option_of_every_card_has_a_docstring_line() -> None:
    from kdbench.plan.cards import section_types

    for task in cards.task_paths():
        for section, options in section_types(cards.card(task)).items():
            for field in catalog.documented_options(options):
                assert field.doc, f"{section}.{field.name} of {task}"


def test_a_method_file_is_read_and_not_run(tmp_path: Path) -> None:
    text = METHOD.replace("class Mine", "raise SystemExit\n\n\nclass Mine")
    info = read_method(write(tmp_path, text), "graph", "mine")
    assert info is not None
    assert (info.name, info.title, info.teacher, info.kinds) == ("mine", "a method", "frozen", ("node_classification",))
    assert [(f.name, f.default, f.doc) for f in info.fields] == [
        ("scale", "2.0", "Scale of the term, in two lines."),
        ("mode", "'a'", ""),
        ("silent", "1", ""),
    ]
    assert info.hyperparameters().scale == 2.0
    assert info.serves("graph", "node_classification") and not info.serves("ner", "node_classification")
    assert not info.serves("graph", "link_prediction")


def test_a_file_without_a_method_is_none(tmp_path: Path) -> None:
    assert read_method(write(tmp_path, "class Helper:\n    pass\n"), "graph", "mine") is None


def test_a_method_without_hyperparameters_has_none(tmp_path: Path) -> None:
    info = read_method(write(tmp_path, METHOD[METHOD.index("class Mine") :]), None, "mine")
    assert info is not None and info.fields == () and dataclasses.fields(info.hyperparameters) == ()
    assert info.serves("ner", "node_classification")


@pytest.mark.parametrize(
    ("old", "new", "at", "said"),
    [
        ("class Mine(Method):", "class Mine(Method)", "class Mine", "expected ':'"),
        ('    paper = "https://example.org"\n', "", "class Mine", "class Mine lacks paper"),
        ('    paper = "https://example.org"\n    teacher = "frozen"\n', "", "class Mine", "lacks paper, teacher"),
        ('teacher = "frozen"', 'teacher = "frosen"', "class Mine", "Did you mean 'frozen'?"),
        ("class Mine", "class First(Method): ...\nclass Mine", "class Mine", "one file holds one method; First"),
        ("Gt(0)", "Grt(0)", "class Hyperparameters", "name 'Grt' is not defined"),
        ("Gt(0)", "numpy.inf", "class Hyperparameters", "built-in ones are all it may use"),
        ("silent: int = 1", "silent: list = []", "class Hyperparameters", "mutable default"),
        ("silent: int = 1", "silent: int = 1 // 0", "class Hyperparameters", "by zero"),
        ("import dataclass\n", "import dataklass\n", "class Hyperparameters", "dataklass"),
        ('title = "a method"', "title = 3", "class Mine", "'title' is text"),
        ('("node_classification",)', '"node_classification"', "class Mine", "'kinds' is a tuple of names"),
        ("@dataclass(frozen=True)\n", "", "class Hyperparameters", "should be a frozen dataclass"),
    ],
)
def test_a_faulty_method_file_is_named_with_its_line(tmp_path: Path, old: str, new: str, at: str, said: str) -> None:
    assert METHOD.count(old) == 1
    text = METHOD.replace(old, new)
    line = next(number for number, words in enumerate(text.splitlines(), 1) if words.startswith(at))
    told = method_fault(tmp_path, text)
    assert told.startswith(f"{tmp_path}/mine.py:{line}: ") and said in told


@pytest.fixture
def fresh() -> Iterator[None]:
    """What was found is forgotten before and after."""
    caches = (catalog._shelf, cards.task_paths, cards.installed, cards.listed)
    for one in caches:
        one.cache_clear()
    yield
    for one in caches:
        one.cache_clear()


def sources(*paths: tuple[str, Path]) -> Any:
    return lambda: [((family, None, p.stem), partial(read_method, p, family, p.stem)) for family, p in paths]


@pytest.mark.usefixtures("fresh")
def test_a_name_that_two_methods_have_is_neithers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder, METHOD)
    first, second, third = (tmp_path / folder / "mine.py" for folder in "abc")
    monkeypatch.setattr(catalog, "_method_sources", sources(("graph", first), ("graph", second), ("graph", third)))
    assert catalog.methods() == ()
    said = f"{second}:1: method 'mine' of graph is also defined in {first}"
    assert capsys.readouterr().err.startswith(f"Left out: {said}")
    with pytest.raises(CardError, match=said):
        catalog.method("mine", "graph", "node_classification")
    catalog._shelf.cache_clear()
    monkeypatch.setattr(catalog, "_method_sources", sources(("graph", first), ("ner", second)))
    assert [info.family for info in catalog.methods()] == ["graph", "ner"]


@pytest.mark.usefixtures("fresh")
def test_a_faulty_method_file_stops_nothing_but_who_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from kdbench.plan.config import expand, expand_baselines

    every = list(catalog._method_sources())
    broken = write(tmp_path, "x = 1\ndef f(:\n", "kd.py")
    rest = [(place, read) for place, read in every if place != (None, None, "kd")]
    monkeypatch.setattr(catalog, "_method_sources", lambda: [*rest, *sources(("graph", broken))()])
    assert "lingugkd" in {info.name for info in catalog.methods()}
    assert capsys.readouterr().err == f"Left out: {broken}:2: invalid syntax.\n"
    (config,) = expand(["task=gnn", "method=lingugkd"])
    for asking in (
        lambda: expand(["task=gnn", "method=kd"]),
        lambda: expand_baselines(config),
        lambda: describe.description("graph/kd"),
        lambda: describe.description("kd"),
    ):
        with pytest.raises(CardError, match=f"{broken}:2: invalid syntax"):
            asking()
    assert capsys.readouterr().err == "", "it was told once"
    assert expand(["task=hippocampus", "method=kd"])


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe", b"x = '\xe9'", b"x = 1\x00", b"x = " + b"(" * 5000, b"\t  x = 1", b'x = """'],
    ids=range(6),
)
def test_a_file_that_is_no_python_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mine.py").write_bytes(content)
    with pytest.raises(CardError, match=rf"{tmp_path}/mine.py:\d+: "):
        read_method(tmp_path / "mine.py", "graph", "mine")
    with pytest.raises(CardError, match=rf"{tmp_path}:1: it cannot be read"):
        read_method(tmp_path, "graph", "mine")


@pytest.mark.usefixtures("fresh")
def test_a_method_for_other_tasks_says_for_which() -> None:
    with pytest.raises(UsageError) as caught:
        catalog.method("lingugkd", "medical", "segmentation_3d")
    assert "'lingugkd'. It is a method for graph node classification. Valid: " in str(caught.value)
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "valid", "near"),
    [
        ("nosuch", ["oracle", "mean_teacher", "kd"], None),
        ("lingukd", ["lingugkd", "kd"], "lingugkd"),
        ("tyni", ["tiny", "small"], "tiny"),
        ("GNN", ["gnn", "ner"], "gnn"),
        ("", ["a"], None),
        ("x" * 100_000, ["xx", "y"], None),
    ],
    ids=range(6),
)
def test_a_hint_is_given_only_for_a_name_that_is_near(name: str, valid: list[str], near: str | None) -> None:
    told = str(unknown("method", name, [*valid, *valid]))
    assert ("Did you mean" in told) == (near is not None) and (near is None or f"Did you mean '{near}'?" in told)
    assert told.endswith(f"Valid: {', '.join(sorted(valid))}.") and len(told) < 500


@pytest.mark.usefixtures("fresh")
def test_what_is_listed_twice_is_named_once() -> None:
    for asked in (describe.description, describe.listing):
        with pytest.raises(UsageError) as caught:
            asked("nosuch")
        names = str(caught.value).partition("Valid: ")[2].removesuffix(".").split(", ")
        assert len(names) == len(set(names)) and "Did you mean" not in str(caught.value)


def test_a_card_is_read_whole(tmp_path: Path) -> None:
    card = read_card(write(tmp_path, CARD, "mine.yaml"), "mine")
    assert (card.title, card.default_scale, card.defaults) == ("A task", "tiny", {"student": {"width": 16}})
    assert [(entry.value, entry.student) for entry in card.reported] == [(0.8, None), (0.9, "gat")]


def test_a_scale_may_have_a_data_set_of_its_own(tmp_path: Path) -> None:
    text = CARD.replace("  tiny:\n", "  full:\n    dataset: cora\n  tiny:\n")
    card = read_card(write(tmp_path, text, "mine.yaml"), "mine")
    assert card.dataset_of("tiny") == card.dataset == "block_model" and card.dataset_of("full") == "cora"
    assert card.scales["full"] == {}


@pytest.mark.parametrize(
    ("old", "new", "at", "said"),
    [
        ("title: A", "titel: A", "titel", "Unknown field 'titel'. Did you mean 'title'?"),
        ("metric: accuracy\ndef", "def", None, "field 'metric' is missing"),
        (
            "metric: accuracy\ndef",
            "metric: acuracy\ndef",
            "metric",
            "metric: Unknown metric of node classification 'acuracy'. Did you mean 'accuracy'?",
        ),
        ("metric: accuracy\ndef", "metric: auc\ndef", "metric", "Valid: accuracy, macro_f1."),
        ("title: A task", "title: [A]", "title", "field 'title' must be text"),
        ("family: graph", "family: grpah", "family", "Did you mean 'graph'?"),
        ("kind: node_classification", "kind: node_clasification", "kind", "Did you mean 'node_classification'?"),
        ("dataset: block_model", "dataset: blok_model", "dataset", "Did you mean 'block_model'?"),
        ("  tiny:\n", "  tiny:\n    dataset: blok_model\n", "    dataset", "Did you mean 'block_model'?"),
        ("  tiny:\n", "  tyni:\n", "  tyni", "Unknown scale 'tyni'. Did you mean 'tiny'?"),
        (CARD[CARD.index("scales:") : CARD.index("reported:")], "", None, "field 'scales' is missing"),
        ("    optimizer:\n", "    optimiser:\n", "    optimiser", "Did you mean 'optimizer'?"),
        ("      lr: 0.005", "      lrr: 0.005", "      lrr", "scales.tiny.optimizer.lrr: Unknown option 'lrr'"),
        ("      lr: 0.005", "      lr: -1", "      lr", "optimizer.lr=-1: should be greater than 0"),
        ("      name: adam", "      name: adma", "      name", "should be 'adamw', 'adam' or 'sgd'"),
        ("      lr: 0.005", "      lr: ${student.widht}", "  tiny", "student.widht"),
        ("      lr: 0.005", "      lr: ${student.name}", "      lr", "optimizer.lr=gcn: should be a valid number"),
        ("    data: {words: 60}", "    data: 60", "    data", "a section is a mapping of options"),
        ("  student: {width: 16}", "  - student", "defaults", "a mapping of sections"),
        ("      lr: 0.005", "      lr: 0.005\n      lr: 1", "      lr: 1", "'scales.tiny.optimizer.lr' is given twice"),
        ("value: 0.8, ", "value: high, ", "  - {arm: kd", "reported.0.value=high: should be a valid number"),
        ('value: 0.8, source: "a paper"', "value: 0.8", "  - {arm: kd", "reported.0.source is missing"),
        ("value: 0.8, ", "valeu: 0.8, ", "  - {arm: kd", "Did you mean 'value'?"),
        ("reported:", "reported: 3\nnotes:", "reported", "must be a list of mappings"),
        ("title: A task", "title: A task\nnotes: 'x", "notes", "while scanning a quoted scalar"),
        ("title: A task", "title: A: task", "title", "mapping values are not allowed"),
        (CARD, "- a list", None, "a card is a mapping of fields"),
        (CARD, "", None, "a card is a mapping of fields"),
    ],
)
def test_a_faulty_card_is_named_with_its_line(tmp_path: Path, old: str, new: str, at: str | None, said: str) -> None:
    assert CARD.count(old) == 1
    text = CARD.replace(old, new)
    line = 1 if at is None else next(n for n, words in enumerate(text.splitlines(), 1) if words.startswith(at))
    told = card_fault(tmp_path, text)
    assert told.startswith(f"{tmp_path}/mine.yaml:{line}: ") and said in told


def test_a_list_does_not_stop_at_a_wrong_option(tmp_path: Path) -> None:
    path = write(tmp_path, CARD.replace("lr: 0.005", "lr: -1"), "mine.yaml")
    assert read_card(path, "mine", options=False).title == "A task"


@pytest.mark.usefixtures("fresh")
def test_a_task_has_the_name_of_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder / "x").mkdir(parents=True)
    write(tmp_path / "a" / "x", CARD, "y.yaml")
    monkeypatch.setattr(cards, "_task_folders", lambda found: [tmp_path / "a", tmp_path / "b"])
    assert list(cards.task_paths()) == ["x/y"]
    write(tmp_path / "b" / "x", CARD, "y.yaml")
    cards.task_paths.cache_clear()
    assert list(cards.task_paths()) == []
    with pytest.raises(CardError, match=f"{tmp_path}/b/x/y.yaml:1: there is a task 'x/y' already, {tmp_path}/a/x"):
        cards.card("x/y")


@pytest.mark.usefixtures("fresh")
def test_a_faulty_card_stops_nothing_but_who_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, CARD, "good.yaml")
    bad = {"bad": CARD.replace("kind", "knd"), "latin": "title: \xe9", "loop": "a: &a [*a]"}
    for name, text in bad.items():
        (tmp_path / f"{name}.yaml").write_bytes(text.encode("latin-1"))
    monkeypatch.setattr(cards, "_task_folders", lambda found: [tmp_path])
    assert [task["name"] for task in describe.listing()["tasks"]] == ["good"]
    told = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1].strip() for line in told] == [f"{tmp_path}/{name}.yaml" for name in sorted(bad)]
    assert cards.card("good").title == "A task"
    for name in bad:
        for asked in (cards.card, describe.description):
            with pytest.raises(CardError, match=f"{tmp_path}/{name}.yaml:"):
                asked(name)
    with pytest.raises(CardError, match=f"{tmp_path}/latin.yaml:"):
        describe.listing("latin")


@pytest.mark.parametrize("at", ["dataset", "    dataset"])
@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("mutag", "Unknown dataset 'mutag'. It is a data set for graph graph classification. Valid: arxiv, "),
        ("shapes", "Unknown dataset 'shapes'. It is a data set for medical. Valid: arxiv, "),
        ("010", "Unknown dataset '010'. Valid: arxiv, "),
    ],
)
def test_a_data_set_of_another_kind_is_refused(tmp_path: Path, at: str, data: str, said: str) -> None:
    if at == "dataset":
        text = CARD.replace("dataset: block_model", f"dataset: {data}")
    else:
        text = CARD.replace("  tiny:\n", f"  tiny:\n    dataset: {data}\n")
    line = next(n for n, words in enumerate(text.splitlines(), 1) if words.startswith(f"{at}:"))
    told = card_fault(tmp_path, text)
    assert told.startswith(f"{tmp_path}/mine.yaml:{line}: ") and said in told


READERS = {
    "node_classification": "kdbench.families.graph.node_classification.data",
    "graph_classification": "kdbench.families.graph.graph_classification.data",
    "domain_adaptation": "kdbench.families.detection.domain_adaptation.domains",
    "segmentation_3d": "kdbench.families.medical.segmentation_3d.data",
    "paired_classification": "kdbench.families.vision_language.paired_classification.data",
}


@pytest.mark.parametrize("kind", READERS)
def test_every_reader_has_its_options_and_its_function(kind: str) -> None:
    package = READERS[kind].rpartition(".")[0]
    functions, options = (import_module(name).READERS for name in (READERS[kind], f"{package}.options"))
    assert functions.keys() == options.keys()
    for one in options.values():
        for field in catalog.documented_options(one):
            assert field.doc, f"{one.__name__}.{field.name}"


def test_every_data_set_is_read_by_a_reader_of_its_kind() -> None:
    for one in datasets.datasets().values():
        assert one.reader and datasets.reading_options(one) is not None


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("# x\na:\n  title: A\n", 2, "a: field 'licence' is missing"),
        ("a: {title: A,\n licence: [MIT]}\n", 2, "a.licence: this is text"),
        ("a: {title: A, licence: MIT,\n generated: 1}\n", 2, "a.generated: this is true or false"),
        ("a: {title: A, licence: MIT,\n files: [x]}\n", 2, "a.files: this is a mapping"),
        ("a:\n  title: A\n  licence: MIT\n  files:\n    x.y:\n      sha256: 3\n", 6, "no SHA-256"),
        ("a: {title: A, licence: MIT, files: {\n x.y: 3}}\n", 2, "a.files.x.y: this is a mapping of fields"),
        ("a: {title: A, licence: MIT,\n name: b}\n", 2, "Unknown field 'name'"),
        ("a: {title: A, licence: MIT}\nb: {title: A, licence: MIT, sorce: x}\n", 2, "Did you mean 'source'?"),
        ("a: {title: A, licence: MIT, files: {x: {url: y}}}\n", 1, "sha256"),
        ("a: 3\n", 1, "a: "),
        ("- a\n", 1, "a mapping of data sets"),
    ],
)
def test_a_faulty_list_of_data_sets_is_named_with_its_line(tmp_path: Path, text: str, line: int, said: str) -> None:
    path = write(tmp_path, text, "mine.yaml")
    with pytest.raises(CardError) as caught:
        datasets.described(*read_yaml(path), path, "graph", prefix="")
    assert str(caught.value).startswith(f"{path}:{line}: ") and said in str(caught.value)


def test_a_missing_extra_is_told_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    family.require_extra("graph")
    monkeypatch.setitem(sys.modules, "torch_geometric", None)
    with pytest.raises(MissingExtraError, match=r"needs 'torch_geometric'.*pip install 'kdbench\[graph\]'") as caught:
        family.require_extra("graph")
    assert caught.value.exit_code == 2


def test_an_unknown_family_is_named() -> None:
    with pytest.raises(UsageError, match="Did you mean 'graph'"):
        catalog.kinds("grahp")


@pytest.mark.parametrize("task", [task for task in cards.task_paths() if cards.card(task).primary])
def test_a_primary_comparison_is_that_of_the_cards_own_student_and_metric(task: str) -> None:
    """Which comparison a card stands for is not chosen by how it came out."""
    from kdbench.plan.config import resolve

    card = cards.card(task)
    assert card.primary and (card.primary.metric, card.primary.settings) == (card.metric, ())
    student = resolve({"task": task, "scale": card.primary.scale, "method": "kd"}).student
    assert {name: getattr(student, name) for name in card.primary.student} == card.primary.student
