"""Outputs that were computed elsewhere: what a file must hold, and a plain word about what it lacks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from kdbench.engine import outputs
from kdbench.errors import KdbenchError, UsageError

ROWS, CLASSES = 6, 3
Write = Callable[..., Path]


@pytest.fixture(params=[".npz", ".safetensors"])
def write(tmp_path: Path, request: pytest.FixtureRequest) -> Write:
    """``write(ids=…, logits=…)`` writes a sound file but for what is given; None leaves an array out."""
    path = tmp_path / f"teacher{request.param}"

    def written(**arrays: Any) -> Path:
        logits = np.arange(ROWS * CLASSES, dtype=np.float64).reshape(ROWS, CLASSES)
        whole = {"ids": np.arange(ROWS), "logits": logits} | arrays
        found = {name: value for name, value in whole.items() if value is not None}
        np.savez(path, **found) if path.suffix == ".npz" else save_file(found, path)
        return path

    return written


def test_rows_come_by_their_ids_whatever_their_order(write: Write) -> None:
    order = np.array([3, 1, 0, 5, 4, 2])
    logits = np.random.default_rng(0).normal(size=(ROWS, CLASSES)).astype(np.float32)
    path = write(ids=order, logits=logits[order], hop0=np.arange(ROWS, dtype=np.float16)[order, None])
    teacher = outputs.teacher(str(path), ROWS, (CLASSES,), lambda batch: batch)
    given = teacher(torch.tensor([4, 0]))
    assert torch.equal(given["logits"], torch.from_numpy(logits[[4, 0]])) and given["logits"].dtype == torch.float32
    assert torch.equal(given["hop0"], torch.tensor([[4.0], [0.0]]))


def test_the_teacher_is_the_file(write: Write) -> None:
    def of(path: Path) -> str:
        return outputs.teacher(str(path), ROWS, (CLASSES,), lambda batch: batch).sha256

    first = of(write())
    assert first == of(write()) != of(write(logits=np.zeros((ROWS, CLASSES))))


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"ids": None}, "it must hold 'ids' [n] and 'logits' [n, 3]"),
        ({"logits": None}, "it must hold 'ids' [n] and 'logits' [n, 3]"),
        ({"ids": np.arange(5), "logits": np.zeros((5, 3))}, "1 rows of the task are missing, such as 5"),
        ({"ids": np.arange(7), "logits": np.zeros((7, 3))}, "1 of its ids are no rows of the task, such as 6"),
        ({"ids": np.array([0, 1, 2, 3, 4, -1])}, "such as -1"),
        ({"ids": np.array([0, 1, 2, 3, 4, 5, 5]), "logits": np.zeros((7, 3))}, "id 5 comes twice"),
        ({"ids": np.arange(6.0)}, "'ids' are float64"),
        ({"logits": np.zeros((6, 4))}, "its logits are of 4 classes, the task has 3"),
        ({"logits": np.zeros(6)}, "'logits' has the shape [6], not [6, 3]"),
        ({"logits": np.zeros((5, 3))}, "'logits' has the shape [5, 3], not [6, 3]"),
        ({"hop0": np.zeros((2, 3))}, "'hop0' has the shape [2, 3], not [6, any]"),
        ({"logits": np.full((6, 3), np.nan)}, "row 0: nan is not a finite number"),
        ({"logits": np.full((6, 3), 1e300)}, "row 0: 1e+300 is not a finite number in float32"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(write: Write, arrays: dict[str, Any], said: str) -> None:
    path = write(**arrays)
    with pytest.raises(UsageError) as caught:
        outputs.read(path, ROWS, (CLASSES,))
    assert said in str(caught.value) and str(path) in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    def refused(path: str | None) -> str:
        with pytest.raises(KdbenchError) as caught:
            outputs.teacher(path, ROWS, (CLASSES,), lambda batch: batch)
        assert caught.value.exit_code == 2
        return str(caught.value)

    assert "teacher.path=FILE" in refused(None)
    assert "there is no such file" in refused(str(tmp_path / "none.npz"))
    for name in ("text.npz", "text.safetensors"):
        (tmp_path / name).write_text("no archive")
        assert "cannot be read" in refused(str(tmp_path / name))
    (tmp_path / "outputs.pt").write_bytes(b"")
    assert ".npz and .safetensors" in refused(str(tmp_path / "outputs.pt"))
