"""Teachers keep to their lifetimes; controls are what they claim to be."""

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from kdbench.engine.cache import CacheKey, TeacherCache
from kdbench.engine.step import Step
from kdbench.engine.teachers import CachedTeacher, EMATeacher, FrozenTeacher, RandomTeacher, shuffled, weights_digest


def outputs(network: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    return {"logits": network(batch)}


@pytest.fixture
def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))


def test_a_frozen_teacher_does_not_move(network: nn.Module) -> None:
    teacher = FrozenTeacher(network, outputs)
    before = weights_digest(network)
    batch = torch.randn(8, 4)
    first = teacher(batch)["logits"]
    assert not first.requires_grad and torch.equal(first, teacher(batch)["logits"])
    assert not network.training and weights_digest(network) == before == teacher.sha256
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_the_digest_sees_every_weight(network: nn.Module) -> None:
    before = weights_digest(network)
    network[1].running_mean[0] += 1e-6
    assert weights_digest(network) != before
    assert weights_digest(nn.Linear(2, 3)) != weights_digest(nn.Linear(3, 2))


def cached(folder: Path, rows: int = 200) -> TeacherCache:
    key = CacheKey("t", ("logits",), "d", rows)
    return TeacherCache.ensure(folder, key, [{"logits": torch.randn(rows, 3) * torch.tensor([1.0, 5.0, 0.1]) + 2}])


def test_shuffled_rows_stay_in_their_group(tmp_path: Path) -> None:
    groups = torch.tensor([0] * 120 + [1] * 80)
    order = shuffled(groups, seed=3)
    assert torch.equal(order.sort().values, torch.arange(200)) and torch.equal(groups[order], groups)
    assert (order == torch.arange(200)).float().mean() < 0.1
    assert torch.equal(order, shuffled(groups, seed=3)) and not torch.equal(order, shuffled(groups, seed=4))
    cache = cached(tmp_path)
    rows = torch.tensor([5, 150])
    teacher = CachedTeacher(cache, lambda batch: batch, "t", order)
    assert torch.equal(teacher(rows)["logits"], cache.read(order[rows])["logits"])


def test_random_rows_have_the_teacher_s_moments_and_nothing_else(tmp_path: Path) -> None:
    cache = cached(tmp_path, 4000)
    everything = torch.arange(4000)
    teacher, real = RandomTeacher(cache, lambda batch: batch, 0), cache.read(everything)["logits"]
    drawn = teacher(everything)["logits"]
    torch.testing.assert_close(drawn.mean(0), real.mean(0), atol=0.3, rtol=0.1)
    torch.testing.assert_close(drawn.std(0), real.std(0), atol=0, rtol=0.1)
    assert abs(torch.corrcoef(torch.stack([drawn[:, 1], real[:, 1]]))[0, 1]) < 0.1
    assert torch.equal(teacher(torch.tensor([7]))["logits"][0], drawn[7])


def test_the_cache_is_asked_once_for_the_same_rows(tmp_path: Path) -> None:
    cache = cached(tmp_path)
    teacher = CachedTeacher(cache, lambda batch: batch, "t")
    first = teacher(torch.arange(5))["logits"]
    assert teacher(torch.arange(5))["logits"] is first
    assert not torch.equal(teacher(torch.arange(1, 6))["logits"], first)


def test_several_random_teachers_draw_apart_and_the_first_as_ever(tmp_path: Path) -> None:
    cache, rows = cached(tmp_path), torch.arange(200)
    teachers = [RandomTeacher(cache, lambda batch: batch, 0, *number) for number in ((), (0,), (1,))]
    one, same, other = (teacher(rows)["logits"] for teacher in teachers)
    assert torch.equal(one, same) and not torch.equal(one, other)


