"""The measurement of a task's arms, from their words to the sealed document."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kdbench.errors import UsageError
from kdbench.launch.check import check_plans
from kdbench.launch.local import ready
from kdbench.plan.config import RunConfig
from kdbench.plan.family import require_extra
from kdbench.results.measured import BUSY, Measurement, seal
from kdbench.results.record import group_of


def measurement(
    configs: Sequence[RunConfig], root: Path, rounds: int, busy: bool, say: Callable[[str], None]
) -> Measurement:
    """The costs of these arms, of one group.

    Raises :class:`UsageError` where other processes are at work, unless the machine may be ``busy``.
    """
    from kdbench.engine import costs
    from kdbench.engine.measuring import measure

    first = configs[0]
    if len({group_of(config.to_json()) for config in configs}) > 1:
        raise UsageError("Arms of one student and one setting are measured at a time.")
    started, before = datetime.now(UTC), costs.load()
    at_work = before is not None and before > BUSY
    if at_work:
        told = f"Other processes are at work (load {before:.1f}, of {BUSY} at most)"
        if not busy:
            raise UsageError(f"{told}: times would be too long. Wait until they end; --busy measures and says so.")
        say(f"{told}: times are too long.")
    require_extra(first.family)
    ready(root)
    check_plans(configs, root)
    hardware, taken = measure(configs, root, rounds, say)
    return seal(
        {
            "task": first.task,
            "scale": first.scale,
            "student": getattr(first.student, "name", None),
            "settings": [word for word in first.overrides if not word.startswith("student.name=")],
            "group": group_of(first.to_json()),
            "seed": first.seed,
            "versions": costs.versions(),
            "git": costs.git_state(),
            "hardware": hardware,
            "load": None if before is None else {"start": before, "end": costs.load()},
            "busy": at_work,
            "started": started,
            "finished": datetime.now(UTC),
            "arms": [_arm(config, found) for config, found in zip(configs, taken, strict=True)],
        }
    )


def _arm(config: RunConfig, found: dict[str, Any]) -> dict[str, Any]:
    times = {"forward_one": found.pop("one"), "forward_batch": found.pop("batch"), "step": found.pop("step")}
    method = config.to_json()["method"]
    return {
        "method": method.pop("name"),
        "hyperparameters": method,
        **found,
        **{name: {"rounds": values} if values else None for name, values in times.items()},
    }
