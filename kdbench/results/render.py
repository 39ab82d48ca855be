"""Comparisons as a terminal table of at most 120 columns and as Markdown, with a verdict in plain words."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from kdbench.results.compare import Comparison, Row
from kdbench.results.stats import PairedDifference

MISSING = "–"
LEVEL = 0.05
PERCENT = ("accuracy", "f1", "dice", "auc", "map50")
HEADINGS = (
    *("arm", "n", "", "Δ alone", "p", "Δ kd", "p"),
    *("gap closed", "agree %", "params", "MFLOPs", "ms", "train s", "peak MB"),
)


def table(comparison: Comparison) -> Table:
    """The comparison for a terminal of 120 columns; title above, verdicts and footnotes below."""
    shown = Table(
        title=Text(title(comparison)),
        caption=Text("\n".join([*verdicts(comparison), *footnotes(comparison)])),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
    )
    for index, heading in enumerate(_headings(comparison)):
        narrow = heading.replace(" ", "\n")
        if index:
            shown.add_column(Text(narrow), justify="right", no_wrap=True, vertical="top")
        else:
            shown.add_column(Text(narrow), overflow="fold", min_width=12)
    for row in comparison.rows:
        shown.add_row(*(Text(cell) for cell in _cells(row, comparison.metric)))
    return shown


def markdown(comparison: Comparison) -> str:
    """The comparison as a Markdown table with its title, verdicts and footnotes; ends with a newline."""
    headings = _headings(comparison)
    rows = [[cell.replace("|", "\\|") for cell in _cells(row, comparison.metric)] for row in comparison.rows]
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = "\n".join(f"- {line}" for line in [*verdicts(comparison), *footnotes(comparison)])
    return f"**{title(comparison)}**\n\n{body}\n" + (f"\n{notes}\n" if notes else "")


def title(comparison: Comparison) -> str:
    """Task, scale, data, student and teacher, and whether the data is generated."""
    parts = [comparison.task, comparison.scale]
    parts += [f"data {comparison.data}"] if comparison.data else []
    parts += [f"student {comparison.student}"] if comparison.student else []
    parts += [f"teacher {comparison.teacher}"] if comparison.teacher else []
    parts += comparison.settings
    return " · ".join([*parts, *(["generated data"] if comparison.generated else [])])


def verdicts(comparison: Comparison) -> list[str]:
    """A sentence for each arm but ``alone``, with what its difference shows.

    Of a method it is the difference to ``kd``, of ``kd`` that to ``alone``, and of a control that of the method to it:
    what the method owes to its real teacher.
    """
    lines = []
    for row in comparison.rows:
        delta, p, baseline = row.delta_kd, row.p_kd, comparison.kd
        if delta is None:
            delta, p, baseline = row.delta_alone, row.p_alone, comparison.alone
        told = f"{row.label} − {baseline}"
        if row.delta_real is not None:
            delta, p, told = row.delta_real, row.p_real, f"{row.label.partition(' · ')[0]} − {row.label}"
        if delta is not None:
            lines.append(f"{told}: {_verdict(delta, p, comparison)}")
    return lines


def footnotes(comparison: Comparison) -> list[str]:
    """What a reader must know to read the numbers: single seeds, failed runs, a teacher that is no better."""
    students = [row for row in comparison.rows if row.method != "teacher"]
    notes = [f"{row.label}: {row.failed} of {row.failed + row.n} runs failed" for row in students if row.failed]
    if any(row.n == 1 for row in students):
        notes.append("one seed: no interval and no test; add seeds, e.g. seed=0..9")
    if any(row.p_alone is not None or row.p_kd is not None for row in students):
        notes.append(
            "p: two-sided paired t tests over seeds, Holm-adjusted over the methods; ± and brackets: 95 % intervals"
        )
    if any(row.stage_seconds for row in students):
        notes.append("train s: the student's training + the method's other stages")
    teacher = next((row.mean for row in comparison.rows if row.method == "teacher"), None)
    alone = next((row.mean for row in students if row.label == comparison.alone), None)
    if teacher is not None and alone is not None and comparison.mode and not _better(teacher - alone, comparison):
        notes.append("the teacher is no better than the student alone: gap closed says nothing here")
    return notes


def _better(difference: float, comparison: Comparison) -> bool:
    return difference < 0 if comparison.mode == "min" else difference > 0


def _verdict(delta: PairedDifference, p: float | None, comparison: Comparison) -> str:
    metric = comparison.metric
    unit = " points" if _percent(metric) else ""
    shown = _signed(delta.mean, metric) + unit
    if delta.low is None or delta.high is None or delta.detectable is None or p is None:
        return f"{shown}: {'one paired seed' if delta.n == 1 else 'a spread beyond measure'}, no test"
    if delta.low == delta.high:
        return f"{shown} in each of {delta.n} paired seeds: no spread for a test to judge by; add seeds"
    result = f"{shown} [{_signed(delta.low, metric)}, {_signed(delta.high, metric)}], p {_equals(p)}"
    if p >= LEVEL:
        could = _number(delta.detectable, metric)
        return f"{result}: no detectable difference ({delta.n} paired seeds could detect {could}{unit})"
    if comparison.mode is None:
        return f"{result}: {'higher' if delta.mean > 0 else 'lower'}"
    return f"{result}: {'better' if _better(delta.mean, comparison) else 'worse'}"


def _headings(comparison: Comparison) -> list[str]:
    metric = comparison.metric or "score"
    shown = f"{metric} %" if _percent(metric) else metric
    return [shown if index == 2 else heading for index, heading in enumerate(HEADINGS)]


def _cells(row: Row, metric: str | None) -> list[str]:
    alone, kd = row.delta_alone, row.delta_kd
    half = f" ± {_number((row.interval[1] - row.interval[0]) / 2, metric)}" if row.interval else ""
    return [
        row.label,
        str(row.n),
        MISSING if row.mean is None else _number(row.mean, metric) + half,
        MISSING if alone is None else _signed(alone.mean, metric),
        MISSING if row.p_alone is None else _p(row.p_alone),
        MISSING if kd is None else _signed(kd.mean, metric),
        MISSING if row.p_kd is None else _p(row.p_kd),
        MISSING if row.gap_closed is None else _minus(f"{row.gap_closed:.2f}"),
        MISSING if row.agreement is None else f"{100 * row.agreement:.2f}",
        MISSING if row.parameters is None else _count(row.parameters),
        MISSING if row.flops is None else f"{row.flops / 1e6:.3g}" if row.flops < 1e9 else f"{row.flops / 1e6:.0f}",
        MISSING if row.latency_ms is None else f"{row.latency_ms:.2f}",
        MISSING if row.train_seconds is None else f"{row.train_seconds:.1f}" + _stages(row),
        MISSING if row.peak_memory_bytes is None else f"{row.peak_memory_bytes / 1e6:.0f}",
    ]


def _stages(row: Row) -> str:
    return f"+{row.stage_seconds:.1f}" if row.stage_seconds else ""


def _percent(metric: str | None) -> bool:
    return metric is not None and metric.endswith(PERCENT)


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _number(value: float, metric: str | None) -> str:
    return _minus(f"{100 * value:.2f}" if _percent(metric) else f"{value:.4g}")


def _signed(value: float, metric: str | None) -> str:
    # Adding 0 turns a −0 that rounding left into +0.
    return _minus(f"{round(100 * value, 2) + 0.0:+.2f}" if _percent(metric) else f"{value + 0.0:+.4g}")


def _p(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def _equals(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {_p(p)}"


def _count(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"
