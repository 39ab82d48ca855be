"""From words to runs: grammar, precedence, checks, and the hash that names a run."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kdbench.errors import UsageError
from kdbench.plan import cards, catalog
from kdbench.plan.cards import section_types
from kdbench.plan.config import RunConfig, expand, expand_baselines, from_json, resolve
from kdbench.plan.options import OptionError, build, merge
from kdbench.plan.overrides import parse_overrides, word

ARMS = [
    (task, scale, name)
    for task in cards.task_paths()
    for scale in cards.card(task).scales
    for name in catalog.offered_methods(cards.card(task).family, cards.card(task).kind)
]
ODD_VALUES: list[Any] = [
    *(None, True, False, 0, -3, 7, 0.5, 1e-5, 1e30, -2.5e-8),
    *(
        "gcn",
        "null",
        "Null",
        "true",
        "nan",
        "inf",
        "0",
        "1e3",
        "007",
        "",
        " ",
        "a b",
        " padded ",
        "a,b",
        "a=b",
        "k=v,w",
    ),
    *(
        "it's",
        '"quoted"',
        "back\\slash",
        "ends\\",
        "é",
        "日本語/模型",
        "~/data",
        "a#b",
        "0..9",
        "x0..9",
        "$HOME",
        "a*b",
    ),
    *("[1,2]", "{a:1}", "(", "a:b", "org/model-7B.v1@main", "C:\\a", "range(3)", "choice(a,b)"),
    *([], [1, "a,b", None, True], {"a": 1, "b": "x y"}),
]


def one(*words: str) -> RunConfig:
    (config,) = expand(words)
    return config


def error(*words: str) -> str:
    with pytest.raises(UsageError) as caught:
        expand(words)
    assert caught.value.exit_code == 2
    return str(caught.value)


def values(text: str) -> tuple[Any, ...]:
    (override,) = parse_overrides([f"key={text}"])
    return override.values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3", (3,)),
        ("null", (None,)),
        ("True", (True,)),
        ("1e-3", (1e-3,)),
        ("'a,b'", ("a,b",)),
        ("a,b", ("a", "b")),
        ("'a,b',c", ("a,b", "c")),
        ("null,'null',2", (None, "null", 2)),
        ("[1,2]", ([1, 2],)),
        ("[1,2],[3]", ([1, 2], [3])),
        ("0..3", (0, 1, 2, 3)),
        ("7..7", (7,)),
        ("0..2,5,8..9", (0, 1, 2, 5, 8, 9)),
        ("[0..2]", ([0, 1, 2],)),
        ("'0..2'", ("0..2",)),
        ('"0..2",1..2', ("0..2", 1, 2)),
        ("a0..2", ("a0..2",)),
        ("1.0..2", ("1.0..2",)),
        ("range(0,3)", (0, 1, 2)),
        ("choice(a,b)", ("a", "b")),
        ("", ("",)),
    ],
)
def test_overrides_follow_hydras_grammar_with_a_short_range(text: str, expected: tuple[Any, ...]) -> None:
    assert values(text) == expected
    assert all(isinstance(value, type(wanted)) for value, wanted in zip(values(text), expected, strict=True))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed", "key=value"),
        ("=3", "key=value"),
        ("teacher.model=a=b", "in quotes"),
        ("teacher.model=é", "in quotes"),
        ("+seed=1", "key=value"),
        ("~seed=1", "key=value"),
        ("seed@data=1", "key=value"),
        ("seed=9..0", "9..0"),
        ("seed=0..99999999999", "0..99999999999"),
        ("optimizer.lr=interval(0,1)", "interval"),
        ("student.name=glob(*)", "glob"),
        ("seed=range(5,1)", "no value"),
        ("seed=range(0,9,0)", "must not be zero"),
        ("seed=range(0,nan)", "finite numbers"),
        ("seed=[range(1,3)]", "at the top"),
        ("seed=choice(1,choice(2,3))", "at the top"),
    ],
)
def test_a_word_that_does_not_parse_is_named(text: str, said: str) -> None:
    told = error("task=gnn", "method=kd", text)
    assert f"'{text}'" in told and said in told


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["seed=" + "1" * 5000], "a number of 5000 characters"),
        (["seed=1.." + "1" * 5000], "a number of 5000 characters"),
        (["data.words=[" + "1" * 5000 + "]"], "a number of 5000 characters"),
        (["data.words=" + "1" * 400], "should be less than 2^63"),
        (["data.words=" + "[" * 5000 + "]" * 5000], "brackets are nested more than 20 deep"),
        (["data.words=" + "{a:" * 21 + "1" + "}" * 21], "brackets are nested more than 20 deep"),
        (["data.words=" + "int(" * 3000], "brackets are nested more than 20 deep"),
        (["teacher.model='" + "\\" * 10_001], "Cannot read"),
        (["teacher.model=" + "a," * 100_000], "at most 20,000 characters"),
        (["seed=range(0,1000000)"], "more than 10,000 values"),
        (["seed=shuffle(range(0,1000000000000))"], "more than 10,000 values"),
        (["seed=range(0,inf)"], "more than 10,000 values"),
        (["seed=0..9999,20000"], "more than 10,000 values"),
        (["seed=0..9999", "data.words=0..9999"], "100,000,000 runs (10,000 of seed × 10,000 of data.words)"),
        (["seed=range(0,9999)", "data.words=choice(1,2,3)"], "29,997 runs"),
    ],
    ids=range(15),
)
def test_what_nobody_means_is_refused_at_once(words: list[str], said: str) -> None:
    began = time.monotonic()
    told = error("task=gnn", "method=kd", *words)
    assert time.monotonic() - began < 2
    assert said in told and len(told) < 1000


def test_thousands_of_values_are_read_at_once() -> None:
    began = time.monotonic()
    assert len(values("0..4999,5000,6000..9998")) == 9000
    assert len(values("range(0,10000)")) == 10_000
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    "text", ["1e3", "1.50", "1_000", "-0", "yes", "+7", ".5", "007", "1:30", "1E-3", "0x1f", "inf"]
)
def test_an_option_of_text_takes_what_was_written(text: str) -> None:
    config = one("task=gnn", "method=kd", f"teacher.model={text}")
    assert config.teacher.model == text
    assert one(*shlex.split(config.command)[2:]) == config
    assert {c.teacher.model for c in expand(["task=gnn", "method=kd", f"teacher.model={text},a"])} == {text, "a"}
    other = one("task=gnn", "method=kd", f"teacher.model={text}", "data.words=${student.width}")
    assert (other.teacher.model, other.data.words) == (text, other.student.width)
    (kd,) = expand_baselines(one("task=gnn", "method=alone", f"teacher.model={text}"))
    assert kd.teacher.model == text


def test_texts_that_are_one_number_are_two_texts() -> None:
    assert len(expand(["task=gnn", "method=kd", "teacher.model=1e3,1000.0,1000"])) == 3
    assert len(expand(["task=gnn", "method=kd", "optimizer.lr=1e-3,0.001,1.0e-3"])) == 1


def test_a_number_has_one_name_however_it_is_written() -> None:
    first, *others = (one("task=gnn", "method=kd", f"optimizer.weight_decay={z}") for z in ("0", "-0.0", "0e5", "-0"))
    assert all(other.hash == first.hash and other.pairing == first.pairing for other in others)
    short, long = (one("task=gnn", "method=kd", f"optimizer.lr={lr}", "student.width=1e1") for lr in ("1e-2", "0.01"))
    assert (short.hash, short.command, short.pairing) == (long.hash, long.command, long.pairing)
    assert "optimizer.lr=0.01 student.width=10" in short.command
    pair = one("task=paired_classification", "method=kd", "data.noise=[-0.0,0]")
    assert pair.hash == one("task=paired_classification", "method=kd", "data.noise=[0,0]").hash


@pytest.mark.parametrize("card_text", ["1e3", "0123", "1.50", "010", "2024-01-31", "1:30:00", "yes"])
def test_an_option_of_text_in_a_card_takes_what_was_written(
    card_text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = cards.task_paths()["gnn"].read_text(encoding="utf-8")
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("scales:", f"defaults: {{teacher: {{model: {card_text}}}}}\nscales:", 1))
    mine = cards.read_card(path, "gnn")
    monkeypatch.setattr("kdbench.plan.config.card", lambda name: mine)
    assert one("task=gnn", "method=kd").teacher.model == card_text


def test_a_key_given_twice_is_refused() -> None:
    assert "'seed' is given twice" in error("task=gnn", "method=kd", "seed=1", "seed=2")


@pytest.mark.parametrize("value", ODD_VALUES, ids=repr)
def test_a_written_value_is_read_back(value: Any) -> None:
    (again,) = values(word(value))
    assert again == value and type(again) is type(value)


def test_task_and_method_are_required() -> None:
    assert "'task=…' is missing" in error("method=kd")
    assert "'method=…' is missing" in error("task=gnn")


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (["task=gmn", "method=kd"], "Did you mean 'gnn'?"),
        (["task=gnn", "method=lingukd"], "Did you mean 'lingugkd'?"),
        (["task=gnn", "method=kd", "scale=tyni"], "Did you mean 'tiny'?"),
        (["task=gnn", "method=kd", "control=shufled_teacher"], "Did you mean 'shuffled_teacher'?"),
        (["task=gnn", "method=kd", "optimizer.learning=1"], "'optimizer.learning'. Valid: optimizer.lr, "),
        (["task=gnn", "method=kd", "optimizer.momemtum=1"], "Did you mean 'optimizer.momentum'? Valid: optimizer.lr, "),
        (["task=gnn", "method=kd", "nosuch=1"], "'nosuch'. Valid: control, method, "),
        (["task=gnn", "method=kd", "studnet.width=8"], "Did you mean 'student.width'?"),
        (["task=gnn", "method=kd", "student.wdith=8"], "Did you mean 'student.width'?"),
        (["task=gnn", "method=kd", "lr=1"], "Did you mean 'optimizer.lr'?"),
        (["task=gnn", "method=kd", "student.lr=1"], "Did you mean 'optimizer.lr'?"),
        (["task=gnn", "method=kd", "sede=1"], "Did you mean 'seed'?"),
        (["task=gnn", "method=kd", "method.temprature=1"], "Did you mean 'method.temperature'?"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(words: list[str], nearest: str) -> None:
    assert nearest in error(*words)


def test_a_method_option_must_exist_for_every_method_named() -> None:
    assert len(expand(["task=gnn", "method=kd,lingugkd", "method.temperature=2"])) == 2
    assert "method.temperature" in error("task=gnn", "method=kd,alone", "method.temperature=2")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("seed=-1", "seed=-1: should be greater than or equal to 0"),
        ("seed=true", "seed=true: should not be true or false"),
        ("seed=1.5", "seed=1.5: should be a valid integer"),
        ("seed=null", "seed=null: should be a valid integer"),
        ("optimizer.lr=fast", "optimizer.lr=fast: should be a valid number"),
        ("optimizer.lr=0", "optimizer.lr=0: should be greater than 0"),
        ("optimizer.lr=inf", "optimizer.lr=inf: should be"),
        ("optimizer.lr=nan", "optimizer.lr=nan: should be"),
        ("optimizer.name=adamm", "optimizer.name=adamm: should be 'adamw', 'adam' or 'sgd'"),
        ("teacher.cache=1", "teacher.cache=1: should be true or false"),
        ("teacher.model=null", "teacher.model=null: should be a valid string"),
        ("teacher.model='a\nb'", "should be one line"),
        ("teacher.model='\x00'", "should be one line"),
        ("teacher.model='\udcff'", "should be one line"),
        ("seed=99999999999999999999", "should be less than 2^63"),
        ("trainer.max_epochs=1e30", "trainer.max_epochs=1e30: Unable to parse"),
        ("student.width=[8]", "student.width=[8]: should be a valid integer"),
        ("student.dropout=1", "student.dropout=1: should be less than 1"),
        ("method.alpha=2", "method.alpha=2: should be less than or equal to 1"),
        ("trainer.max_epochs=", "trainer.max_epochs='': should be a valid integer"),
    ],
)
def test_a_wrong_value_is_named_with_what_it_should_be(option: str, said: str) -> None:
    assert said in error("task=gnn", "method=kd", option)


def test_a_wrong_value_within_others_is_named() -> None:
    for text, said in (
        ("[inf,1]", "data.noise.0=inf: should be a finite number"),
        ("[1,true]", "data.noise.1=true: should not be true or false"),
        ("[1,x]", "data.noise.1=x: should be a valid number"),
    ):
        assert said in error("task=paired_classification", "method=kd", f"data.noise={text}")


def test_a_number_is_taken_as_text_where_text_is_due() -> None:
    assert one("task=gnn", "method=kd", "data.split=1").data.split == "1"
    assert one("task=gnn", "method=kd", "teacher.model=7").teacher.model == "7"


def test_seeds_are_outermost_so_that_an_interrupted_grid_leaves_whole_pairs() -> None:
    found = expand(["method=alone,kd", "student.name=gcn,gat", "task=gnn", "seed=0..2", "control=none,random_teacher"])
    assert [config.seed for config in found] == sorted(config.seed for config in found)
    arms = [("alone", "none"), ("kd", "none"), ("kd", "random_teacher")]
    expected = [(s, n, m, c) for s, n, (m, c) in itertools.product((0, 1, 2), ("gcn", "gat"), arms)]
    assert [(c.seed, c.student.name, c.method, c.control) for c in found] == expected


def test_runs_that_are_the_same_are_named_once() -> None:
    assert len(expand(["task=gnn", "method=alone", "teacher.source=tfidf,minilm"])) == 1
    assert len(expand(["task=gnn", "method=kd", "teacher.source=tfidf,minilm"])) == 2


def test_a_control_needs_a_frozen_teacher() -> None:
    assert "needs a method with frozen teachers" in error("task=gnn", "method=alone", "control=shuffled_teacher")
    found = expand(["task=gnn", "method=alone,kd", "control=shuffled_teacher"])
    assert [(config.method, config.control) for config in found] == [("kd", "shuffled_teacher")]


def test_precedence_is_defaults_card_scale_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = {"optimizer": {"lr": 0.2, "momentum": 0.2}, "student": {"width": 20, "layers": 3}}
    scale = {"optimizer": {"lr": 0.3}, "student": {"width": 30}}
    layered = dataclasses.replace(cards.card("gnn"), defaults=defaults, scales={"tiny": scale})
    monkeypatch.setattr("kdbench.plan.config.card", lambda name: layered)
    found = resolve({"task": "gnn", "method": "kd", "student.width": 40})
    assert (found.optimizer.weight_decay, found.student.dropout) == (5e-4, 0.2)
    assert (found.optimizer.momentum, found.student.layers) == (0.2, 3)
    assert (found.optimizer.lr, found.student.width) == (0.3, 40)


def test_interpolations_are_resolved_and_a_broken_one_is_named() -> None:
    assert one("task=gnn", "method=kd", "student.width=48", "data.words=${student.width}").data.words == 48
    assert one("task=gnn", "method=kd", "method.alpha=${student.dropout}").hyperparameters.alpha == 0.2
    assert "student.widht" in error("task=gnn", "method=kd", "data.words=${student.widht}")
    assert merge([{"a": {"x": 1, "y": "${a.x}"}}, {"a": {"x": 2}}]) == {"a": {"x": 2, "y": 2}}


def test_the_hash_is_of_the_resolved_values_and_not_of_how_they_were_said() -> None:
    base = one("task=gnn", "method=kd", "seed=1", "student.width=32", "optimizer.lr=0.01")
    other = one("optimizer.lr=1e-2", "student.width=32", "seed=1", "method=kd", "task=gnn", "scale=tiny")
    default = one("task=gnn", "method=kd", "seed=1", "student.width=32", "optimizer.lr=0.01", "student.name=gcn")
    assert base.hash == other.hash == default.hash
    changed = {"seed=2", "student.width=33", "optimizer.lr=0.02", "method.alpha=0.4", "control=random_teacher"}
    hashes = {one("task=gnn", "method=kd", *(() if w.startswith("seed") else ["seed=1"]), w).hash for w in changed}
    assert len(hashes | {base.hash}) == len(changed) + 1


def test_the_hash_is_the_same_in_every_process_and_order() -> None:
    config = one("task=gnn", "method=kd", "seed=5")
    assert json.loads(json.dumps(config.to_json())) == config.to_json()
    assert config.hash == from_json(dict(reversed(config.to_json().items()))).hash
    command = [sys.executable, "-m", "kdbench.cli", *shlex.split(config.command)[1:], "--dry-run", "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": "7"}, check=True
    )
    assert config.hash in [line["hash"] for line in json.loads(done.stdout)]


def test_alone_has_no_teacher_so_its_hash_does_not_depend_on_one() -> None:
    plain, other = one("task=gnn", "method=alone"), one("task=gnn", "method=alone", "teacher.source=minilm")
    assert plain.to_json()["teacher"] is None and plain.hash == other.hash
    assert "teacher.sorce" in error("task=gnn", "method=alone", "teacher.sorce=minilm")


@pytest.mark.parametrize(("task", "scale", "name"), ARMS)
def test_every_arm_is_the_same_from_its_json_and_from_its_command(task: str, scale: str, name: str) -> None:
    config = one(f"task={task}", f"scale={scale}", f"method={name}", "seed=3", "optimizer.lr=0.1")
    again = from_json(json.loads(json.dumps(config.to_json())))
    assert again == config and again.hash == config.hash
    for command in (config.command, again.command):
        program, verb, *words = shlex.split(command)
        assert (program, verb) == ("kdbench", "run")
        assert one(*words).hash == config.hash


@pytest.mark.parametrize("model", ["a,b", "k=v", "it's", "é x", "null", "7", "0..3", "/tmp/a b.safetensors"])
def test_a_command_repeats_odd_texts(model: str) -> None:
    config = resolve({"task": "gnn", "method": "kd", "teacher.model": model, "data.words": None, "control": "none"})
    assert config.teacher.model == model and config.data.words is None
    assert one(*shlex.split(config.command)[2:]) == config


def test_a_later_option_is_no_part_of_a_run_until_it_is_set() -> None:
    (plain,) = expand(["task=gnn", "method=kd"])
    (same,) = expand(["task=gnn", "method=kd", "teacher.path=null", "trainer.threads=1"])
    (other,) = expand(["task=gnn", "method=kd", "teacher.path=outputs.npz"])
    assert "path" not in plain.to_json()["teacher"] and plain.hash == same.hash != other.hash
    assert other.to_json()["teacher"]["path"] == "outputs.npz" and from_json(other.to_json()).hash == other.hash


def test_baselines_share_everything_but_the_method() -> None:
    config = one(
        "task=gnn", "method=lingugkd", "seed=4", "control=random_teacher", "student.width=16", "method.temperature=1"
    )
    alone, kd = expand_baselines(config)
    assert (alone.method, kd.method) == ("alone", "kd")
    for arm in (alone, kd):
        assert (arm.seed, arm.control, arm.student, arm.trainer) == (4, "none", config.student, config.trainer)
    assert kd.hyperparameters.temperature == 4.0 and kd.teacher == config.teacher
    assert [arm.method for arm in expand_baselines(kd)] == ["alone"]


def test_an_unknown_kind_is_named() -> None:
    card = cards.card("gnn")
    with pytest.raises(UsageError, match="node_classification"):
        section_types(dataclasses.replace(card, kind="node_clasification"))


def test_build_names_what_is_missing() -> None:
    with pytest.raises(OptionError, match=r"reported\.0\.source is missing") as caught:
        build(cards.Reported, {"arm": "kd", "metric": "accuracy", "value": 0.5}, "reported.0")
    assert caught.value.field == "reported.0.source"
