"""YAML as its version 1.2 has it: plain words mean what they say, and a bad file is named with its line at once."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest

from kdbench.errors import CardError
from kdbench.plan.marked_yaml import read_yaml


def read(folder: Path, text: str | bytes) -> Any:
    path = folder / "a.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_yaml(path)[0]


def fault(folder: Path, text: str | bytes) -> str:
    """What is said of a file, without its path; it takes no time."""
    began = time.monotonic()
    with pytest.raises(CardError) as caught:
        read(folder, text)
    assert time.monotonic() - began < 2
    assert str(caught.value).startswith(f"{folder}/a.yaml:") and len(str(caught.value)) < 1000
    return str(caught.value).removeprefix(f"{folder}/a.yaml:")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        *(("yes", "yes"), ("No", "No"), ("on", "on"), ("OFF", "OFF"), ("y", "y"), ("true", True), ("False", False)),
        *(("null", None), ("~", None), ("", None), ("nil", "nil"), ("'null'", "null"), ("nULL", "nULL")),
        *(("1:30:00", "1:30:00"), ("12:30", "12:30"), ("1-12", "1-12"), ("2024-01-31", "2024-01-31")),
        *(("2024-01-31T10:00:00Z", "2024-01-31T10:00:00Z"), ("1_000", "1_000"), ("0b101", "0b101")),
        *(("12", 12), ("-3", -3), ("+4", 4), ("010", 10), ("0123", 123), ("0o17", 15), ("0x1F", 31)),
        *(("1.5", 1.5), ("1e3", 1000.0), ("1.50", 1.5), ("-.5", -0.5), ("1.", 1.0), ("1E-3", 0.001)),
        *((".inf", math.inf), ("-.INF", -math.inf), ("inf", "inf"), (".", "."), ("1.2.3", "1.2.3"), ("=", "=")),
        *(('"010"', "010"), ("!!str 010", "010"), ("! 010", "010"), ("<<", "<<"), ("4G", "4G"), ("1e", "1e")),
    ],
)
def test_a_plain_word_means_what_it_says(tmp_path: Path, text: str, meant: Any) -> None:
    value = read(tmp_path, f"a: {text}\n")["a"]
    assert value == meant and isinstance(value, type(meant)) and isinstance(value, bool) == isinstance(meant, bool)
    if not isinstance(meant, str | bool) and meant is not None and math.isfinite(meant):
        assert str(value) == text, "a number is shown as it was written"


def test_keys_are_text_and_merge_keys_are_keys(tmp_path: Path) -> None:
    assert read(tmp_path, "010: a\ntrue: b\nnull: c\n1.50: d\n") == {"010": "a", "true": "b", "null": "c", "1.50": "d"}
    assert read(tmp_path, "a: &x {b: 1}\nc: {<<: *x}\n") == {"a": {"b": 1}, "c": {"<<": {"b": 1}}}
    assert read(tmp_path, "a.b: 1\na: {b: 2}\n") == {"a.b": 1, "a": {"b": 2}}


def test_an_alias_is_a_copy_of_its_own(tmp_path: Path) -> None:
    found = read(tmp_path, "a: &x {b: [1]}\nc: *x\n")
    found["a"]["b"].append(2)
    assert found["c"] == {"b": [1]}


def test_a_byte_order_mark_is_no_word(tmp_path: Path) -> None:
    assert read(tmp_path, b"\xef\xbb\xbfa: \xc3\xa9\r\n") == {"a": "é"}


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: caf\xe9\n".encode("latin-1"), "2: byte 0xe9 is not UTF-8"),
        ("a: 1\n".encode("utf-16"), "1: byte 0xff is not UTF-8"),
        ("a: 1\n".encode("utf-16-le") + b"\xd8\x00", "2: byte 0xd8"),
        ("a: 1\nb: '\x00'\n", "2: the character "),
        ("a: 1\nb: 1" + "0" * 5000, "2: a number of 5001 characters"),
        ("a: 1\nb: 0x1" + "0" * 5000, "2: a number of 5003 characters"),
        ("a: 1\nb: 1e" + "0" * 5000, "2: a number of 5002 characters"),
        ("a:\n  " + "[" * 100_000, "2: values nested more than 50 deep"),
        ("a:\n" + "- " * 100_000, "2: values nested more than 50 deep"),
        ("a:\n  " + "{a: " * 100_000, "2: values nested more than 50 deep"),
        ("".join(" " * n + "a:\n" for n in range(1200)), "52: values nested more than 50 deep"),
        ("a:\n  ? [1]\n  : 2", "2: a key is a word"),
        (BOMB, "5: its aliases unfold to more than 20,000 values"),
        ("a:\n  &a [*a]", "2: the alias 'a' is within what it stands for"),
        ("a: &a\n  b: *a", "2: the alias 'a' is within what it stands for"),
        ("a: 1\nb: *c", "2: nothing has the anchor 'c'"),
        ("a: 1\n---\nb: 2", "2: a second document begins"),
        ("a: 1\nb: !!python/object:os.system x", "2: the tag 'tag:yaml.org,2002:python/object:os.system' is not read"),
        ("a: 1\nb: !mine [x]", "2: the tag '!mine' is not read"),
        ("a: 1\nb: !!int '3'", "2: the tag 'tag:yaml.org,2002:int' is not read"),
        ("a: 1\nb: 'x", "2: while scanning a quoted scalar"),
        ('a: 1\nb: "\\ud800"', "2: while "),
        ("a: {b: 1,\n b: 2}", "2: field 'a.b' is given twice, first in line 1"),
        ("- 1\n" * 200_000, "20000: more than 20,000 values"),
        ("a: " + "x" * (1 << 20), "1: 1,048,579 bytes are more than the 1,048,576"),
        ("a: ]", "1: "),
        ("a: *", "1: "),
        ("\t- a", "1: "),
    ],
    ids=range(28),
)
def test_a_bad_file_is_named_with_its_line_at_once(tmp_path: Path, text: str | bytes, said: str) -> None:
    assert fault(tmp_path, text).startswith(said)


def test_what_is_no_readable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CardError, match=f"{tmp_path}:1: this is no file"):
        read_yaml(tmp_path)