class Learner(pl.LightningModule):
    """A regression with an EMA teacher of itself."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return self.student(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(*teachers: EMATeacher, folder: Path, epochs: int, resume: str | None = None, accumulate: int = 1) -> Learner:
    torch.manual_seed(0)
    module = Learner()
    data = DataLoader(TensorDataset(torch.arange(48.0).reshape(12, 4).cos()), batch_size=4)
    trainer = pl.Trainer(
        max_epochs=epochs,
        callbacks=list(teachers),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accumulate_grad_batches=accumulate,
    )
    trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    trainer.save_checkpoint(folder / "now.ckpt")
    return module


def test_ema_follows_its_formula(tmp_path: Path, network: nn.Module) -> None:
    teacher = EMATeacher(keep=0.75, forward=outputs)
    module = Learner()
    teacher.on_fit_start(None, module)  # type: ignore[arg-type]
    assert teacher.network is not None
    before = {name: value.clone() for name, value in teacher.network.state_dict().items()}
    with torch.no_grad():
        module.student[0].weight.add_(1.0)
        module.student[1].num_batches_tracked.add_(7)
    teacher.update(module.student)
    after, student = teacher.network.state_dict(), module.student.state_dict()
    torch.testing.assert_close(after["0.weight"], 0.75 * before["0.weight"] + 0.25 * student["0.weight"])
    assert after["1.num_batches_tracked"] == 7 and after["1.num_batches_tracked"].dtype == torch.int64


class Tied(pl.LightningModule):
    """A student whose two layers share their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        self.student[1].weight = self.student[0].weight


def test_ema_moves_and_deploys_a_shared_weight_once() -> None:
    teacher, module = EMATeacher(keep=0.5, forward=outputs, deploy=True), Tied()
    teacher.on_fit_start(None, module)  # type: ignore[arg-type]
    assert teacher.network is not None
    with torch.no_grad():
        module.student[0].weight.add_(1.0)
    student = module.student[0].weight.detach().clone()
    teacher.update(module.student)
    torch.testing.assert_close(teacher.network[0].weight, student - 0.5)
    teacher.on_validation_start(None, module)  # type: ignore[arg-type]
    torch.testing.assert_close(module.student[0].weight, student - 0.5)
    teacher.on_validation_end(None, module)  # type: ignore[arg-type]
    assert torch.equal(module.student[0].weight, student)


def test_ema_is_in_no_optimiser_and_survives_a_resume(tmp_path: Path) -> None:
    whole, half, rest = (EMATeacher(keep=0.9, forward=outputs) for _ in range(3))
    module = fit(whole, folder=tmp_path, epochs=4)
    assert not any("network" in name for name, _ in module.named_parameters())
    fit(half, folder=tmp_path, epochs=2)
    fit(rest, folder=tmp_path, epochs=4, resume=str(tmp_path / "now.ckpt"))
    assert whole.network is not None and rest.network is not None and half.network is not None
    assert weights_digest(whole.network) == weights_digest(rest.network) != weights_digest(half.network)


@pytest.mark.parametrize(
    ("accumulate", "every", "moves"), [(1, 1, 12), (3, 2, 2), (2, 1, 8), (2, 3, 2), (8, 1, 4), (8, 4, 1)]
)
def test_ema_moves_per_optimiser_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int, every: int, moves: int
) -> None:
    """Four epochs of three batches; what an epoch's last batches accumulate is a step, however few they are."""
    moved: list[int] = []
    teacher = EMATeacher(keep=0.9, forward=outputs, every=every)
    monkeypatch.setattr(teacher, "update", lambda student: moved.append(1))
    fit(teacher, folder=tmp_path, epochs=4, accumulate=accumulate)
    assert len(moved) == moves


def test_two_moving_averages_of_one_student_survive_a_resume(tmp_path: Path) -> None:
    def pair() -> list[EMATeacher]:
        return [EMATeacher(0.9, outputs), EMATeacher(0.5, outputs), EMATeacher(0.5, outputs, name="other")]

    whole, half, rest = pair(), pair(), pair()
    fit(*whole, folder=tmp_path, epochs=4)
    fit(*half, folder=tmp_path, epochs=2)
    fit(*rest, folder=tmp_path, epochs=4, resume=str(tmp_path / "now.ckpt"))
    assert [teacher.sha256 for teacher in whole] == [teacher.sha256 for teacher in rest]
    assert whole[0].sha256 != whole[1].sha256 == whole[2].sha256


def test_a_step_serves_several_teachers(network: nn.Module) -> None:
    teachers = {"a": FrozenTeacher(network, outputs), "b": FrozenTeacher(nn.Linear(4, 3), outputs)}
    batch = torch.randn(8, 4)
    step = Step(batch, torch.zeros(8), {}, {}, teachers, 0, 1, Learner())
    assert step.teachers["b"](batch)["logits"].shape == (8, 3)
    with pytest.raises(ValueError, match="too many values"):
        _ = step.teacher
