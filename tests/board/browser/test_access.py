"""Who can use the tables: by keyboard, on a narrow screen, without JavaScript, with assistive technology."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WIDER_THAN_SCREEN = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
FOCUSED = "document.activeElement.innerText || document.activeElement.ariaLabel || document.activeElement.type"


def open_everything(page: Any) -> None:
    """The comparison of two rows, with a menu open over it."""
    first = page.locator("section#first")
    first.get_by_role("checkbox", name="Compare kd").check()
    first.get_by_role("checkbox", name="Compare alone").check()
    first.locator("th[data-key=mean] button").click()
    first.locator("summary", has_text="Columns").click()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_with_every_tool_in_use(
    visit: Any, by_hand: Path, accessibility: Callable[[Any], list[str]], scheme: str
) -> None:
    page = visit((by_hand / "index.html").as_uri(), color_scheme=scheme)
    assert accessibility(page) == []
    open_everything(page)
    assert accessibility(page) == []
    page.keyboard.press("Escape")
    page.evaluate("offer('text')")
    assert accessibility(page) == []


def test_axe_would_find_something(visit: Any, by_hand: Path, accessibility: Callable[[Any], list[str]]) -> None:
    page = visit((by_hand / "index.html").as_uri())
    page.evaluate("document.querySelector('main p').style.color = '#ccc'; document.documentElement.lang = ''")
    assert {found.partition(":")[0] for found in accessibility(page)} == {"color-contrast", "html-has-lang"}


def test_every_tool_works_by_keyboard(visit: Any, by_hand: Path) -> None:
    page = visit((by_hand / "index.html").as_uri())
    first = page.locator("section#first")
    page.keyboard.press("Tab")
    assert page.evaluate(FOCUSED) == "Skip to content"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.type") == "search", "the skip link leads past the navigation"
    page.keyboard.type("a")
    page.keyboard.press("Tab")
    page.keyboard.type("gr")
    assert first.locator("tbody tr").count() == 3
    page.keyboard.press("Tab")
    assert page.evaluate(FOCUSED) == "Columns"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.keyboard.press("Escape")
    assert page.evaluate(FOCUSED) == "Columns" and not first.locator("th[data-key=family]").is_visible()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate(FOCUSED) == "Reset"
    page.keyboard.press("Enter")
    assert first.locator("tbody tr").count() == 6
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "scroll"
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert first.locator("th[data-key=mean]").get_attribute("aria-sort") == "descending"
    for _ in range(3):
        page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert first.locator("section.compare thead th").all_inner_texts() == ["teacher ×", "kd ×"]


def test_what_has_the_focus_is_seen(visit: Any, by_hand: Path) -> None:
    page = visit((by_hand / "index.html").as_uri())
    outline = "parseFloat(getComputedStyle(document.activeElement).outlineWidth)"
    seen = set()
    for _ in range(16):
        page.keyboard.press("Tab")
        seen.add(page.evaluate(FOCUSED))
        assert page.evaluate(outline) >= 2, page.evaluate(FOCUSED)
        box = page.evaluate("(({ width, height }) => [width, height])(document.activeElement.getBoundingClientRect())")
        assert min(box) >= 16, page.evaluate(FOCUSED)
    assert len(seen) > 10


@pytest.mark.parametrize("width", [320, 768])
def test_a_narrow_screen_scrolls_tables_and_never_the_page(visit: Any, by_hand: Path, width: int) -> None:
    page = visit((by_hand / "index.html").as_uri(), viewport={"width": width, "height": 640})
    assert not page.evaluate(WIDER_THAN_SCREEN)
    open_everything(page)
    assert not page.evaluate(WIDER_THAN_SCREEN)
    for label in ("Columns", "Export"):
        menu = page.locator("#first details", has_text=label)
        menu.evaluate("(node) => new Promise((done) => { node.ontoggle = () => done(); node.open = !node.open; })")
        menu.evaluate(
            "(node) => node.open || new Promise((done) => { node.ontoggle = () => done(); node.open = true; })"
        )
        box = menu.locator("div").first.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width
    table = page.goto((by_hand / "large.html").as_uri()) and page.locator("#large .scroll")
    table.evaluate("(node) => node.scrollTo(400, 300)")
    head, name = page.locator("thead th").nth(1), page.locator("tbody tr").nth(12).locator("th")
    corner = table.bounding_box()
    assert head.bounding_box()["y"] - corner["y"] < 8, "the header stays"
    assert name.bounding_box()["x"] - corner["x"] < 8, "the column of names stays"


def test_without_javascript_the_tables_read_as_they_are(visit: Any, by_hand: Path, sample: Any) -> None:
    page = visit((by_hand / "index.html").as_uri(), java_script_enabled=False)
    rows = page.locator("#first tbody tr").all()
    assert [row.locator("th, td").all_inner_texts() for row in rows] == [
        [" ".join(text.split()) for text, _ in row] for row in sample.ROWS
    ]
    assert page.locator("#first thead th:visible").count() == len(sample.COLUMNS), "hidden columns are the script's"
    assert page.locator("button, input, select").count() == 0, "no tool that would do nothing"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_marks_and_borders_stand_out_from_their_ground(visit: Any, by_hand: Path, scheme: str) -> None:
    page = visit((by_hand / "index.html").as_uri(), color_scheme=scheme)
    color = """(name) => {
      const probe = document.body.appendChild(document.createElement("i"));
      probe.style.color = `var(--${name})`;
      return getComputedStyle(probe).color.match(/[\\d.]+/g).map(Number);
    }"""

    def luminance(name: str) -> float:
        parts = [value / 255 for value in page.evaluate(color, name)]
        red, green, blue = (one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts)
        return float(0.2126 * red + 0.7152 * green + 0.0722 * blue)

    def contrast(one: str, other: str) -> float:
        low, high = sorted((luminance(one), luminance(other)))
        return (high + 0.05) / (low + 0.05)

    for name in ("alone", "kd", "teacher", "control", "strong-line", *(f"mark-{place}" for place in range(8))):
        assert min(contrast(name, "ground"), contrast(name, "raised")) >= 3, name
    for name in ("ink", "muted", "link", "better", "worse", "warm", "control"):
        assert min(contrast(name, ground) for ground in ("ground", "raised", "shade")) >= 4.5, name
