"""Plots: well-formed, the same each time, marks where the scale says, and no strange text or number breaks them."""

from __future__ import annotations

import itertools
import math
import re
import string
from collections.abc import Callable
from xml.etree import ElementTree

import numpy as np
import pytest

from kdbench.board import svg
from kdbench.board.plots import (
    Interval,
    Point,
    Series,
    critical_difference_diagram,
    curves,
    dots,
    intervals,
    pareto,
)
from kdbench.errors import UsageError

Element = ElementTree.Element
TAG = "{http://www.w3.org/2000/svg}"
HOSTILE = [
    "<script>alert(1)</script>",
    "</title></svg><img src=x onerror=alert(1)>",
    "\" onload=\"alert(1)' onload='alert(1)",
    "]]><!--<![CDATA[&amp;&lt;&#0;",
    "a\x00b\x1b[31mc\x7f\x85\ud800\ufffe\u202egpj.exe",
    "line\none\ttwo\r\nthree",
    "m" * 100_000,
    "漢字" * 200,
    "e\u0301" * 50,
    "",
    "   ",
]
NUMBERS = [0.0, -0.0, 1.0, -1.0, 1e308, -1e308, 1e100, 1e-320, math.nan, math.inf, -math.inf, 10**400, 1e15, 1e-7]

PLOTS: dict[str, Callable[[str, float, int], str]] = {
    "intervals": lambda text, v, n: intervals(
        [Interval(text, "kd", v + i, v - 1, v + 1, text, text) for i in range(n)], text, text, groups=[text] * n
    ),
    "one-sided": lambda text, v, n: intervals([Interval(text, "0", 0.5, None, v)] * n, text, text, zero=False),
    "wide": lambda text, v, n: intervals([Interval(text, "0", 0.5, -v, v)] * n, text, text),
    "pareto": lambda text, v, n: pareto([Point(text, "1", v, v, v, v, text)] * n, text, text, text),
    "pareto, linear": lambda text, v, n: pareto([Point(text, "1", v, v)] * n, text, text, text, False, False),
    "dots": lambda text, v, n: dots([Series(text, "alone", (v, 1.0, v))] * n, text, text),
    "curves": lambda text, v, n: curves([v, 1.0, 2.0], [Series(text, "7", (1.0, v, 2.0))] * n, text, text, text),
    "ranks": lambda text, v, n: critical_difference_diagram({f"{text}{i}": v for i in range(n)}, v, text),
}


def parsed(text: str) -> Element:
    root = ElementTree.fromstring(text)
    assert root.tag == f"{TAG}svg" and root.get("role") in ("img", "group")
    assert [child.tag for child in root[:2]] == [f"{TAG}title", f"{TAG}desc"]
    for node in root.iter():
        assert node.tag.removeprefix(TAG) in ("svg", "title", "desc", "line", "path", "text", "rect", "a"), node.tag
        assert set(node.attrib) <= {
            *("viewBox", "role", "class", "font-size", "font-weight", "text-anchor", "transform", "href", "fill"),
            *("x", "y", "x1", "x2", "y1", "y2", "d", "stroke-width", "stroke-dasharray"),
        }
        places = [node.get(name, "") for name in ("x", "y", "x1", "x2", "y1", "y2", "transform", "viewBox")]
        places += [node.get("d", "").replace("M", "")] if node.get("class", "").startswith(("interval", "axis")) else []
        for number in re.findall(
            r"-?[\w.]+(?:e[-+]\d+)?", " ".join(places).replace("translate", "").replace("scale", "")
        ):
            assert -2000 <= float(number) <= 20_000
    assert "nan" not in re.sub(r"<(desc|title)>.*?</\1>|<text.*?</text>", "", text)
    return root


@pytest.mark.parametrize("name", PLOTS)
@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_stays_text(name: str, text: str) -> None:
    drawn = PLOTS[name](text, 0.5, 2)
    root = parsed(drawn)
    size = len(drawn.encode())
    assert size < 50_000
    assert not [node for node in root.iter(f"{TAG}a") if not re.fullmatch(r"[\w./#-]+", node.get("href", ""))]


