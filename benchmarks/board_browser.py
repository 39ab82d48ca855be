"""The leaderboard in a real browser: bytes and time of the first view, and the time that sorts and filters take.

    python benchmarks/board_browser.py [--quick] [--json] [--rounds N] [--records N] [--site FOLDER]

Builds a site of generated records (``board.py``) unless one is given, and opens it from its files in headless Chromium.
A sort or filter takes from the click or key until the next frame is painted; beside it stands the processor time of the
page's main thread for each, which other work on the machine leaves alone. The largest table is measured as it opens,
with its first rows in view, and again with all of them ("all rows"), which a reader asks for by a button.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from board import build, generate
from playwright.sync_api import Browser, Page, sync_playwright

PAINTED = """const painted = () => new Promise((done) => requestAnimationFrame(() => {
  const channel = new MessageChannel();
  channel.port1.onmessage = () => done(performance.now());
  channel.port2.postMessage(0);
}));"""
FIRST_TABLE = f"""{PAINTED}
window.seen = {{}};
(async () => {{
  while (!window.seen.table || !window.seen.tools) {{
    const there = {{ table: "table.results tbody tr", tools: ".tools" }};
    const found = Object.keys(there).filter((name) => document.querySelector(there[name])?.offsetHeight);
    const now = await painted();
    for (const name of found) window.seen[name] ??= now;
  }}
}})();"""
SORTS = f"""async ([id, rounds]) => {{
  {PAINTED}
  const buttons = [...document.querySelectorAll(`#${{id}} button.sort`)].filter((button) => button.offsetWidth);
  const times = [];
  for (let round = -5; round < rounds; round += 1) {{
    await painted();
    await painted();
    const start = performance.now();
    buttons[(round + 5) % buttons.length].click();
    const time = await painted() - start;
    if (round >= 0) times.push(time);
  }}
  return times;
}}"""
FILTERS = f"""async ([id, rounds]) => {{
  {PAINTED}
  const search = document.querySelector(`#${{id}} input[type=search]`);
  const menus = [...document.querySelectorAll(`#${{id}} .tools select`)];
  const texts = ["", "a", "kd", "student", "0.", "1", "zebra"];
  const times = [];
  for (let round = -5; round < rounds; round += 1) {{
    await painted();
    await painted();
    const start = performance.now();
    const menu = menus[round % menus.length];
    if (round % 2 && menu) {{
      menu.selectedIndex = menu.selectedIndex ? 0 : 1 + Math.abs(round) % (menu.options.length - 1);
      menu.dispatchEvent(new Event("change"));
    }} else {{
      search.value = texts[Math.abs(round) / 2 % texts.length | 0];
      search.dispatchEvent(new Event("input"));
    }}
    const time = await painted() - start;
    if (round >= 0) times.push(time);
  }}
  return times;
}}"""


def first_view(browser: Browser, site: Path, rounds: int) -> dict[str, Any]:
    """Gzipped bytes that the overview loads, and milliseconds until its first table and its tools are painted."""
    loaded: set[Path] = set()
    times: dict[str, list[float]] = {"table": [], "tools": []}
    for _ in range(rounds):
        page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
        page.on("request", lambda request: loaded.add(Path(unquote(urlparse(request.url).path))))
        page.add_init_script(FIRST_TABLE)
        page.goto((site / "index.html").as_uri())
        page.wait_for_load_state("load")
        page.locator(".tools").first.wait_for()
        page.wait_for_timeout(300)
        for name, time in page.evaluate("window.seen").items():
            times[name].append(time)
        page.context.close()
    files = [path for path in loaded if path.is_file()]
    size = sum(len(gzip.compress(path.read_bytes(), 6)) for path in files)
    return {"files": len(files), "gzip_bytes": size, **{f"{name}_ms": spread(found) for name, found in times.items()}}


def largest_table(site: Path) -> tuple[Path, str, int, int]:
    """Page, section, rows and columns of the table with most cells."""
    best: tuple[int, Path, str, int, int] | None = None
    for page in [site / "index.html", *sorted(site.glob("[fmt]*/*.html"))]:
        for part in re.split(r"(?=<section class=\"view\")", page.read_text(encoding="utf-8"))[1:]:
            rows, columns = part.count("<tr data-arm"), part.count('<th scope="col"')
            name = re.match(r"<section class=\"view\" id=\"([^\"]+)\"", part)
            if name and (best is None or rows * columns > best[0]):
                best = (rows * columns, page, name[1], rows, columns)
    assert best, f"{site} has no table"
    return best[1:]


def measured(page: Page, name: str, count: int) -> dict[str, dict[str, float]]:
    """Milliseconds of ``count`` sorts and as many filters, and the mean of the main thread's processor time."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def busy() -> float:
        metrics = session.send("Performance.getMetrics")["metrics"]
        return next(1e3 * one["value"] for one in metrics if one["name"] == "TaskDuration")

    times = {}
    for kind, script in (("sort", SORTS), ("filter", FILTERS)):
        before = busy()
        times[kind] = spread(page.evaluate(script, [name, count]))
        times[kind]["cpu"] = round((busy() - before) / (count + 5), 1)
        page.locator(f"#{name}").get_by_role("button", name="Reset").click()
    return times


