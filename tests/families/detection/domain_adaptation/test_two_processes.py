"""Self-training in two processes of which one may have no confident label while the other has."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

RUN = """
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from kdbench.plan.config import expand
from kdbench.engine.distributed import rank
from kdbench.engine.runner import Session, Silent

root, *words = sys.argv[1:]
torch.set_num_threads(1)
(config,) = expand(words)
session = Session(config, Path(root), Path(root) / "run", Silent())
for stage in session.stages():
    session.store.ensure(stage)
module, _ = session.assemble()
before = {name: value.clone() for name, value in module.student.state_dict().items()}
_, curves = session.train(module)
save_file(before, f"{root}/before_{rank(2)}.safetensors")
save_file(session.method.training._raw, f"{root}/after_{rank(2)}.safetensors")
Path(f"{root}/skipped_{rank(2)}").write_text(str(curves.values["train/images without label"][0]))
"""


@pytest.mark.slow
@pytest.mark.usefixtures("quick_start")
@pytest.mark.parametrize("method", ["kd", "lpld"])
def test_a_process_without_labels_takes_the_step_of_the_others(method: str, tmp_path: Path) -> None:
    words = ["task=domain_adaptation", f"method={method}", "method.threshold=0.7", "data.batch_size=1"]
    words += ["trainer.max_epochs=2", "trainer.check_val_every_n_epoch=2", "trainer.accelerator=cpu"]
    words += ["trainer.devices=2", "trainer.strategy=ddp", "optimizer.weight_decay=0.1"]
    (tmp_path / "run.py").write_text(RUN)
    clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path), *words]
    started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=clean, start_new_session=True)
    try:
        _, said = started.communicate(timeout=250)
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)
        raise
    assert started.returncode == 0, said
    before, *after = (load_file(tmp_path / f"{name}.safetensors") for name in ("before_0", "after_0", "after_1"))
    assert all(torch.equal(value, after[1][name]) for name, value in after[0].items())
    assert not all(torch.equal(value, before[name]) for name, value in after[0].items())
    skipped = [float((tmp_path / f"skipped_{number}").read_text()) for number in (0, 1)]
    assert any(0 < share < 1 for share in skipped), "some images were left out, and some were not"
