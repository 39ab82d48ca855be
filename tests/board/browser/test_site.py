"""The built site in a real browser: nothing breaks, nothing leaves the page, and the numbers are the records'."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from kdbench.results.compare import compare
from kdbench.results.store import read

SCREENSHOTS = Path(__file__).parents[3] / "build" / "screenshots"
KINDS = ("overview", "about", "family", "task", "hostile", "method", "record")
WIDER_THAN_SCREEN = "document.documentElement.scrollWidth > document.documentElement.clientWidth"


def pages(site: Path) -> list[str]:
    """Every page but records', of which the hostile ones and two a task."""
    found = [path for path in site.rglob("*.html") if path.relative_to(site).parts[0] != "record"]
    for folder in (site / "record").iterdir():
        records = sorted(folder.glob("*.html"))
        found += records if folder.name == "hostile" else records[:2]
    return sorted(path.relative_to(site).as_posix() for path in found)


@pytest.mark.parametrize("way", ["file", "http"])
def test_every_page_opens_without_a_complaint(visit: Any, site: Path, served: str, way: str) -> None:
    root = site.as_uri() if way == "file" else served
    page = visit(f"{root}/index.html")
    visited = pages(site)
    assert len(visited) > 25
    for name in visited:
        page.goto(f"{root}/{name}")
        assert page.locator("main#main h1").count() == 1, name
        tables = page.locator("table.results").count()
        assert page.locator(".tools").count() == tables, f"{name}: a table without its tools"
        assert page.locator("main script:not([type='application/json']), main img, main iframe").count() == 0, name


def test_every_link_leads_to_a_file_of_the_site(visit: Any, site: Path) -> None:
    page = visit((site / "index.html").as_uri())
    collect = (
        "[...document.querySelectorAll('a[href]')].map((a) => new URL(a.getAttribute('href'), location.href).href)"
    )
    links = set()
    for name in pages(site):
        page.goto((site / name).as_uri())
        links |= {link.partition("#")[0] for link in page.evaluate(collect)}
    inside = {link for link in links if not link.startswith(("https://", "http://"))}
    assert len(inside) > 50 and all(link.startswith(site.as_uri()) for link in inside)
    files = {path.as_uri() for path in site.rglob("*") if path.is_file()}
    assert inside <= files


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", KINDS)
def test_axe_finds_nothing(
    visit: Any, site: Path, kinds: dict[str, str], accessibility: Callable[[Any], list[str]], kind: str, scheme: str
) -> None:
    page = visit((site / kinds[kind]).as_uri(), color_scheme=scheme)
    assert accessibility(page) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_narrow_screen_scrolls_tables_and_plots_and_never_the_page(
    visit: Any, site: Path, kinds: dict[str, str], accessibility: Callable[[Any], list[str]], kind: str
) -> None:
    narrow = {"viewport": {"width": 320, "height": 640}}
    page = visit((site / kinds[kind]).as_uri(), **narrow)
    assert not page.evaluate(WIDER_THAN_SCREEN)
    plots = page.locator("figure.plot")
    assert page.locator("figure.plot[tabindex='0']").count() == plots.count(), "the keyboard scrolls what is cut"
    assert accessibility(page) == []
    assert not visit((site / kinds[kind]).as_uri(), **narrow, java_script_enabled=False).evaluate(WIDER_THAN_SCREEN)


def test_without_javascript_every_kind_of_page_is_whole(visit: Any, site: Path, kinds: dict[str, str]) -> None:
    plain = visit((site / "index.html").as_uri(), java_script_enabled=False)
    scripted = visit((site / "index.html").as_uri())
    for name in kinds.values():
        plain.goto((site / name).as_uri())
        scripted.goto((site / name).as_uri())
        bare, shown = (page.locator("table.results tbody tr").count() for page in (plain, scripted))
        assert bare == shown or bare > shown >= 50
        assert plain.locator("main [hidden]").count() == 0, "columns hide by the script alone"
        assert plain.locator("figure.plot svg").count() == scripted.locator("figure.plot svg").count()


def rows(page: Any, view: str, label: str) -> str:
    with page.expect_download() as waiting:
        page.locator(f"#{view} summary", has_text="Export").click()
        page.locator(f"#{view}").get_by_role("button", name=label).click()
    return Path(waiting.value.path()).read_bytes().decode()


def test_downloads_hold_the_records_values(visit: Any, site: Path, served: str, record_files: Path) -> None:
    held: dict[str, list[float]] = {}
    for path in sorted((record_files / "imagined").glob("*.json")):
        record = json.loads(path.read_bytes())
        if record["control"] == "none":
            held.setdefault(record["method"], []).append(record["metrics"]["test"][record["selection"]["metric"]])
    assert len(held) == 3
    for root in (site.as_uri(), served):
        page = visit(f"{root}/task/imagined.html")
        view = page.locator("section.view").first.get_attribute("id")
        found = {row["arm"]: row for row in json.loads(rows(page, view, "Download JSON"))}
        for method, scores in held.items():
            assert found[method]["mean"] == pytest.approx(fmean(scores), abs=1e-15) and found[method]["n"] == len(
                scores
            )
        table = {row["arm"]: row for row in csv.DictReader(io.StringIO(rows(page, view, "Download CSV"), newline=""))}
        assert {arm: float(row["mean"]) for arm, row in table.items() if row["mean"]} == {
            arm: row["mean"] for arm, row in found.items() if row["mean"] is not None
        }


def test_a_task_page_downloads_every_comparison_exactly(visit: Any, site: Path, record_files: Path) -> None:
    page = visit((site / "task/gnn--cora_text.html").as_uri())
    views = [one.get_attribute("id") for one in page.locator("section.view:has(th[data-key=delta_alone])").all()]
    shown = [
        [(row["arm"], row["n"], row["mean"], row["mean_low"], row["mean_high"]) for row in found]
        for found in (json.loads(rows(page, view, "Download JSON")) for view in views)
    ]
    expected = [
        [(row.label, row.n, row.mean, *(row.interval or (None, None))) for row in one.rows]
        for one in compare(read([record_files / "gnn"]))
        if one.task == "gnn/cora_text"
    ]
    assert len(shown) > 2 and sorted(map(repr, shown)) == sorted(map(repr, expected))


def test_a_view_of_the_overview_is_filtered_sorted_compared_and_linked(visit: Any, served: str) -> None:
    page = visit(f"{served}/index.html")
    view = page.locator("section.view")
    view.get_by_role("combobox", name="task").select_option("gnn/cora_text")
    view.locator("th[data-key=mean] button").click()
    view.locator("tbody input").nth(0).check()
    view.locator("tbody input").nth(1).check()
    before = view.locator("tbody").all_inner_texts()
    other = visit(page.url)
    assert other.locator("section.view tbody").all_inner_texts() == before and len(before) == 2


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("kind", ["overview", "task"])
def test_screenshots_are_taken(visit: Any, site: Path, kinds: dict[str, str], kind: str, width: int) -> None:
    for scheme in ("light", "dark"):
        page = visit((site / kinds[kind]).as_uri(), viewport={"width": width, "height": 900}, color_scheme=scheme)
        path = SCREENSHOTS / f"{kind}-{width}-{scheme}.png"
        page.screenshot(path=path, full_page=True)
        assert path.stat().st_size > 10_000
