"""PyTorch Geometric's layers leave no file behind, and compute what they compute without our part in it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

LAYERS = """
import torch
from kdbench.families.graph.node_classification.networks import GNN
from kdbench.families.graph.node_classification.options import NodeStudent
for name in ("gcn", "gat", "sage", "gin"):
    torch.manual_seed(0)
    network = GNN(3, 2, NodeStudent(name=name, width=8)).eval()
    print(network(torch.ones(4, 3).tril(), torch.tensor([[0, 1, 2], [1, 2, 3]])).double().sum().item())
"""
OWN = "import torch_geometric.nn.conv.message_passing as m; keep = m.module_from_template\n"
BACK = "import kdbench.families.graph.templates; m.module_from_template = keep\n"


@pytest.fixture
def printed(tmp_path: Path) -> Callable[[str], str]:
    """What a script prints whose temporary folder is ``tmp_path``."""

    def run(script: str) -> str:
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        words = [sys.executable, "-c", script]
        return subprocess.run(words, env=environment, check=True, capture_output=True, text=True).stdout

    return run


def left(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_layers_leave_no_file_in_the_temporary_folder(printed: Callable[[str], str], tmp_path: Path) -> None:
    ours = printed(LAYERS)
    assert left(tmp_path) == []
    assert ours == printed(OWN + BACK + LAYERS)
    assert left(tmp_path), "PyTorch Geometric leaves none itself: templates.py can go"