@pytest.mark.parametrize("name", PLOTS)
@pytest.mark.parametrize("value", NUMBERS, ids=range(len(NUMBERS)))
@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.filterwarnings("error")
def test_any_number_of_any_size_is_drawn_or_left_out(name: str, value: float, count: int) -> None:
    drawn = PLOTS[name]("arm", value, count)
    parsed(drawn)
    assert drawn == PLOTS[name]("arm", value, count)


def test_absurd_and_sound_rows_together() -> None:
    rows = [Interval("sound", "kd", 0.5, 0.4, 0.6), Interval("absurd", "kd", 1e308, -1e308, math.inf)]
    assert len(marks(parsed(intervals(rows, "", "")))) == 1
    assert "absurd: –." in words(intervals(rows, "", ""))


@pytest.mark.parametrize(
    "href", ["javascript:alert(1)", "//host/x", "https://host/", "/root", "data:text/html,x", "a b", "x\n", ""]
)
def test_only_places_of_the_site_are_linked(href: str) -> None:
    root = parsed(intervals([Interval("a", "kd", 1.0, 0.0, 2.0, href)], "", ""))
    assert not list(root.iter(f"{TAG}a"))


def test_links_make_a_group_of_the_image() -> None:
    row = Interval("a", "kd", 1.0, 0.0, 2.0, "../method/graph--kd.html#x")
    root = parsed(intervals([row], "", ""))
    assert {node.get("href") for node in root.iter(f"{TAG}a")} == {row.href} and root.get("role") == "group"
    assert parsed(intervals([Interval("a", "kd", 1.0, 0.0, 2.0)], "", "")).get("role") == "img"


def test_a_kind_must_exist() -> None:
    with pytest.raises(UsageError, match="Did you mean 'teacher'"):
        dots([Series("a", "teachr", (1.0,))], "", "")


def words(drawn: str) -> str:
    return str(ElementTree.fromstring(drawn)[1].text)


def marks(root: Element, kind: str = "mark") -> list[tuple[float, float]]:
    found = []
    for node in root.iter(f"{TAG}path"):
        place = re.match(r"translate\(([-\d.]+) ([-\d.]+)\)", node.get("transform", ""))
        if place and kind in node.get("class", "").split():
            found.append((float(place[1]), float(place[2])))
    return found


def ticks(root: Element, across: bool) -> Callable[[float], float]:
    """The scale that the tick labels tell: position of a value, by the first and last label of an axis."""
    texts = [node for node in root.iter(f"{TAG}text") if node.get("class") == "axis"]
    axis = [n for n in texts if (n.get("text-anchor") == "middle") == across]
    key = "x" if across else "y"
    known = [(float(str(n.text).replace("−", "-")), float(n.get(key, "")) - (0 if across else 4)) for n in axis]
    (a, at), (b, bt) = known[0], known[-1]
    assert a != b
    return lambda value: at + (value - a) / (b - a) * (bt - at)


def test_intervals_stand_where_the_axis_says() -> None:
    rows = [Interval("kd", "kd", 1.5, 0.5, 2.5, note="p 0.01"), Interval("ours", "0", -0.25, -0.5, 0.0)]
    drawn = intervals(rows, "Difference to alone", "points")
    root = parsed(drawn)
    at = ticks(root, across=True)
    assert [x for x, _ in marks(root)] == pytest.approx([at(1.5), at(-0.25)], abs=0.02)
    whiskers = [
        n for n in root.iter(f"{TAG}line") if n.get("class") == "interval mark-kd" and n.get("y1") == n.get("y2")
    ]
    assert [float(whiskers[0].get(end, "")) for end in ("x1", "x2")] == pytest.approx([at(0.5), at(2.5)], abs=0.02)
    (zero,) = [n for n in root.iter(f"{TAG}line") if n.get("class") == "zero"]
    assert float(zero.get("x1", "")) == pytest.approx(at(0), abs=0.02)
    assert str(root[0].text) == "Difference to alone"
    assert words(drawn) == "kd: 1.50 [0.50, 2.50], p 0.01. ours: −0.25 [−0.50, 0.00]."
    tooltips = [n[0].text for n in root.iter(f"{TAG}path") if "mark" in n.get("class", "").split()]
    assert tooltips == ["kd: 1.50 [0.50, 2.50], p 0.01.", "ours: −0.25 [−0.50, 0.00]."]


