"""The sbatch template asks for one seed an array task; a stand-in plays srun, which a real cluster has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

TEMPLATE = Path(__file__).parent.parent / "slurm" / "run.sbatch"


def test_an_array_task_runs_its_seed(tmp_path: Path) -> None:
    for name, line in (("srun", 'exec "$@"'), ("kdbench", f'exec {sys.executable} -m kdbench.cli "$@"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    words = ["task=gnn", "method=lingugkd", "--dry-run", "--json", "--runs", str(tmp_path / "runs")]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "7"}
    done = subprocess.run(["bash", TEMPLATE, *words], capture_output=True, text=True, env=environment, check=True)
    commands = [run["command"] for run in json.loads(done.stdout)]
    assert [command.split()[3] for command in commands] == ["method=alone", "method=kd", "method=lingugkd"]
    assert all("seed=7" in command for command in commands)
