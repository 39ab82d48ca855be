"""A real Chromium for the leaderboard's tests, and two sites for it: one by hand, one built from records.

Where Chromium or Playwright is missing the tests skip and say so; with CI=true they fail instead.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[2]
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'-alert(1)-'",
    "javascript:alert(1)",
    "../../../etc/passwd",
    "{{ 7 * 7 }}{% raw %}",
    '=HYPERLINK("http://x")',
    'name, with "quotes" & #hash?query=1',
    "‮right to left and \u200bzero width",
    "w" * 5000,
    "</style></title></textarea></script><h1>x",
    "data:text/html,<script>alert(1)</script>",
)


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"board_{path.parent.name}_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _refuse(reason: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}, and CI has to run these tests")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser, headless."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _refuse("Playwright is not installed: no browser tests here")
    program = shutil.which("chromium")
    if program is None:
        _refuse("there is no `chromium` on the path: no browser tests here")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


class Opener:
    """Opens pages, and notes everything that a page must not do: errors, failed or foreign requests, dialogs."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser
        self.problems: list[str] = []
        self.contexts: list[Any] = []

    def __call__(self, address: str, script: str | None = None, **options: Any) -> Any:
        """A new page at ``address`` in a context of its own; ``script`` runs before the page's."""
        context = self.browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        context.set_default_timeout(20_000)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        self.contexts.append(context)
        if script:
            context.add_init_script(script)
        page = context.new_page()
        self.watch(page, address)
        page.goto(address)
        return page

    def watch(self, page: Any, address: str) -> None:
        origin = "file:///" if address.startswith("file:") else "/".join(address.split("/")[:3]) + "/"

        def requested(request: Any) -> None:
            if not request.url.startswith((origin, "data:", "blob:")):
                self.problems.append(f"{page.url} asked for {request.url}")

        def told(message: Any) -> None:
            if message.type in ("error", "warning"):
                self.problems.append(f"{page.url}: {message.text}")

        page.on("console", told)
        page.on("pageerror", lambda error: self.problems.append(f"{page.url}: {error}"))
        page.on("request", requested)
        page.on("requestfailed", lambda request: self.problems.append(f"{page.url}: {request.url} failed"))
        page.on(
            "response", lambda answer: answer.status >= 400 and self.problems.append(f"{answer.url}: {answer.status}")
        )
        page.on("dialog", lambda dialog: (self.problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))


@pytest.fixture
def visit(chromium: Any) -> Iterator[Opener]:
    """Opens pages; at the end no page may have done what it must not."""
    opener = Opener(chromium)
    yield opener
    for context in opener.contexts:
        context.close()
    assert opener.problems == []


@pytest.fixture(scope="session")
def sample() -> ModuleType:
    """The module that writes the page by hand, with its rows."""
    return _module(HERE / "sample.py")


@pytest.fixture(scope="session")
def by_hand(sample: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site of the agreed markup; its folder."""
    folder: Path = sample.write_site(tmp_path_factory.mktemp("by_hand")).parent
    return folder


@pytest.fixture(scope="session")
def record_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Published records of two tasks, records of an imagined one, and some that try to break out of the page."""
    folder = tmp_path_factory.mktemp("records")
    for task in ("gnn", "blood_cells"):
        shutil.copytree(REPOSITORY / "leaderboard" / "records" / task, folder / task)
    made = _module(HERE.parent / "conftest.py")
    arms = {"alone": 44, "kd": 46, "newkd": 49}  # seeds that no published record has: their streams are other ones
    found = [made.sealed(None, arm, 100 + seed, right + seed) for seed in range(3) for arm, right in arms.items()]
    made.published(found, folder / "imagined")
    hostile = [
        made.sealed(functools.partial(_spoil, text), "alone", 200 + place, 40) for place, text in enumerate(HOSTILE)
    ]
    made.published(hostile, folder / "hostile")
    return folder


def _spoil(text: str, fields: dict[str, Any]) -> None:
    fields["config"]["task"] = fields["task"] = "hostile"
    fields["config"]["student"]["name"] = text
    fields["notes"] = [text]
    fields["command"] = f"kdbench run {text}"
    fields["data"]["name"] = fields["hardware"]["cpu"] = text


@pytest.fixture(scope="session")
def site(record_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site built from :func:`record_files`."""
    from kdbench.board.build import build

    folder = tmp_path_factory.mktemp("built") / "site"
    report = build([record_files], folder)
    assert not report.problems, report.problems[:5]
    return folder


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="session")
def served(site: Path) -> Iterator[str]:
    """The address of :func:`site` over HTTP."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="session")
def kinds(site: Path) -> dict[str, str]:
    """A page of every kind, relative to the site; the record and a task are of those that try to break out."""
    return {
        "overview": "index.html",
        "about": "about.html",
        "family": "family/graph.html",
        "task": "task/gnn--cora_text.html",
        "hostile": "task/hostile.html",
        "method": "method/graph--lingugkd.html",
        "record": min(site.glob("record/hostile/*.html")).relative_to(site).as_posix(),
    }


@pytest.fixture(scope="session")
def accessibility(chromium: Any) -> Callable[[Any], list[str]]:
    """Runs axe-core in a page and returns what it finds, rule and places."""
    package = importlib.util.find_spec("axe_playwright_python")
    if package is None or package.origin is None:
        _refuse("axe-playwright-python is not installed: no accessibility tests here")
    assert package and package.origin
    axe = (Path(package.origin).parent / "axe.min.js").read_text(encoding="utf-8")

    def found(page: Any) -> list[str]:
        page.evaluate(f"{axe}; undefined")
        run = "axe.run({ preload: false }).then((result) => JSON.stringify(result.violations))"
        violations = json.loads(page.evaluate(run))  # preloading fetches style sheets, which file:// refuses
        return [f"{one['id']}: {[node['target'] for node in one['nodes']][:4]}" for one in violations]

    return found