def test_what_lies_far_out_is_an_arrow_with_its_numbers() -> None:
    rows = [Interval(f"m{i}", "0", 0.1 * i, 0.1 * i - 0.2, 0.1 * i + 0.2) for i in range(6)]
    root = parsed(intervals([*rows, Interval("far", "1", -40.0, -50.0, -30.0)], "", ""))
    at = ticks(root, across=True)
    assert [x for x, _ in marks(root)] == pytest.approx([at(row.mean) for row in rows], abs=0.02)
    arrows = [n for n in root.iter(f"{TAG}path") if n.get("class") == "interval mark-1"]
    assert len(arrows) == 2 and any("−40" in str(n.text) for n in root.iter(f"{TAG}text"))


def test_headings_of_groups_stand_above_their_rows() -> None:
    rows = [Interval(f"m{i}", "0", float(i), None, None) for i in range(4)]
    root = parsed(intervals(rows, "", "", groups=["graph", "graph", "medical", "medical"]))
    heads = {n.text: float(n.get("y", "")) for n in root.iter(f"{TAG}text") if n.get("font-weight")}
    ys = [y for _, y in marks(root)]
    assert list(heads) == ["graph", "medical"] and heads["graph"] < ys[0] < ys[1] < heads["medical"] < ys[2]
    with pytest.raises(ValueError, match="groups of 1"):
        intervals(rows, "", "", groups=["graph"])


def test_dots_stand_where_the_axis_says() -> None:
    values = (81.0, 84.0, 79.0, 84.0, math.nan)
    drawn = dots([Series("kd", "kd", values)], "Seeds", "accuracy %")
    root = parsed(drawn)
    at = ticks(root, across=True)
    assert [x for x, _ in marks(root)] == pytest.approx([at(v) for v in values[:4]], abs=0.02)
    (second, fourth) = (marks(root)[i] for i in (1, 3))
    assert second[1] != fourth[1], "equal values must not hide each other"
    (mean,) = [n for n in root.iter(f"{TAG}line") if n.get("class") == "interval mark-kd"]
    assert float(mean.get("x1", "")) == pytest.approx(at(82.0), abs=0.02)
    assert "mean 82.00 of 81.00, 84.00, 79.00, 84.00, –" in words(drawn)


POINTS = [
    Point("alone", "alone", 10.0, 80.0, 79.0, 81.0),
    Point("kd", "kd", 100.0, 82.0),
    Point("worse", "0", 200.0, 81.0),
    Point("best", "1", 1000.0, 85.0),
]


def test_pareto_stands_where_the_axes_say() -> None:
    root = parsed(pareto(POINTS, "Cost", "seconds", "accuracy %"))
    up = ticks(root, across=False)
    assert [y for _, y in marks(root)] == pytest.approx([up(p.y) for p in POINTS], abs=0.02)
    xs = [x for x, _ in marks(root)]
    # A logarithmic axis: a factor of ten is as wide everywhere.
    assert xs[1] - xs[0] == pytest.approx(xs[3] - xs[1], abs=0.03)
    straight = parsed(pareto(POINTS, "Cost", "seconds", "accuracy %", log_x=False))
    at = ticks(straight, across=True)
    assert [x for x, _ in marks(straight)] == pytest.approx([at(p.x) for p in POINTS], abs=0.02)


