"""``kdbench measure``: what the arms of a task cost, on an idle machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kdbench.cli.shared import data_sets_option, json_option, print_json, runs_option
from kdbench.hashing import write_atomic

if TYPE_CHECKING:
    from rich.table import Table

    from kdbench.results.measured import Measurement, Times


@click.command()
@click.argument("task")
@click.argument("overrides", nargs=-1, metavar="KEY=VALUE…")
@runs_option
@data_sets_option
@json_option
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder; RUNS/measurements by default.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Rounds through all arms.")
@click.option("--busy", is_flag=True, help="Measure though other processes are at work, and say so in the result.")
def measure(
    task: str, overrides: tuple[str, ...], runs: Path, as_json: bool, output: Path | None, rounds: int, busy: bool
) -> None:
    """Measure what each arm costs: forward passes of the deployed student, training steps, operations, memory.

    Rounds go through all arms in turn, at the card's primary setting; shown are the median of the rounds and their
    range. Stages that the arms need, such as a teacher, are taken from the folder of runs or done first: their seconds
    are told only where all of an arm's were done now, so give a new folder by --runs. Memory is what training takes
    beyond the libraries, in a process of its own.

    \b
    kdbench measure graph_classification/nci1
    kdbench measure gnn/cora_text student.name=gat method=alone,kd
    kdbench measure graph_classification/nci1 -o leaderboard/measurements
    """
    from kdbench.launch import tuning
    from kdbench.results.measured import path_of

    arms = tuning.bases(task, overrides)
    from kdbench.engine.measuring import measurement

    measured = measurement([arm for _, arm in arms], runs, rounds, busy, lambda text: click.echo(text, err=True))
    student = arms[0][0].partition("/")[2]
    path = path_of(output or runs / "measurements", measured.task, student)
    write_atomic(path, measured.text)
    if as_json:
        print_json(json.loads(measured.text))
        return
    from rich.console import Console

    Console(width=140).print(_table(measured))
    click.echo(f"Measurement: {path}")


def _table(measured: Measurement) -> Table:
    from rich.table import Table

    student = [f"student.name={measured.student}"] if measured.student else []
    about = " ".join([measured.task, measured.scale, *student])
    load = f"load {measured.load.start:.1f} to {measured.load.end:.1f}" if measured.load else "load not known"
    title = f"{about} {' '.join(measured.settings)}: {measured.hardware.threads} thread, {load}"
    heads = (
        "arm",
        "parameters",
        "kFLOPs/example",
        "forward of 1, ms",
        "of a batch, ms",
        "step, ms",
        "stages, s",
        "memory, MB",
    )
    table = Table(*heads, title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for arm in measured.arms:
        ranges = map(_range, (arm.forward_one, arm.forward_batch, arm.step))
        stages = "—" if arm.stage_seconds is None else f"{arm.stage_seconds:.1f}"
        memory = "—" if arm.memory_bytes is None else f"{arm.memory_bytes / 1e6:.0f}"
        table.add_row(arm.method, f"{arm.parameters:,}", f"{arm.flops_per_example / 1e3:,.1f}", *ranges, stages, memory)
    return table


def _range(times: Times | None) -> str:
    return "—" if times is None else f"{times.median:.3g} [{times.low:.3g}, {times.high:.3g}]"


COMMANDS = (measure,)