def spread(samples: Sequence[float]) -> dict[str, float]:
    """Median, 95th percentile and greatest."""
    high = statistics.quantiles(samples, n=20, method="inclusive")[-1] if len(samples) > 1 else samples[0]
    return {"p50": round(statistics.median(samples), 1), "p95": round(high, 1), "max": round(max(samples), 1)}


def measure(browser: Browser, site: Path, rounds: int, count: int) -> dict[str, Any]:
    """Everything about one site."""
    path, name, rows, columns = largest_table(site)
    told: dict[str, Any] = {"first_view": first_view(browser, site, rounds)}
    told["largest"] = {"page": path.relative_to(site).as_posix(), "rows": rows, "columns": columns}
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.goto(path.as_uri())
    told |= measured(page, name, count)
    more = page.locator(f"#{name} .more")
    if more.is_visible():
        more.click()
        told |= {f"{kind}, all rows": time for kind, time in measured(page, name, count).items()}
    return told


def lines(told: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What was measured, its figure and its promise (design.md, section 8)."""
    view, largest = told["first_view"], told["largest"]
    table = f"{largest['page']}, {largest['rows']} rows × {largest['columns']} columns"
    found = [
        (f"first view, gzipped ({view['files']} files)", f"{view['gzip_bytes'] / 1e3:.1f} kB", "≤ 350 kB"),
        ("first table painted", _times(view["table_ms"]), "≤ 1,000 ms"),
        ("its tools painted", _times(view["tools_ms"]), ""),
    ]
    for kind in ("sort", "filter", "sort, all rows", "filter, all rows"):
        if kind in told:
            found.append((f"{kind}: {table}", _times(told[kind]), "p95 ≤ 50 ms" if kind in ("sort", "filter") else ""))
    return found


def _times(time: dict[str, float]) -> str:
    told = f"p50 {time['p50']:.0f} ms, p95 {time['p95']:.0f} ms, max {time['max']:.0f} ms"
    return told + (f"; processor {time['cpu']:.0f} ms" if "cpu" in time else "")


def main() -> None:
    """Generate, build, open, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--quick", action="store_true", help="500 records and few rounds: does it run?")
    parser.add_argument("--rounds", type=int, help="openings of the first view (default 10, quick 2)")
    parser.add_argument("--records", type=int, help="number of records (default 5000, quick 500)")
    parser.add_argument("--site", type=Path, help="measure this site, and generate none")
    chosen = parser.parse_args()
    rounds, count = chosen.rounds or (2 if chosen.quick else 10), 10 if chosen.quick else 100
    with tempfile.TemporaryDirectory() as temporary:
        site = chosen.site
        if site is None:
            records, site = Path(temporary) / "records", Path(temporary) / "site"
            generate(chosen.records or (500 if chosen.quick else 5_000), records)
            build(records, site)
        load = os.getloadavg()[0]
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            told = measure(browser, site.resolve(), rounds, count)
            told |= {"chromium": browser.version, "cores": os.cpu_count(), "load_at_start": round(load, 2)}
            browser.close()
    if chosen.json:
        print(json.dumps(told, indent=1))
        return
    rows = [("measured", "figure", "promise"), ("---", "---", "---"), *lines(told)]
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))
    print(f"\nChromium {told['chromium']}, {told['cores']} cores; load at the start {load:.2f}")


if __name__ == "__main__":
    main()
