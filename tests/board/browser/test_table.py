"""The script of the tables in a real browser, on a page by hand: every tool, its permalink and its files."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def page(visit: Any, by_hand: Path) -> Any:
    """The page by hand, from a file."""
    return visit((by_hand / "index.html").as_uri())


def view(page: Any, name: str = "first") -> Any:
    return page.locator(f"section#{name}")


def names(page: Any, name: str = "first") -> list[str]:
    """The arms in view, in order."""
    return [text.strip() for text in view(page, name).locator("table.results tbody th").all_inner_texts()]


def settled(page: Any, wanted: list[str], name: str = "first") -> None:
    """The arms in view become ``wanted``, which going back and forth may take a moment for."""
    for _ in range(60):
        if names(page, name) == wanted:
            return
        page.wait_for_timeout(50)
    assert names(page, name) == wanted


def headings(page: Any) -> list[str]:
    return view(page).locator("table.results thead button.sort:visible").all_inner_texts()


def sort(page: Any, title: str, name: str = "first") -> None:
    view(page, name).get_by_role("button", name=title, exact=True).click()


def pick(page: Any, *keys: str) -> None:
    for key in keys:
        view(page).get_by_role("checkbox", name=f"Compare {key}", exact=True).check()


def export(page: Any, label: str) -> None:
    view(page).locator("summary", has_text="Export").click()
    view(page).get_by_role("button", name=label).click()


def downloaded(page: Any, label: str) -> tuple[str, str]:
    with page.expect_download() as waiting:
        export(page, label)
    return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes().decode()


def copied(page: Any, label: str) -> str:
    export(page, label)
    view(page).locator("output", has_text=f"{label.removeprefix('Copy ').replace('link', 'Link')} copied.").wait_for()
    return str(page.evaluate("navigator.clipboard.readText()"))


def status(page: Any) -> str:
    return str(view(page).locator("output").inner_text())


def test_numbers_sort_both_ways_and_missing_ones_stay_last(page: Any, sample: ModuleType) -> None:
    written = names(page)
    sort(page, "accuracy %")
    assert names(page) == ["teacher", "kd", "alone", sample.HOSTILE, "a,b & c", "a,b & c"]
    heading = view(page).locator("th[data-key=mean]")
    assert heading.get_attribute("aria-sort") == "descending"
    values = view(page).locator("table.results tbody td:nth-child(3)").all_inner_texts()
    assert values[-1] == "–" and values[-2] == "−50.00"
    sort(page, "accuracy %")
    values = view(page).locator("table.results tbody td:nth-child(3)").all_inner_texts()
    assert values == ["−50.00", "30.00", "87.12 ± 0.51", "88.43 ± 0.96", "90.12", "–"]
    assert heading.get_attribute("aria-sort") == "ascending"
    sort(page, "accuracy %")
    assert names(page) == written and heading.get_attribute("aria-sort") is None


def test_texts_sort_both_ways_and_missing_ones_stay_last(page: Any) -> None:
    sort(page, "note")
    notes = view(page).locator("table.results tbody td:nth-child(6)")
    forth = notes.all_inner_texts()
    sort(page, "note")
    assert forth[-1] == "–" and notes.all_inner_texts() == [*forth[-2::-1], "–"]


def test_search_takes_every_word_and_counts_the_rows(page: Any) -> None:
    box = view(page).get_by_role("searchbox", name="Search")
    box.fill("GRAPH  frozen")
    assert names(page) == ["teacher"] and status(page) == "1 of 6 rows"
    box.fill("no such thing")
    assert names(page) == [] and status(page) == "0 of 6 rows"
    view(page).get_by_role("button", name="Reset").click()
    assert len(names(page)) == 6 and box.input_value() == ""


def test_a_menu_filters_by_a_value(page: Any) -> None:
    menu = view(page).get_by_role("combobox", name="family")
    assert menu.locator("option").all_inner_texts() == ["all", "graph (3)", "lidar, far (1)", "medical (2)"]
    menu.select_option("lidar, far")
    assert names(page) == ["a,b & c"]
    menu.select_option("medical")
    view(page).get_by_role("searchbox", name="Search").fill("finished")
    assert names(page) == ["a,b & c"] and status(page) == "1 of 6 rows"
    assert view(page, "second").locator("select").count() == 0, "a menu of one value serves nobody"


def test_columns_are_chosen(page: Any) -> None:
    assert headings(page) == ["arm", "accuracy %", "family", "note"]
    view(page).locator("summary", has_text="Columns").click()
    boxes = view(page).locator("fieldset label")
    assert boxes.all_inner_texts() == ["family", "ms", "note"], "the name and what is not optional stay"
    boxes.filter(has_text="ms").click()
    boxes.filter(has_text="note").click()
    assert headings(page) == ["arm", "accuracy %", "family", "ms"]
    assert view(page).locator("table.results tbody tr").first.locator("td:visible").last.inner_text() == "12.50"


def test_rows_are_compared_side_by_side(page: Any) -> None:
    panel = view(page).locator("section.compare")
    pick(page, "kd")
    assert not panel.is_visible()
    pick(page, "alone", "a,b & c~2")
    lines = {
        row.locator("th").inner_text(): row.locator("td").all_inner_texts() for row in panel.locator("tbody tr").all()
    }
    assert [text.split() for text in lines["accuracy %"]] == [
        ["88.43", "±", "0.96"],
        ["87.12", "±", "0.51", "−1.31"],
        ["−50.00", "−138.43"],
    ]
    assert lines["ms"] == ["–", "3.25", "10.00"], "no difference to a missing value"
    assert lines["family"] == ["graph", "graph", "lidar, far"]
    pick(page, "teacher", "a,b & c")
    view(page).get_by_role("checkbox", name="Compare =HYPERLINK").click()
    assert status(page) == "At most 5 rows can be compared."
    assert not view(page).get_by_role("checkbox", name="Compare =HYPERLINK").is_checked()
    for key in ("kd", "teacher", "a,b & c", "a,b & c~2"):
        panel.get_by_role("button", name=f"Remove {key}", exact=True).click()
    assert not panel.is_visible() and view(page).locator("tbody input:checked").count() == 1


def arrange(page: Any) -> None:
    sort(page, "accuracy %")
    view(page).locator("summary", has_text="Columns").click()
    view(page).locator("fieldset label", has_text="ms").click()
    page.keyboard.press("Escape")
    view(page).get_by_role("combobox", name="family").select_option("medical")
    pick(page, "a,b & c")
    view(page).get_by_role("combobox", name="family").select_option("")
    pick(page, "a,b & c~2")
    view(page).get_by_role("searchbox", name="Search").fill("a&b=c, d%")
    view(page).get_by_role("searchbox", name="Search").fill("a,b & c")
    page.wait_for_url("**q=*")


def shown(page: Any) -> tuple[Any, ...]:
    return names(page), headings(page), view(page).locator("section.compare").inner_text(), status(page)


def test_a_permalink_restores_the_view(page: Any, visit: Any, by_hand: Path) -> None:
    arrange(page)
    before = shown(page)
    assert before[0] == ["a,b & c", "a,b & c"] and "ms" in before[1] and "−" in before[2]
    other = visit(page.url)
    assert shown(other) == before and other.url == page.url
    assert view(other).get_by_role("searchbox", name="Search").input_value() == "a,b & c"
    assert len(names(other, "second")) == 3
    page.reload()
    assert shown(page) == before


def test_copy_link_gives_the_permalink(page: Any, visit: Any) -> None:
    view(page).get_by_role("searchbox", name="Search").fill("frozen")
    sort(page, "accuracy %")
    link = copied(page, "Copy link")
    assert link == page.url and names(visit(link)) == ["teacher"]


def test_the_back_button_undoes_a_step_in_either_table(page: Any) -> None:
    written = names(page)
    sort(page, "accuracy %")
    first = names(page)
    sort(page, "accuracy %", "second")
    sort(page, "accuracy %", "second")
    assert names(page, "second") == ["alone", "kd", "teacher"]
    page.go_back()
    settled(page, ["teacher", "kd", "alone"], "second")
    assert names(page) == first != written
    page.go_back()
    settled(page, ["teacher", "alone", "kd"], "second")
    assert names(page) == first
    page.go_back()
    settled(page, written)
    page.go_forward()
    settled(page, first)


def test_a_link_followed_within_the_page_is_taken(page: Any) -> None:
    page.evaluate("location.hash = '#second?sort=mean'")
    view(page, "second").locator("[aria-sort]").wait_for()
    assert names(page, "second") == ["alone", "kd", "teacher"]
    page.evaluate("location.hash = '#first?pick=kd,ghost&sort=nothing&f.family=zebra&cols=mean,__proto__&q=%E0%A4%A'")
    view(page).locator("output", has_text="The link").wait_for()
    assert all(word in status(page) for word in ("ghost", "nothing", "zebra", "__proto__"))
    assert headings(page) == ["arm", "accuracy %"] and names(page) == []
    page.evaluate("location.hash = '#main'")
    assert headings(page) == ["arm", "accuracy %"], "other anchors leave the tables alone"


def test_csv_holds_the_exact_values_of_the_view(page: Any, sample: ModuleType) -> None:
    sort(page, "accuracy %")
    view(page).locator("summary", has_text="Columns").click()
    view(page).locator("fieldset label", has_text="ms").click()
    name, text = downloaded(page, "Download CSV")
    assert name == "first.csv" and text.count("\r\n") == 7
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert list(rows[0]) == ["arm", "mean", "mean_low", "mean_high", "family", "latency_ms", "note"]
    by_place = {0: 0, 1: 2, 2: 1, 3: 4, 4: 5, 5: 3}
    defused = {sample.HOSTILE: f"'{sample.HOSTILE}", "-1+1": "'-1+1", "@SUM(A1)": "'@SUM(A1)"}
    for place, row in enumerate(rows):
        for column, (_, data) in zip(sample.COLUMNS, sample.ROWS[by_place[place]], strict=True):
            value = data.get("v", "")
            assert row[column["key"]] == defused.get(value, value)
    assert rows[3]["mean"] == "0.30000000000000004" and rows[4]["mean"] == "-0.5"
    assert rows[5]["mean"] == rows[0]["mean_low"] == "" and rows[5]["latency_ms"] == "1e+308"


def test_json_holds_the_exact_values_of_the_view(page: Any, sample: ModuleType) -> None:
    view(page).locator("summary", has_text="Columns").click()
    view(page).locator("fieldset label", has_text="ms").click()
    name, text = downloaded(page, "Download JSON")
    assert name == "first.json" and '"mean": 0.30000000000000004,' in text
    assert json.loads(text) == sample.expected(sample.ROWS, sample.COLUMNS)
    view(page).get_by_role("combobox", name="family").select_option("lidar, far")
    assert [row["note"] for row in json.loads(downloaded(page, "Download JSON")[1])] == ["@SUM(A1)"]
    view(page).get_by_role("searchbox", name="Search").fill("no such thing")
    assert json.loads(downloaded(page, "Download JSON")[1]) == []


def test_latex_is_a_booktabs_table_of_the_view(page: Any) -> None:
    view(page).get_by_role("searchbox", name="Search").fill("a")
    text = copied(page, "Copy LaTeX").splitlines()
    assert text[:7] == [
        "% \\usepackage{booktabs}",
        "\\begin{table}",
        "\\centering",
        "\\caption{Test split of first, 5 seeds}",
        "\\begin{tabular}{lrll}",
        "\\toprule",
        "arm & accuracy \\% & family & note \\\\",
    ]
    assert "alone & 87.12 $\\pm$ 0.51 & graph & -- \\\\" in text
    assert "a,b \\& c & $-$50.00 & lidar, far & @SUM(A1) \\\\" in text
    assert (
        "=HYPERLINK(''x''),\\textless{}img src=x onerror=alert(1)\\textgreater{} & 30.00 & medical & -1+1 \\\\" in text
    )
    assert text[-3:] == ["\\bottomrule", "\\end{tabular}", "\\end{table}"]


def test_bibtex_is_copied_as_it_is(page: Any, sample: ModuleType) -> None:
    assert copied(page, "Copy BibTeX") == sample.CITATION


def test_where_the_clipboard_is_refused_the_text_is_offered(visit: Any, by_hand: Path, sample: ModuleType) -> None:
    refuse = "Object.defineProperty(navigator, 'clipboard', { value: undefined })"
    page = visit((by_hand / "index.html").as_uri(), refuse)
    export(page, "Copy BibTeX")
    area = page.locator("dialog textarea")
    assert area.input_value() == sample.CITATION
    chosen = (
        "(node) => node.selectionEnd - node.selectionStart === node.value.length && node === document.activeElement"
    )
    assert area.evaluate(chosen)
    page.keyboard.press("Escape")
    page.locator("dialog").wait_for(state="detached")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_follows_the_system_until_it_is_chosen(visit: Any, by_hand: Path, scheme: str) -> None:
    page = visit((by_hand / "index.html").as_uri(), color_scheme=scheme)
    button = page.get_by_role("button", name="Dark")

    def light() -> bool:
        return bool(
            page.evaluate("parseInt(getComputedStyle(document.documentElement).backgroundColor.slice(4)) > 128")
        )

    assert light() == (scheme == "light") and button.get_attribute("aria-pressed") == str(scheme == "dark").lower()
    button.click()
    assert light() == (scheme == "dark")
    page.goto((by_hand / "large.html").as_uri())
    assert light() == (scheme == "dark"), "the choice holds for other pages"


def test_without_storage_the_theme_still_changes(visit: Any, by_hand: Path) -> None:
    refuse = (
        "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no', 'SecurityError'); } })"
    )
    page = visit((by_hand / "index.html").as_uri(), refuse)
    page.get_by_role("button", name="Dark").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_texts_never_become_markup(page: Any, sample: ModuleType) -> None:
    pick(page, "kd", sample.HOSTILE)
    assert page.locator("main img, main script").count() == 0
    assert sample.HOSTILE in view(page).locator("section.compare").inner_text()


def test_a_long_table_shows_its_first_rows_and_all_on_demand(visit: Any, by_hand: Path) -> None:
    page = visit((by_hand / "large.html").as_uri())
    large = view(page, "large")
    assert len(names(page, "large")) == 50
    assert large.locator("output").inner_text() == "500 of 500 rows, the first 50 shown"
    large.get_by_role("searchbox", name="Search").fill("method-499")
    assert names(page, "large") == ["method-499"] and not large.locator(".more").is_visible()
    large.get_by_role("searchbox", name="Search").fill("")
    sort(page, "arm", "large")
    sort(page, "arm", "large")
    assert names(page, "large")[:2] == ["method-499", "method-498"]
    large.get_by_role("button", name="Show all 500 rows").click()
    assert len(names(page, "large")) == 500 and not large.locator(".more").is_visible()


def test_a_long_table_prints_whole(visit: Any, by_hand: Path) -> None:
    page = visit((by_hand / "large.html").as_uri())
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert len(names(page, "large")) == 500
    assert not page.locator(".tools, td.pick, nav.site").locator("visible=true").count()
    name = page.locator("tbody th").first
    assert name.evaluate("(node) => getComputedStyle(node).position") == "static", "nothing sticks to a sheet of paper"
    assert page.locator(".scroll").evaluate("(node) => node.scrollHeight <= node.clientHeight + 1")
