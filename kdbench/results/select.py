"""Choosing records by ``key=value,value`` filters."""

from __future__ import annotations

from collections.abc import Sequence

from kdbench.errors import UsageError, unknown
from kdbench.plan.overrides import parse_overrides
from kdbench.plan.search import SEEDS
from kdbench.results.record import Record

BASELINES = ("alone", "kd")


def matching(records: Sequence[Record], words: Sequence[str]) -> list[Record]:
    """Records whose task, scale, control, seed and ``section.option`` are among the values given.

    Runs of a search (:data:`kdbench.plan.search.SEEDS`) are left out unless seeds are given.
    ``method`` keeps the baselines beside the methods named. Raises :class:`UsageError` for a key no record has or a
    method without records.
    """
    overrides = parse_overrides(words)
    asked = any(override.key == "seed" for override in overrides)
    kept = [record for record in records if asked or record.seed not in SEEDS]
    for override in overrides:
        if override.key == "method":
            present = {record.method for record in kept}
            for name in map(str, override.values):
                if name not in present:
                    raise unknown("method among these records", name, present)
            kept = [r for r in kept if r.method in (*map(str, override.values), *BASELINES)]
        elif override.key in ("task", "scale", "control", "seed", "family"):
            kept = [r for r in kept if getattr(r, override.key) in override.values]
        else:
            section, _, option = override.key.partition(".")
            if not any(isinstance(part := r.config.get(section), dict) and option in part for r in kept):
                raise UsageError(f"No record has an option '{override.key}'.")
            kept = [r for r in kept if _allows(r, section, option, override.values)]
    return kept


def _allows(record: Record, section: str, option: str, values: tuple[object, ...]) -> bool:
    part = record.config.get(section)
    if not isinstance(part, dict) or option not in part:
        return True
    return part[option] in values or str(part[option]) in map(str, values)
