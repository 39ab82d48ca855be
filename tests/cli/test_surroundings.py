"""Where kdbench is run: locales without its letters, users without a home, machines without a network."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from kdbench.errors import DataError
from kdbench.plan import datasets

RUN = ["task=gnn", "method=kd", "trainer.max_epochs=2"]
LOCALES = [
    {"PYTHONIOENCODING": "ascii:strict"},
    {"PYTHONIOENCODING": "latin-1:strict"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
]


@pytest.mark.slow
@pytest.mark.parametrize("locale", LOCALES, ids=lambda locale: next(iter(locale.values())))
def test_no_table_is_lost_for_a_letter_that_the_locale_lacks(tmp_path: Path, locale: dict[str, str]) -> None:
    def kdbench(*words: str) -> tuple[str, str]:
        command = [sys.executable, "-m", "kdbench.cli", *words]
        done = subprocess.run(command, capture_output=True, env={**os.environ, **locale})
        assert done.returncode == 0, done.stderr
        return done.stdout.decode("latin-1"), done.stderr.decode("latin-1")

    out, err = kdbench("run", *RUN, "--runs", str(tmp_path))
    assert "|alone" in out and "kd - alone: " in out and "D" in out and "one paired seed" in out
    assert "test accuracy" in err and "No scale was given" in err
    for words in (["show", "kd"], ["compare", "--runs", str(tmp_path), "--markdown"]):
        assert len(kdbench(*words)[0]) > 100


@pytest.mark.parametrize("locale", LOCALES[:2], ids=lambda locale: next(iter(locale.values())))
def test_an_error_is_told_in_any_locale(locale: dict[str, str]) -> None:
    command = [sys.executable, "-m", "kdbench.cli", "show", "日本"]
    done = subprocess.run(command, capture_output=True, env={**os.environ, **locale})
    assert done.returncode == 2 and b"Traceback" not in done.stderr
    assert done.stderr.startswith(b"Error: Unknown task, method or record '")


@pytest.mark.parametrize(
    ("value", "offline"), [("1", True), ("true", True), ("yes", True), ("0", False), ("False", False), ("", False)]
)
def test_offline_is_what_it_says(value: str, offline: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError("asked the network")

    for name in ("KDBENCH_DATA", "KDBENCH_CACHE"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("KDBENCH_OFFLINE", value)
    monkeypatch.setattr("pooch.retrieve", refuse)
    with pytest.raises(DataError) as caught:
        datasets.fetch(datasets.dataset("cora"))
    assert ("asked the network" in str(caught.value)) is not offline


def test_a_user_without_a_home_is_told_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> None:
        raise KeyError(uid)

    for name in ("HOME", "XDG_CACHE_HOME", "KDBENCH_CACHE", "KDBENCH_DATA", "KDBENCH_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    cora = datasets.dataset("cora")
    assert datasets.inventory(cora)["state"] == "missing"
    with pytest.raises(DataError, match=r"looked in no folder.*set KDBENCH_CACHE to a folder"):
        datasets.fetch(datasets.dataset("cora"))
    monkeypatch.setenv("KDBENCH_DATA", str(tmp_path))
    assert cora.places() == [tmp_path / cora.folder]
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "cache"))
    assert cora.places()[1] == tmp_path / "cache" / cora.folder