@pytest.mark.parametrize(("maximise", "front"), [(True, {"alone", "kd", "best"}), (False, {"alone"})])
def test_the_front_holds_what_nothing_beats(maximise: bool, front: set[str]) -> None:
    drawn = pareto(POINTS, "Cost", "seconds", "accuracy %", maximise=maximise)
    assert set(re.findall(r"(\w+): [^.]*(?:\.\d+[^.]*)*\. On the front", words(drawn))) == front


def test_the_front_of_random_points_by_its_definition() -> None:
    draw = np.random.default_rng(3)
    points = [Point(f"p{i}", "0", float(x), float(y)) for i, (x, y) in enumerate(draw.integers(1, 8, (30, 2)))]
    told = words(pareto(points, "", "", "", log_x=False))
    for p in points:
        beaten = any((q.x <= p.x and q.y > p.y) or (q.x < p.x and q.y >= p.y) for q in points)
        entry = told.split(f"{p.label}: ")[1].split(" p")[0]
        twin = next(q for q in points if (q.x, q.y) == (p.x, p.y)) is not p
        assert twin or ("On the front" in entry) is not beaten, p


def test_labels_cover_neither_marks_nor_each_other() -> None:
    draw = np.random.default_rng(5)
    points = [
        Point(
            f"method {i} ({'x' * int(draw.integers(0, 9))})",
            "0",
            float(10 ** draw.uniform(0, 2)),
            float(draw.normal(80, 2)),
        )
        for i in range(25)
    ]
    root = parsed(pareto(points, "", "s", "%"))
    boxes = [
        (float(n.get("x", "")), float(n.get("y", "")) - 9, svg.width(str(n.text)), 11)
        for n in root.iter(f"{TAG}text")
        if str(n.text).startswith("method")
    ]
    assert len(boxes) >= 20
    for (ax, ay, aw, ah), (bx, by, bw, bh) in itertools.combinations(boxes, 2):
        assert ax + aw <= bx or bx + bw <= ax or ay + ah <= by or by + bh <= ay
    for (x, y), (bx, by, bw, bh) in itertools.product(marks(root), boxes):
        assert not (bx < x < bx + bw and by < y < by + bh)
        assert bx >= 0 and bx + bw <= 640


def test_curves_stand_where_the_axes_say_and_break_at_gaps() -> None:
    x = [0.0, 10.0, 20.0, 30.0, 40.0]
    lines = [Series("kd", "kd", (1.0, 2.0, math.nan, 4.0, 3.0)), Series("alone", "alone", (1.0, 1.5, 2.0, 2.0, 3.0))]
    drawn = curves(x, lines, "Course", "epoch", "accuracy")
    root = parsed(drawn)
    pieces = [
        [tuple(map(float, point.split(","))) for point in n.get("d", "")[1:].split()]
        for n in root.iter(f"{TAG}path")
        if n.get("class") == "interval mark-kd"
    ]
    at, up = ticks(root, across=True), ticks(root, across=False)
    expected = [[(0, 1), (10, 2)], [(30, 4), (40, 3)]]
    for piece, wanted in zip(pieces, expected, strict=True):
        for found, (place, value) in zip(piece, wanted, strict=True):
            assert found == pytest.approx((at(place), up(value)), abs=0.02)
    names = {n.text: float(n.get("y", "")) for n in root.iter(f"{TAG}text") if n.text in ("kd", "alone")}
    assert abs(names["kd"] - names["alone"]) >= svg.SIZE
    assert "kd: from 1 at 0 to 3 at 40, between 1 and 4, 1 not drawn." in words(drawn)
    with pytest.raises(ValueError, match="5 values"):
        curves(x, [Series("short", "kd", (1.0,))], "", "", "")


