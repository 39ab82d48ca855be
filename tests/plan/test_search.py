"""A card's search: what it may say, what a run takes of it, and which runs stay comparable."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdbench.errors import CardError
from kdbench.plan import cards
from kdbench.plan.cards import own_card
from kdbench.plan.config import RunConfig, expand, expand_baselines, from_json
from kdbench.plan.search import points
from kdbench.results.record import group_of

SEARCH = "search: {optimizer.lr: [0.01, 0.003], student.dropout: [0.5, 0.8], kd: {alpha: [0.3, 0.7]}}"
METHODS = (
    "methods: {kd: {alpha: 0.3, optimizer.lr: 0.003}, kd/gat: {optimizer.lr: 0.01}, alone: {student.dropout: 0.8}}"
)


def written(folder: Path, *lines: str) -> str:
    """The path of a card: that of the tiny task of nodes, and further lines."""
    path = folder / "searched.yaml"
    path.write_text("\n".join([cards.task_paths()["gnn"].read_text().rstrip(), *lines]) + "\n")
    return str(path)


def run_of(task: str, *words: str) -> RunConfig:
    (config,) = expand([f"task={task}", *words])
    return config


def fault(folder: Path, *lines: str) -> str:
    path = written(folder, *lines)
    with pytest.raises(CardError) as caught:
        own_card(path)
    count = len(cards.task_paths()["gnn"].read_text().rstrip().splitlines())
    assert f"searched.yaml:{count + len(lines)}: " in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["search: [optimizer.lr]"], "a mapping of options"),
        (["search: {optimizer.rate: [1]}"], "Unknown option 'rate'"),
        (["search: {optimizer.lr: 0.1}"], "as a list"),
        (["search: {optimizer.lr: []}"], "as a list"),
        (["search: {optimizer.lr: [0.1, -1]}"], "optimizer.lr=-1"),
        (["search: {optimizer.lr: [0.1, 1e-1]}"], "given twice"),
        (["search: {data.words: [1, 2]}"], "not in data.words"),
        (["search: {teacher.dropout: [0.1]}"], "not in teacher.dropout"),
        (["search: {student.name: [gcn, gat]}"], "not in student.name"),
        (["search: {kdd: {alpha: [1]}}"], "'kdd'"),
        (["search: {kd: [1]}"], "a mapping of its hyper-parameters"),
        (["search: {kd: {wait: [1]}}"], "Unknown option 'wait'"),
        (["search: {optimizer.lr: [1, 2, 3], kd: {alpha: [0.1, 0.2, 0.3]}}"], "more than 8 points"),
        (["methods: {kd: {optimizer.lr: 0.1}}"], "Unknown searched option 'optimizer.lr'"),
        ([SEARCH, "methods: {kd: {optimizer.lr: 0.1}}"], ": 0.1 is not among the values"),
        ([SEARCH, "methods: {kd: {alpha: 0.5}}"], ": 0.5 is not among the values"),
        ([SEARCH, "methods: {kd/gnn: {optimizer.lr: 0.01}}"], "kd/gnn.name=gnn"),
        ([SEARCH, "methods: {kdd/gat: {optimizer.lr: 0.01}}"], "'kdd'"),
    ],
)
def test_a_faulty_search_is_named_with_its_line(tmp_path: Path, lines: list[str], said: str) -> None:
    assert said in fault(tmp_path, *lines)


def test_points_are_the_product_of_what_all_arms_and_the_method_search(tmp_path: Path) -> None:
    search = own_card(written(tmp_path, SEARCH)).search
    assert len(points(search, "alone")) == 4
    assert len(points(search, "kd")) == 8
    assert points(search, "kd")[1] == {"optimizer.lr": 0.01, "student.dropout": 0.5, "method.alpha": 0.7}


def test_chosen_values_serve_the_arm_its_student_and_its_controls_and_yield_to_the_users(tmp_path: Path) -> None:
    task = written(tmp_path, SEARCH, METHODS)
    kd = run_of(task, "method=kd", "student.name=gcn")
    assert (kd.optimizer.lr, kd.hyperparameters.alpha) == (0.003, 0.3)
    gat = run_of(task, "method=kd", "student.name=gat")
    assert (gat.optimizer.lr, gat.hyperparameters.alpha) == (0.01, 0.3)
    control = run_of(task, "method=kd", "student.name=gcn", "control=shuffled_teacher", "method.temperature=3")
    assert (control.optimizer.lr, control.hyperparameters.alpha) == (0.003, 0.3)
    assert run_of(task, "method=kd", "optimizer.lr=0.5").optimizer.lr == 0.5
    baselines = {one.method: one for one in expand_baselines(run_of(task, "method=lingugkd"))}
    assert baselines["alone"].student.dropout == 0.8 and baselines["kd"].optimizer.lr == 0.003


def test_arms_that_chose_otherwise_are_of_one_group_and_share_what_is_trained_for_all(tmp_path: Path) -> None:
    task = written(tmp_path, SEARCH, METHODS)
    alone, kd = (run_of(task, f"method={name}") for name in ("alone", "kd"))
    assert alone.optimizer.lr != kd.optimizer.lr and alone.student.dropout != kd.student.dropout
    assert group_of(alone.to_json()) == group_of(kd.to_json())
    assert alone.shared.optimizer == kd.shared.optimizer and alone.shared.student == kd.shared.student
    other = run_of(task, "method=kd", "optimizer.weight_decay=0.1")
    assert group_of(other.to_json()) != group_of(kd.to_json())


def test_the_values_of_shared_stages_name_the_run(tmp_path: Path) -> None:
    """Else a teacher could change under a record when the card's own learning rate does."""
    before = run_of(written(tmp_path, SEARCH, METHODS), "method=kd")
    text = Path(written(tmp_path, SEARCH, METHODS)).read_text()
    assert before.search["optimizer.lr"] == before.shared.optimizer.lr
    place = tmp_path / "other"
    place.mkdir()
    changed = text.replace(f"lr: {before.shared.optimizer.lr}", "lr: 0.02", 1)
    assert changed != text
    (place / "searched.yaml").write_text(changed)
    after = run_of(str(place / "searched.yaml"), "method=kd")
    assert after.optimizer == before.optimizer and after.shared.optimizer.lr == 0.02
    assert after.hash != before.hash


def test_a_run_comes_back_from_its_json(tmp_path: Path) -> None:
    task = written(tmp_path, SEARCH, METHODS)
    config = run_of(task, "method=kd", "seed=3")
    assert from_json(config.to_json(), task).hash == config.hash


def test_a_card_without_a_search_says_nothing_of_one() -> None:
    config = run_of("gnn", "method=kd")
    assert "search" not in config.to_json() and config.shared == config
