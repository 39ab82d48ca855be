"""Shared losses against independent float64 NumPy."""

import numpy as np
import pytest
import torch

from kdbench.engine.distributed import check_started, gather, rank
from kdbench.engine.losses import distillation_kl, info_nce
from kdbench.engine.schedules import linear_ramp
from kdbench.errors import UsageError
from kdbench.plan.options import Trainer


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_distillation_kl(temperature: float) -> None:
    rng = np.random.default_rng(0)
    s, t = rng.normal(size=(7, 5)) * 3, rng.normal(size=(7, 5)) * 3
    p, q = softmax(t / temperature), softmax(s / temperature)
    expected = temperature**2 * np.mean(np.sum(p * (np.log(p) - np.log(q)), axis=1))
    got = distillation_kl(torch.from_numpy(s), torch.from_numpy(t), temperature)
    assert got.item() == pytest.approx(expected, rel=1e-12)
    assert distillation_kl(
        torch.from_numpy(s).float(), torch.from_numpy(t).float(), temperature
    ).item() == pytest.approx(expected, rel=1e-5)
    assert distillation_kl(torch.from_numpy(t), torch.from_numpy(t), temperature).item() == pytest.approx(0, abs=1e-12)


def test_info_nce_with_masked_negatives() -> None:
    rng = np.random.default_rng(1)
    a, z = rng.normal(size=(6, 4)), rng.normal(size=(9, 4))
    positives, negatives, tau = rng.integers(9, size=6), rng.random((6, 9)) < 0.5, 0.07
    negatives[2] = False
    total = 0.0
    for i in range(6):
        c = np.array([a[i] @ zj / np.linalg.norm(a[i]) / np.linalg.norm(zj) for zj in z]) / tau
        kept = [j for j in range(9) if negatives[i, j] or j == positives[i]]
        total -= c[positives[i]] - np.log(np.sum(np.exp(c[kept] - c.max()))) - c.max()
    arguments = [torch.from_numpy(x) for x in (a, z, positives, negatives)]
    assert info_nce(*arguments, tau).item() == pytest.approx(total / 6, rel=1e-10)


def test_info_nce_without_negatives_is_zero_and_has_finite_gradient() -> None:
    a = torch.randn(3, 4, requires_grad=True)
    loss = info_nce(a, torch.randn(3, 4), torch.arange(3), torch.zeros(3, 3, dtype=torch.bool), 0.07)
    loss.backward()
    assert loss.item() == 0 and a.grad is not None and torch.isfinite(a.grad).all()


def test_info_nce_ignores_autocast() -> None:
    a, z = torch.randn(5, 8), torch.randn(5, 8)
    rest = (torch.arange(5), ~torch.eye(5, dtype=torch.bool), 0.07)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = info_nce(a, z, *rest)
    assert torch.equal(mixed, info_nce(a, z, *rest))


def test_one_process_gathers_itself() -> None:
    rows = torch.randn(3, 2, requires_grad=True)
    same, offset = gather(rows)
    assert same is rows and offset == 0


def test_rank_follows_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    assert rank(4) == 0
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert rank(4) == 3
    monkeypatch.setenv("RANK", "1")
    assert rank(4) == 1
    assert rank(1) == 0, "one process is the first, whatever a launcher left behind"


def test_srun_starts_as_many_processes_as_the_run_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)
    check_started(Trainer(devices=2, num_nodes=2))
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    check_started(Trainer(devices=2, num_nodes=2))
    with pytest.raises(UsageError, match=r"srun started 4 processes.*makes 1"):
        check_started(Trainer())


def test_linear_ramp() -> None:
    assert [linear_ramp(e, 4) for e in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert linear_ramp(0, 0) == 1.0
