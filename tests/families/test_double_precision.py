"""Task terms are of the precision of the outputs: float64 stays, half precision is lifted to float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kdbench.engine.runner import load_task
from kdbench.engine.stages import StageStore
from kdbench.plan.config import expand

TASKS = ["gnn", "graph_classification", "paired_classification", "hippocampus"]


@pytest.mark.parametrize("task", TASKS)
def test_terms_keep_float64_and_the_bits_of_float32(task: str, tmp_path: Path) -> None:
    (config,) = expand([f"task={task}", "method=alone", "scale=tiny", "trainer.accelerator=cpu"])
    made = load_task(config, StageStore(tmp_path))
    module, batch = made.module(made.student()), made.example()
    with torch.no_grad():
        output, targets = module.forward_batch(batch), module.targets(batch)
    terms = {
        kind: module.task_terms({name: value.to(kind) for name, value in output.items()}, targets)
        for kind in (torch.float64, torch.float32, torch.bfloat16)
    }
    assert {kind: {term.dtype for term in found.values()} for kind, found in terms.items()} == {
        torch.float64: {torch.float64},
        torch.float32: {torch.float32},
        torch.bfloat16: {torch.float32},
    }
    for name, exact in terms[torch.float64].items():
        torch.testing.assert_close(terms[torch.float32][name].double(), exact, rtol=1e-6, atol=1e-6)
        assert terms[torch.float32][name].double() != exact, "float64 was rounded on the way"


def test_a_network_in_float64_gives_float64_terms(tmp_path: Path) -> None:
    (config,) = expand(["task=graph_classification", "method=alone", "scale=tiny", "trainer.accelerator=cpu"])
    made = load_task(config, StageStore(tmp_path))
    module, batch = made.module(made.student()).double(), made.example()
    (term,) = module.task_terms(module.forward_batch(batch), module.targets(batch)).values()
    term.backward()
    assert term.dtype == torch.float64
    assert {p.grad.dtype for p in module.parameters() if p.grad is not None} == {torch.float64}
