"""YAML files with the line of every field, so that an error can name it.

Plain words mean what YAML 1.2's core schema says: ``yes`` and ``1:30:00`` are text, ``010`` is ten and ``1e3`` a
number; a number keeps how it was written. Keys are text. The stream of events is read, not the parser's own tree: that
one overflows the stack on deep brackets, and unfolds aliases without a bound.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from kdbench.errors import CardError, shown
from kdbench.plan.written import number

LARGEST_FILE = 1 << 20
"""Bytes."""
DEEPEST = 50
MOST_VALUES = 20_000
"""Values of a file, those that aliases repeat among them."""

_INTEGER = {10: r"[-+]?[0-9]+", 8: r"0o[0-7]+", 16: r"0x[0-9a-fA-F]+"}
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_TAGS = {yaml.ScalarEvent: "str", yaml.MappingStartEvent: "map", yaml.SequenceStartEvent: "seq"}


def read_yaml(path: Path) -> tuple[Any, dict[str, int]]:
    """The content of a YAML file and the line of every field by its dotted path.

    Raises :class:`CardError`, with file and line, for what is no UTF-8, no YAML, or too large to be meant.
    """
    text = _text(path)
    reader = _Reader(path, yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    try:
        return reader.document(), reader.lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        if mark is None or (error.context_mark is not None and mark.index >= len(text)):
            mark = error.context_mark  # what is not closed is better named by its beginning than by the end of the file
        said = " ".join(word for word in (error.context, error.problem) if word)
        raise CardError(f"{path}:{mark.line + 1 if mark else 1}: {said}.") from None
    except yaml.reader.ReaderError as error:
        line = text.encode()[: error.position].count(b"\n") + 1
        raise CardError(f"{path}:{line}: the character {error.character!r} is not allowed: {error.reason}.") from None


def line_of(lines: Mapping[str, int], field: str) -> int:
    """The line of a field, or of the nearest field around it."""
    while field and field not in lines:
        field = field.rpartition(".")[0]
    return lines.get(field, 1)


def _text(path: Path) -> str:
    if not path.is_file():
        raise CardError(f"{path}:1: this is no file.")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CardError(f"{path}:1: it cannot be read: {error.strerror}.") from None
    if len(data) > LARGEST_FILE:
        raise CardError(f"{path}:1: {len(data):,} bytes are more than the {LARGEST_FILE:,} that are read.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise CardError(
            f"{path}:{line}: byte 0x{data[error.start]:02x} is not UTF-8: save the file in that encoding."
        ) from None


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1


class _Reader:
    """Builds the values of one document from its events."""

    def __init__(self, path: Path, events: Iterator[yaml.Event]) -> None:
        self.path, self.events = path, events
        self.lines: dict[str, int] = {}
        self.anchors: dict[str, tuple[Any, int] | None] = {}  # value and size; None while it is being read
        self.count = 0

    def fail(self, event: yaml.Event, message: str) -> CardError:
        return CardError(f"{self.path}:{_line(event)}: {message}.")

    def document(self) -> Any:
        """The value of the only document; None where there is none."""
        value = None
        documents = 0
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self.fail(event, "a second document begins; a file holds one")
            elif isinstance(event, yaml.NodeEvent):
                value = self.value(event, "", 0)
        return value

    def value(self, event: Any, field: str, depth: int) -> Any:
        """The value that begins with an event, at most ``DEEPEST`` below the top."""
        if isinstance(event, yaml.AliasEvent):
            return self.repeated(event)
        before, self.count = self.count, self.count + 1
        if depth > DEEPEST or self.count > MOST_VALUES:
            what = f"values nested more than {DEEPEST} deep" if depth > DEEPEST else f"more than {MOST_VALUES:,} values"
            raise self.fail(event, f"{what} are not read")
        if event.tag not in (None, "!", f"tag:yaml.org,2002:{_TAGS[type(event)]}"):
            raise self.fail(event, f"the tag '{shown(event.tag)}' is not read")
        if event.anchor:
            self.anchors[event.anchor] = None
        if isinstance(event, yaml.ScalarEvent):
            value = self.scalar(event)
        elif isinstance(event, yaml.MappingStartEvent):
            value = self.mapping(field, depth)
        else:
            value = self.sequence(field, depth)
        if event.anchor:
            self.anchors[event.anchor] = (value, self.count - before)
        return value

    def repeated(self, event: yaml.AliasEvent) -> Any:
        """What an alias stands for, as a copy of its own."""
        name = str(event.anchor)
        if name not in self.anchors:
            raise self.fail(event, f"nothing has the anchor '{shown(name)}'")
        anchored = self.anchors[name]
        if anchored is None:
            raise self.fail(event, f"the alias '{shown(name)}' is within what it stands for")
        value, size = anchored
        self.count += size
        if self.count > MOST_VALUES:
            raise self.fail(event, f"its aliases unfold to more than {MOST_VALUES:,} values")
        return copy.deepcopy(value)

    def scalar(self, event: yaml.ScalarEvent) -> Any:
        text = event.value
        if event.tag is not None or not event.implicit[0]:
            return text  # quoted, or said to be text
        if text in _WORDS:
            return _WORDS[text]
        try:
            for base, pattern in _INTEGER.items():
                if re.fullmatch(pattern, text):
                    return number(text, base)
            if _FLOAT.fullmatch(text):
                return number(text)
        except ValueError as error:
            raise self.fail(event, str(error)) from None
        return float(text.replace(".", "", 1)) if _SPECIAL.fullmatch(text) else text

    def mapping(self, field: str, depth: int) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise self.fail(event, "a key is a word")
            key = event.value
            inner = f"{field}.{key}" if field else key
            if key in fields:
                raise self.fail(event, f"field '{shown(inner)}' is given twice, first in line {self.lines[inner]}")
            self.lines[inner] = _line(event)
            fields[key] = self.value(next(self.events), inner, depth + 1)
        return fields

    def sequence(self, field: str, depth: int) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            inner = f"{field}.{len(items)}" if field else str(len(items))
            self.lines[inner] = _line(event)
            items.append(self.value(event, inner, depth + 1))
        return items
