"""A checkpoint is used if it is what was written; anything else is named, set aside, and the training starts over."""

from __future__ import annotations

import ast
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import kdbench
from kdbench.engine.callbacks import CheckedCheckpoints, Curves, Selection
from kdbench.engine.fitting import fit
from kdbench.engine.teachers import EMATeacher
from kdbench.plan.options import Trainer

EPOCHS = 4
OPTIONS = Trainer(max_epochs=EPOCHS, accelerator="cpu", checkpoint_every_n_epochs=1)


class Data(pl.LightningDataModule):
    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(TensorDataset(torch.arange(24.0).reshape(6, 4).cos()), batch_size=2)

    val_dataloader = train_dataloader


class Learner(pl.LightningModule):
    """Counts the epochs that it trains."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
        self.epochs: list[int] = []

    def on_train_epoch_start(self) -> None:
        self.epochs.append(self.current_epoch)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return (self.student(batch[0]) - 1).square().mean()

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        self.log("val/score", self.student(batch[0]).mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=EPOCHS)]


class Dies(pl.Callback):
    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.current_epoch == 2:
            raise InterruptedError


def learnt(folder: Path, *more: pl.Callback) -> tuple[Learner, Selection]:
    module, selection = Learner(), Selection("score")
    average = EMATeacher(0.5, lambda network, batch: {"z": network(batch)})
    fit(module, Data(), OPTIONS, EPOCHS, 3, folder, [selection, Curves(), average, *more])
    return module, selection


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return learnt(tmp_path_factory.mktemp("whole"))[0].student.state_dict()


@pytest.fixture
def last(tmp_path: Path) -> Path:
    """The checkpoint after two epochs."""
    with pytest.raises(InterruptedError):
        learnt(tmp_path, Dies())
    return tmp_path / "last.ckpt"


class Runs:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[:-50],
    "truncated to its digest": lambda content: content[-32:],
    "empty": lambda content: b"",
    "garbage": lambda content: b"garbage" * 100,
    "zeroed": lambda content: bytes(len(content)),
    "flipped": flipped,
    "without digest": lambda content: content[:-32],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_training_starts_over(
    last: Path, caplog: pytest.LogCaptureFixture, damage: str, whole: dict[str, Tensor]
) -> None:
    content = DAMAGES[damage](last.read_bytes())
    last.write_bytes(content)
    module, _ = learnt(last.parent)
    assert module.epochs == [0, 1, 2, 3]
    assert all(torch.equal(value, whole[name]) for name, value in module.student.state_dict().items())
    (message,) = caplog.messages
    assert message.startswith(f"{last}: the checkpoint is damaged") and "set aside as last.ckpt.damaged" in message
    assert (last.parent / "last.ckpt.damaged").read_bytes() == content


def test_a_genuine_one_is_gone_on_with_and_holds_nothing_but_plain_values(
    last: Path, caplog: pytest.LogCaptureFixture, whole: dict[str, Tensor]
) -> None:
    assert torch.load(last, weights_only=True)["epoch"] == 1
    module, selection = learnt(last.parent)
    assert module.epochs == [2, 3] and selection.epoch >= 0 and not caplog.messages
    assert all(torch.equal(value, whole[name]) for name, value in module.student.state_dict().items())


def test_every_flipped_bit_is_noticed(last: Path) -> None:
    content = last.read_bytes()
    for place in range(0, len(content), len(content) // 60):
        last.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        assert CheckedCheckpoints().start(last, set_aside=False) is None and last.exists()
    last.write_bytes(content)
    assert CheckedCheckpoints().start(last, set_aside=False) == str(last)


def test_nothing_that_a_checkpoint_holds_is_run(last: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither what was written in its place, nor what a callback of the run itself put into it."""
    sign = last.parent / "sign"
    last.write_bytes(pickle.dumps(Runs(sign)))
    learnt(last.parent)
    checkpoint = torch.load(last, weights_only=True)
    CheckedCheckpoints().save_checkpoint(checkpoint | {"more": Runs(sign)}, last)
    assert learnt(last.parent)[0].epochs == [0, 1, 2, 3] and not sign.exists()
    assert "holds other than tensors, numbers, texts, lists and mappings" in caplog.messages[-1]


def test_what_killed_writers_left_is_removed_when_the_training_goes_on(last: Path) -> None:
    left = [last.parent / f".{name}.abcd1234.unfinished" for name in ("last.ckpt", "record.json")]
    for path in left:
        path.write_bytes(b"half")
    learnt(last.parent)
    assert all(path.suffix == ".ckpt" for path in last.parent.iterdir()) and last.exists()


@pytest.mark.parametrize("damage", ["missing", "of another fit"])
def test_a_checkpoint_without_its_selected_weights_is_damaged(
    last: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    (selected,) = last.parent.glob("selected-*.ckpt")
    if damage == "missing":
        selected.unlink()
    else:
        other = CheckedCheckpoints()
        state = {"epoch": int(selected.stem.partition("-")[2]), "value": 0.0, "weights": {"weight": torch.zeros(2)}}
        other.save_checkpoint({"callbacks": {"Selection": state}}, last.parent / "other" / "last.ckpt")
        (last.parent / "other" / selected.name).rename(selected)
    assert learnt(last.parent)[0].epochs == [0, 1, 2, 3]
    assert f"{selected.name} is not what it was written with" in caplog.messages[0]


def test_selected_weights_are_written_once_and_outlive_a_writer_that_dies_before_the_checkpoint(tmp_path: Path) -> None:
    files, last = CheckedCheckpoints(), tmp_path / "last.ckpt"

    def state(epoch: int) -> dict[str, Any]:
        return {"callbacks": {"Selection": {"epoch": epoch, "value": 0.5, "weights": {"w": torch.full((2,), epoch)}}}}

    files.save_checkpoint(state(3), last)
    written = (tmp_path / "selected-3.ckpt").stat().st_mtime_ns
    files.save_checkpoint(state(3), last)
    assert (tmp_path / "selected-3.ckpt").stat().st_mtime_ns == written
    assert "weights" not in torch.load(last, weights_only=True)["callbacks"]["Selection"]
    before = last.read_bytes(), (tmp_path / "selected-3.ckpt").read_bytes()
    files.save_checkpoint(state(5), last)
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", "selected-5.ckpt"}
    last.write_bytes(before[0])
    (tmp_path / "selected-3.ckpt").write_bytes(before[1])
    held = CheckedCheckpoints().load_checkpoint(last)["callbacks"]["Selection"]
    assert held["weights"]["w"].tolist() == [3, 3] and held.keys() == {"epoch", "value", "weights"}


def test_nothing_in_the_package_unpickles_what_it_reads() -> None:
    package = Path(kdbench.__file__).parent
    for path in package.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_bytes())):
            if not isinstance(call, ast.Call):
                continue
            named, options = ast.unparse(call.func), {option.arg: option.value for option in call.keywords}
            place = f"{path.relative_to(package)}:{call.lineno}"
            assert named not in ("pickle.load", "pickle.loads", "joblib.load", "torch.hub.load"), place
            assert "allow_pickle" not in options, place
            if named == "torch.load":
                assert ast.unparse(options.get("weights_only", ast.Constant(None))) == "True", place
