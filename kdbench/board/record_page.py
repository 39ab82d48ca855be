"""The page of one record: what was run, on what, with which outcome."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from markupsafe import Markup, escape
from pydantic import JsonValue

from kdbench.board import figures, pages, safe
from kdbench.results import outcomes
from kdbench.results.measured import Arm, Times, of_record
from kdbench.results.parts import Report, Search, Stage
from kdbench.results.record import Record
from kdbench.results.render import MISSING, count, fixed

MOST = 200
"""Options, versions or seeds that one page lists."""
CLASSES = 20
"""Classes up to which a confusion matrix is shown."""
_PLAIN_COMMAND = re.compile(r"kdbench run( [\w./=,:+\[\]{}@%-]+)+")

Facts = list[tuple[str, str]]


def record_page(record: Record, drawn: bool = True) -> str:
    """A record's page as HTML, with its curves ``drawn`` or not. Texts that are cut are whole in the JSON beside it."""
    groups = [
        ("data", "Data", _data(record)),
        ("teacher", "Teacher", _teacher(record)),
        ("costs", "Costs", _costs(record)),
        ("stages", "Stages", _stages(record)),
        ("provenance", "Provenance", _provenance(record)),
        ("seeds", "Seeds", [(safe.cut(k, 80), _value(v)) for k, v in _first(record.seeds.items())]),
    ]
    return pages.page(
        "record.html",
        depth=2,
        title=f"{safe.name(record.method)} on {safe.name(record.task)}, seed {safe.cut(str(record.seed), 24)}",
        families=[record.family],
        record=record,
        hash16=record.config_hash[:16],
        kept=record.outcomes is not None and not outcomes.lacking(record),
        task_slug=safe.task_slug(record.task),
        scores=_scores(record),
        selection=_selection(record),
        failure=_list(_terms(record)),
        odd=not _PLAIN_COMMAND.fullmatch(record.command),
        figures=figures.of_record(record) if drawn else [],
        drawn=drawn,
        configuration=_configuration(record.config),
        groups=[{"id": key, "title": title, "facts": _list(facts)} for key, title, facts in groups if facts],
        confusion=_confusion(record.confusion),
    )


def _list(facts: Facts) -> Markup:
    return Markup(f'<dl class="facts">\n{"".join(_fact(*fact) for fact in facts)}</dl>' if facts else "")


@functools.lru_cache(4096)
def _fact(key: str, value: str) -> str:
    """An entry of a list of facts. Most entries of most records are alike, and a template takes ten times as long."""
    return f"<dt>{escape(safe.cut(key))}</dt><dd>{escape(safe.cut(value))}</dd>\n"


def _confusion(matrix: list[list[int]] | None) -> Markup | None:
    """Head and body of the table, where there are not too many classes to read."""
    if not matrix or len(matrix) > CLASSES:
        return None
    classes = range(len(matrix))
    head = "".join(f'<th scope="col">{index}</th>' for index in classes)
    lines = [
        f'<tr><th scope="row">{index}</th><td>{"</td><td>".join(map(_digits, row))}</td></tr>'
        for index, row in zip(classes, matrix, strict=True)
    ]
    return Markup(f"<thead><tr><td></td>{head}</tr></thead>\n<tbody>\n{chr(10).join(lines)}\n</tbody>")


def _digits(number: int) -> str:
    return str(number) if number < 10**12 else f"{str(number)[:12]}…"


