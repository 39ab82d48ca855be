"""Comparisons as a terminal table of at most 120 columns and as Markdown, with a verdict in plain words."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from kdbench.plan.metrics import PERCENT
from kdbench.results.compare import Comparison, Row
from kdbench.results.mixtures import Mixture
from kdbench.results.stats import Estimate

MISSING = "–"
LEVEL = 0.05
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
        shown.add_row(*(Text(cell) for cell in _cells(row, comparison.unit)))
    return shown


def markdown(comparison: Comparison) -> str:
    """The comparison as a Markdown table with its title, verdicts and footnotes; ends with a newline."""
    headings = _headings(comparison)
    rows = [[cell.replace("|", "\\|") for cell in _cells(row, comparison.unit)] for row in comparison.rows]
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

    Of a method it is the difference to ``kd``, of ``kd`` that to ``alone``, of other settings that to the method's own,
    and of a control that of the method to it: what the method owes to its real teacher.
    """
    lines = []
    for row in comparison.rows:
        delta, p, contrast = _main_contrast(row, comparison)
        if delta is not None:
            lines.append(f"{contrast}: {_verdict(delta, p, comparison)}")
    return lines


def _main_contrast(row: Row, comparison: Comparison) -> tuple[Estimate | None, float | None, str]:
    """The contrast that a row is judged by: its difference, its adjusted p, and what is subtracted from what."""
    if row.delta_real is not None:
        return row.delta_real, row.p_real, f"{row.controls} − {row.label}"
    if row.delta_default is not None:
        return row.delta_default, row.p_default, f"{row.label} − {row.method}"
    if row.delta_kd is not None and row.method != "alone":
        return row.delta_kd, row.p_kd, f"{row.label} − {comparison.kd}"
    return row.delta_alone, row.p_alone, f"{row.label} − {row.against_alone}"


def footnotes(comparison: Comparison) -> list[str]:
    """What a reader must know to read the numbers: single seeds, failed runs, mixed arms, a weak teacher."""
    students = [row for row in comparison.rows if row.method != "teacher"]
    notes = [f"{row.label}: {row.failed} of {row.failed + row.n} runs failed" for row in students if row.failed]
    if any(row.n == 1 for row in students):
        notes.append("one seed: no interval and no test; add seeds, e.g. seed=0..9")
    notes += [
        f"{row.label}: {round(row.collapsed * row.n)} of {row.n} runs do no better than a constant"
        for row in students
        if row.collapsed
    ]
    deltas = [delta for row in students for delta in (row.delta_alone, row.delta_kd, row.delta_real) if delta]
    notes += _meaning([delta for delta in deltas if delta.low is not None], comparison.splits)
    notes += [
        f"Δ alone of {row.label}: against {row.against_alone}, which trained as long as all its stages"
        for row in students
        if row.against_alone not in (None, comparison.alone)
    ]
    if any(delta.flat for delta in deltas):
        notes.append("no spread (all paired differences are equal): no interval and no p; add seeds, e.g. seed=0..9")
    notes += map(_mixture, comparison.mixed)
    if any(row.stage_seconds for row in students):
        notes.append("train s: the student's training + the method's other stages")
    teacher = next((row.mean for row in comparison.rows if row.method == "teacher"), None)
    alone = next((row.mean for row in students if row.label == comparison.alone), None)
    if teacher is not None and alone is not None and comparison.mode and not better(teacher - alone, comparison):
        notes.append("the teacher is no better than the student alone: gap closed says nothing here")
    return notes


def _meaning(deltas: Sequence[Estimate], splits: int | None) -> list[str]:
    """What intervals and p are over."""
    over = sorted({delta.over for delta in deltas}, key=len)
    if not over:
        return []
    notes = [
        f"±: 95 % over {' or '.join(over)}; brackets: 95 % for all tests of a family at once (kd, methods, ablations, "
        "controls), p: Holm-adjusted within it"
    ]
    if any("items" not in one for one in over):
        notes.append("without per-item outcomes of every run, intervals and p hold the test items for fixed")
    if "splits" in " ".join(over):
        notes.append(f"several seeds share a split: {max(delta.units for delta in deltas)} splits are the units")
    elif splits == 1 and any(delta.n > 1 for delta in deltas):
        notes.append("all seeds share one split: what another split would give is not in the intervals")
    return notes


