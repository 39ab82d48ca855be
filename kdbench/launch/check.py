"""Whether a task is sound, in seconds and untrained: its card, every file and label, and which methods will run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from kdbench.errors import UsageError, unknown
from kdbench.plan import cards
from kdbench.plan.catalog import offered_methods
from kdbench.plan.config import RunConfig, resolve, run_folder
from kdbench.plan.family import require_extra

if TYPE_CHECKING:
    from kdbench.engine.runner import Session


def check(task: str, scale: str | None = None) -> dict[str, Any]:
    """What a task's card and data are, scale by scale, as plain values; the data as of seed 0.

    Raises the first fault of card or data, naming file and row. A method that cannot run on the data as the card has
    it says why.
    """
    card = cards.card(task)
    if scale not in (None, *card.scales):
        raise unknown(f"scale of {card.name}", str(scale), card.scales)
    require_extra(card.family)
    scales = {name: _scale(task, card, name) for name in card.scales if scale in (None, name)}
    return {
        "task": card.name,
        "card": str(card.path),
        "family": card.family,
        "kind": card.kind,
        "metric": card.metric,
        "scales": scales,
    }


def _scale(task: str, card: cards.Card, scale: str) -> dict[str, Any]:
    def run(method: str) -> RunConfig:
        return resolve({"task": task, "scale": scale, "method": method})

    alone = plan(run("alone")).task
    facts = alone.facts
    others = sorted(offered_methods(card.family, card.kind).keys() - {"alone"})
    return {
        "data": facts.name,
        "licence": facts.licence,
        "generated": facts.generated,
        "sha256": facts.sha256,
        "split_sha256": facts.split_sha256,
        "sizes": dict(facts.sizes),
        "classes": {split: dict(counts) for split, counts in alone.balance().items()},
        "methods": {"alone": None, **{name: _obstacle(run(name)) for name in others}},
    }


def _obstacle(config: RunConfig) -> str | None:
    """Why a run would end before its training; None where it would not."""
    try:
        plan(config)
    except UsageError as error:
        return str(error)
    return None


def plan(config: RunConfig) -> Session:
    """A run, its data read and its stages planned; nothing is done. Raises what the run would."""
    from kdbench.engine import runner

    with TemporaryDirectory() as folder:
        session = runner.Session(config, Path(folder), Path(folder), runner.Silent())
        session.stages()
    return session


def check_plans(configs: Iterable[RunConfig], root: Path) -> None:
    """Plan the first run of each arm that is not done, so that what is wrong with one shows before any is trained."""
    first: dict[tuple[str, ...], RunConfig] = {}
    for config in configs:
        if not (run_folder(root, config) / "record.json").exists():
            first.setdefault((config.task, config.scale, config.method, config.control), config)
    if len(first) > 1:  # a single one shows it by itself
        for config in first.values():
            plan(config)