def _first(items: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    for index, item in enumerate(items):
        if index == MOST:
            yield "…", "more in the JSON"
            return
        yield item


def _value(value: JsonValue) -> str:
    if isinstance(value, str):
        return safe.cut(value, 200)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return safe.cut(repr(value), 200)
    return MISSING if value is None else safe.cut(json.dumps(value, ensure_ascii=False), 200)


def _configuration(config: Mapping[str, JsonValue]) -> Markup:
    """``section.option`` with its value, two levels deep."""
    sections = "".join(_section(name, json.dumps(content)) for name, content in _first(config.items()))
    return Markup(f'<dl class="facts">\n{sections}</dl>')


def _section(name: str, written: str) -> str:
    return (_kept_section if len(name) + len(written) < 2000 else _kept_section.__wrapped__)(name, written)


@functools.lru_cache(1024)
def _kept_section(name: str, written: str) -> str:
    """The entries of one section. Most sections of most records are alike."""
    content = json.loads(written)
    if not isinstance(content, dict) or not content:
        return _fact(safe.cut(name, 120), _value(content))
    options = _first(content.items())
    return "".join(_fact(safe.cut(f"{name}.{key}", 120), _value(value)) for key, value in options)


def _score(value: float | None) -> str:
    held = safe.finite(value)
    return MISSING if held is None else f"{held:.6g}".replace("-", "−")


def _scores(record: Record) -> dict[str, Any] | None:
    columns: dict[str, Mapping[str, float]] = {}
    if record.metrics:
        columns |= {"validation": record.metrics.val, "test": record.metrics.test}
    if record.teacher:
        own = record.teacher.metrics
        columns |= {"teacher, validation": own.val, "teacher, test": own.test}
    names = list(dict.fromkeys(name for scores in columns.values() for name in scores))[:MOST]
    rows = [(name, [_score(scores.get(name)) for scores in columns.values()]) for name in names]
    return {"columns": list(columns), "rows": rows} if rows else None


def _selection(record: Record) -> str | None:
    chosen = record.selection
    if chosen is None:
        return None
    best = "largest" if chosen.mode == "max" else "smallest"
    return f"Weights of epoch {chosen.epoch}, chosen by the {best} validation {safe.cut(chosen.metric, 80)}."


def _terms(record: Record) -> Facts:
    failure = record.failure
    if failure is None:
        return []
    step = [] if failure.step is None else [("step", str(failure.step))]
    return step + [(safe.cut(k, 80), _value(v)) for k, v in _first((failure.terms or {}).items())]


def _data(record: Record) -> Facts:
    data = record.data
    if data is None:
        return []
    sizes = f"train {data.sizes.train:,}, validation {data.sizes.val:,}, test {data.sizes.test:,}"
    return [
        ("data set", safe.cut(data.name, 200)),
        ("generated", "yes" if data.generated else "no"),
        ("licence", safe.cut(data.licence, 200)),
        ("examples", sizes),
        ("SHA-256", data.sha256),
        ("SHA-256 of the split", data.split_sha256),
    ]


def _teacher(record: Record) -> Facts:
    teacher = record.teacher
    if teacher is None:
        return []
    return [
        ("kind", safe.cut(teacher.kind, 200)),
        ("description", safe.cut(teacher.description, 400)),
        ("SHA-256", teacher.sha256),
    ]


def _amount(value: float | None, unit: str = "", places: int = 2) -> str:
    held = safe.finite(value)
    return MISSING if held is None else fixed(held, places) + unit


def _costs(record: Record) -> Facts:
    costs = record.costs
    if costs is None:
        return []
    counts = [
        ("parameters of the student", safe.cut(f"{costs.parameters:,}", 80)),
        ("parameters trained", safe.cut(f"{costs.trained_parameters:,}", 80)),
    ]
    if record.protocol > 1:
        return [*counts, *_measured(of_record(record))]
    flops, peak = safe.finite(costs.flops), safe.finite(costs.peak_memory_bytes)
    return [
        *counts,
        ("FLOPs of a forward pass", MISSING if flops is None else count(flops)),
        ("latency of a forward pass", _amount(costs.latency_ms, " ms")),
        ("training", _amount(costs.train_seconds, " s")),
        ("other stages", _amount(costs.stage_seconds, " s")),
        ("peak memory", MISSING if peak is None else _amount(peak / 1e6, " MB", 0)),
    ]


def _measured(arm: Arm | None) -> Facts:
    """What was measured of the run's arm on an idle machine."""
    if arm is None:
        return [("times and memory", "not measured")]
    memory = MISSING if arm.memory_bytes is None else _amount(arm.memory_bytes / 1e6, " MB", 0)
    return [
        ("FLOPs of a forward pass, one example", count(arm.flops_per_example)),
        ("forward pass of one example", _times(arm.forward_one)),
        (f"forward pass of {arm.examples} examples", _times(arm.forward_batch)),
        (f"training step on {arm.examples} examples", _times(arm.step) if arm.step else MISSING),
        ("memory of training beyond the libraries", memory),
    ]


def _times(times: Times) -> str:
    return f"{fixed(times.median, 2)} ms [{fixed(times.low, 2)}, {fixed(times.high, 2)}]"


def _stages(record: Record) -> Facts:
    named = [(s.name, s) for s in record.stages]
    return [
        (safe.cut(name, 80), s if isinstance(s, str) else _stage(s, (record.reports or {}).get(s.name)))
        for name, s in _first(named)
    ]


def _stage(stage: Stage, report: Report | None) -> str:
    cost = f"{_amount(stage.seconds, ' s')}{', reused' if stage.reused else ''}"
    values = report.values.items() if report else ()
    return safe.cut("; ".join([cost, *(f"{name} {_short(value)}" for name, value in values)]), 400)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _provenance(record: Record) -> Facts:
    git, machine, load = record.git, record.hardware, record.load
    commit = MISSING if git.commit is None else git.commit + (" with changes" if git.dirty else "")
    code = f"{record.code.sha256} ({len(record.code.files)} files)" if record.code else "not known"
    return [
        ("commit", commit),
        ("code", code),
        *_machine(machine.cpu, machine.cores, machine.threads, machine.memory_bytes, machine.accelerator, machine.os),
        *_versions(tuple(record.versions.items())),
        ("load at start, end", MISSING if load is None else f"{load.start:.1f}, {load.end:.1f}"),
        ("started", record.started.isoformat()),
        ("finished", record.finished.isoformat()),
        ("configuration", record.config_hash),
        ("search", MISSING if record.search is None else _search(record.search)),
        ("comparison group", record.group),
        ("protocol", str(record.protocol)),
        ("outcomes", MISSING if record.outcomes is None else record.outcomes.sha256),
        ("record", record.digest),
    ]


def _search(search: Search) -> str:
    seeds = ", ".join(map(str, search.seeds))
    return f"{search.points} points with seeds {seeds}; log {search.sha256[:16]}"


@functools.lru_cache(256)
def _machine(cpu: str, cores: int, threads: int, memory: int, accelerator: str | None, system: str) -> Facts:
    held = safe.finite(memory)
    return [
        ("processor", safe.cut(cpu, 120)),
        ("cores, threads", safe.cut(f"{cores}, {threads}", 80)),
        ("memory", MISSING if held is None else _amount(held / 1e9, " GB", 1)),
        ("accelerator", safe.cut(accelerator or "none", 120)),
        ("system", safe.cut(system, 120)),
    ]


@functools.lru_cache(256)
def _versions(versions: tuple[tuple[str, str], ...]) -> Facts:
    return [(safe.cut(name, 80), safe.cut(version, 80)) for name, version in _first(versions)]