def _mixture(mixture: Mixture) -> str:
    def first(some: Sequence[object]) -> str:
        return ", ".join(str(one)[:60] for one in some[:10]) + (", …" if len(some) > 10 else "")

    return (
        f"arms of seed {first(mixture.seeds)} differ in {mixture.trait} ({first(mixture.values)}): {mixture.otherwise}"
    )


def better(difference: float, comparison: Comparison) -> bool:
    """Whether a difference of scores is one for the better."""
    return difference < 0 if comparison.mode == "min" else difference > 0


def _verdict(delta: Estimate, p: float | None, comparison: Comparison) -> str:
    unit = comparison.unit
    points = " points" if unit == PERCENT else f" {unit}" if unit else ""
    shown = signed(delta.mean, unit) + points
    if delta.flat:
        return f"{shown} in each of {delta.n} paired seeds; no spread: add seeds"
    if delta.low is None or delta.high is None or delta.detectable is None or p is None:
        return f"{shown}: {'one paired seed' if delta.n == 1 else 'a spread beyond measure'}, no test"
    bounds = f"[{signed(delta.low, unit)}, {signed(delta.high, unit)}]"
    result = f"{shown} {bounds}, p {_equals(p)}, {delta.n} pairs"
    direction = ("higher" if delta.mean > 0 else "lower") if comparison.mode is None else ""
    if p < LEVEL:
        result += f": {direction or ('better' if better(delta.mean, comparison) else 'worse')}"
    if comparison.margin and delta.equivalence is not None and delta.equivalence < delta.alpha:
        return f"{result}{',' if p < LEVEL else ':'} equivalent within ±{number(comparison.margin, unit)}{points}"
    if p >= LEVEL:
        result += f": no detectable difference (could detect {number(delta.detectable, unit)}{points})"
    return result


def _headings(comparison: Comparison) -> list[str]:
    shown = " ".join([comparison.metric or "score", *([comparison.unit] if comparison.unit else [])])
    return [shown if index == 2 else heading for index, heading in enumerate(HEADINGS)]


def _cells(row: Row, unit: str) -> list[str]:
    alone, kd = row.delta_alone, row.delta_kd
    half = f" ± {number((row.interval[1] - row.interval[0]) / 2, unit)}" if row.interval else ""
    return [
        row.label,
        str(row.n),
        MISSING if row.mean is None else number(row.mean, unit) + half,
        MISSING if alone is None else signed(alone.mean, unit),
        MISSING if row.p_alone is None else p_value(row.p_alone),
        MISSING if kd is None else signed(kd.mean, unit),
        MISSING if row.p_kd is None else p_value(row.p_kd),
        MISSING if row.gap_closed is None else fixed(row.gap_closed, 2),
        MISSING if row.agreement is None else f"{100 * row.agreement:.2f}",
        MISSING if row.parameters is None else count(row.parameters),
        MISSING if row.flops is None else f"{row.flops / 1e6:.3g}" if row.flops < 1e9 else fixed(row.flops / 1e6, 0),
        MISSING if row.latency_ms is None else fixed(row.latency_ms, 2),
        MISSING if row.train_seconds is None else fixed(row.train_seconds, 1) + _stages(row),
        MISSING if row.peak_memory_bytes is None else fixed(row.peak_memory_bytes / 1e6, 0),
    ]


def _stages(row: Row) -> str:
    return f"+{fixed(row.stage_seconds, 1)}" if row.stage_seconds else ""


def _minus(text: str) -> str:
    return text.replace("-", "−")


def fixed(value: float, places: int) -> str:
    """A number with so many decimal places; one that would need more than nine digits before them in powers of ten."""
    return _minus(f"{value:.{places}f}" if abs(value) < 1e9 else f"{value:.4g}")


def number(value: float, unit: str) -> str:
    """A score, in percent where that is its metric's unit."""
    return fixed(100 * value, 2) if unit == PERCENT else _minus(f"{value:.4g}")


def signed(value: float, unit: str) -> str:
    """A difference of scores with its sign, in points where the unit is percent."""
    # Adding 0 turns a −0 that rounding left into +0.
    shown = f"{round(100 * value, 2) + 0.0:+.2f}" if abs(value) < 1e7 else f"{100 * value:+.4g}"
    return _minus(shown if unit == PERCENT else f"{value + 0.0:+.4g}")


def p_value(p: float) -> str:
    """A p value, without the leading "p"."""
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def _equals(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p_value(p)}"


def count(value: float) -> str:
    """A count with three digits and the unit k, M or G."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"
