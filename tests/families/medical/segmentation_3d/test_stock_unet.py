"""The reference: a stock network trained as the student alone is, deployed without a step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from monai.networks.nets import UNet
from safetensors.torch import load_file

from kdbench.engine.runner import Outcome

QUICK = ("task=hippocampus", "scale=tiny", "trainer.max_epochs=4", "trainer.check_val_every_n_epoch=2")


def test_the_stage_trains_monais_network_and_the_run_deploys_it(do: Callable[..., Outcome]) -> None:
    outcome = do(*QUICK, "method=stock_unet", "method.channels=[4,8,16]", "optimizer.lr=0.02")
    (report,) = outcome.record.reports.values()
    metrics = outcome.record.metrics
    assert metrics and report.values["val/dice"] == max(report.curves["val/dice"])
    assert metrics.val["dice"] == pytest.approx(report.values["val/dice"], abs=1e-6)
    assert report.curves["epoch"] == [1, 3] and report.curves["train/loss"][1] < report.curves["train/loss"][0]
    weights = load_file(outcome.folder / "student.safetensors")
    network = UNet(3, 1, 3, (4, 8, 16), (2, 2), num_res_units=2)
    network.load_state_dict(weights)
    assert outcome.record.costs and outcome.record.costs.parameters == sum(p.numel() for p in network.parameters())
    assert network(torch.zeros(1, 1, 16, 16, 16)).shape == (1, 3, 16, 16, 16)
    other = do(*QUICK, "method=stock_unet", "method.channels=[4,8,16]", "optimizer.lr=0.02", "seed=1")
    assert other.record.stages[0].key != outcome.record.stages[0].key