def test_ranks_stand_where_the_axis_says_and_bars_join_the_alike() -> None:
    ranks = {"a": 1.2, "b": 1.9, "c": 2.9, "d": 4.0}
    drawn = critical_difference_diagram(ranks, 1.0, "Ranks")
    root = parsed(drawn)
    at = ticks(root, across=True)
    stems = [n.get("d", "")[1:].split(",")[0] for n in root.iter(f"{TAG}path") if n.get("class") == "axis"]
    assert [float(x) for x in stems] == pytest.approx([at(rank) for rank in ranks.values()], abs=0.02)
    bars = [n for n in root.iter(f"{TAG}line") if n.get("class") == "interval"]
    ends = [[float(bar.get(end, "")) for end in ("x1", "x2")] for bar in bars]
    assert ends == [pytest.approx([at(1.2) - 4, at(1.9) + 4], abs=0.02)]
    assert words(drawn).endswith("Critical difference 1.00. Not told apart: a, b.")
    wide = words(critical_difference_diagram(ranks, 1.9, ""))
    assert wide.endswith("Not told apart: a, b, c. Not told apart: c, d.")


@pytest.mark.parametrize(
    "values", [[0.0, 1.0], [0.81, 0.8100001], [5.0, 5.0], [0.0], [-3e99, 2e99], [1e-300, 2e-300], [1e15, 1e15 + 1], []]
)
def test_ticks_are_round_and_inside(values: list[float]) -> None:
    scale = svg.linear(values, 100.0, 500.0)
    assert all(scale.low <= tick <= scale.high for tick in scale.ticks) and 2 <= len(scale.ticks) <= 12
    assert all(scale.low <= value <= scale.high for value in values)
    assert scale(scale.low) == 100 and scale(scale.high) == 500
    steps = {f"{(b - a) / (scale.step or 1):.3f}" for a, b in itertools.pairwise(scale.ticks)}
    assert steps == {"1.000"}


@pytest.mark.parametrize("values", [[1.0, 1000.0], [3.0, 4.0], [7.0], [1e-90, 1e90], [0.5, 60.0]])
def test_ticks_of_a_logarithmic_axis(values: list[float]) -> None:
    scale = svg.logarithmic(values, 0.0, 100.0)
    assert all(scale.low <= tick <= scale.high for tick in scale.ticks) and 2 <= len(scale.ticks) <= 9
    middle = math.sqrt(scale.low) * math.sqrt(scale.high)
    assert scale(middle) == pytest.approx(50)


@pytest.mark.parametrize(
    ("value", "step", "told"),
    [
        (0.0, 0.1, "0.0"),
        (-0.0, 1.0, "0"),
        (-0.001, 0.1, "0.0"),
        (-1.25, 0.01, "−1.25"),
        (0.30000000000000004, 0.1, "0.3"),
        (23063, None, "23.06k"),
        (1.2e9, None, "1.2G"),
        (1e-7, None, "1e−07"),
        (math.inf, None, "–"),
        (1e308, 1.0, "–"),
    ],
)
def test_numbers_for_people(value: float, step: float | None, told: str) -> None:
    assert svg.number(value, step) == told


def test_long_labels_keep_both_ends_and_their_whole_as_tooltip() -> None:
    label = "mst_distill (" + string.ascii_lowercase * 3 + ", router=random)"
    root = parsed(dots([Series(label, "0", (1.0, 2.0))], "", ""))
    (node,) = [n for n in root.iter(f"{TAG}text") if n.get("text-anchor") == "end" and len(n) and n[0].text == label]
    shown = str(node[0].tail)
    assert shown.startswith("mst_d") and shown.endswith("random)") and "…" in shown
    assert svg.width(shown) < svg.width(label)


def test_labels_side_by_side_are_spread_without_losing_their_order() -> None:
    placed = svg.spread([50.0, 52.0, 51.0, 10.0], 14, 0, 60)
    assert placed[3] < placed[0] < placed[2] < placed[1] <= 60
    assert all(b - a >= 14 for a, b in itertools.pairwise(sorted(placed)))
    assert len(set(svg.spread([5.0] * 10, 14, 0, 60))) == 10
