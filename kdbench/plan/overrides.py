"""Hydra's override grammar, parsed by hydra-core; ``0..9`` is our short form of 0,1,…,9."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdbench.errors import UsageError, shown
from kdbench.plan.written import number


@dataclass(frozen=True)
class Override:
    """One ``key=value,value`` of the command line."""

    key: str
    values: tuple[Any, ...]


def parse_overrides(words: Sequence[str]) -> list[Override]:
    """Parse overrides in Hydra's grammar. Raises :class:`UsageError` naming the word that does not parse."""
    result = [Override(*_parse(word)) for word in words]
    times = Counter(override.key for override in result)
    if doubled := [key for key, count in times.items() if count > 1]:
        raise UsageError(f"'{shown(doubled[0])}' is given twice.")
    return result


def check_size(overrides: Sequence[Override]) -> None:
    """Raise :class:`UsageError`, with their number, for more runs than a grid may have."""
    runs = math.prod(len(override.values) for override in overrides)
    if runs > LARGEST_GRID:
        sizes = " × ".join(f"{len(o.values):,} of {shown(o.key)}" for o in overrides if len(o.values) > 1)
        raise UsageError(f"These are {runs:,} runs ({sizes}); a grid has at most {LARGEST_GRID:,}.")


MOST_VALUES = 10_000
"""Values of one key."""
LARGEST_GRID = 20_000
LONGEST_WORD = 20_000
DEEPEST = 20

_QUOTED = r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\""""
_QUOTED_OR_RANGE = re.compile(_QUOTED + r"|(?<![\w.])(\d+)\.\.(\d+)(?![\w.])", re.ASCII | re.DOTALL)
_QUOTED_OR_BRACKET = re.compile(_QUOTED + r"|([(\[{])|([)\]}])", re.DOTALL)
_INTEGER = r"(?:0|[1-9]\d*)"
_INTEGERS = re.compile(rf"([A-Za-z_][\w.]*)=({_INTEGER}(?:\.\.\d+)?(?:,{_INTEGER}(?:\.\.\d+)?)*)", re.ASCII)


def _parse(word: str) -> tuple[str, tuple[Any, ...]]:
    """Key and values of a word."""
    if "=" not in word.lstrip("="):
        raise UsageError(f"Cannot read '{shown(word)}': options are set as key=value.")
    try:
        if plain := _INTEGERS.fullmatch(word):  # thousands of seeds would take the grammar seconds
            key, values = plain[1], _integers(plain[2])
        else:
            key, values = _by_grammar(word)
        return key, _few(values)
    except ValueError as error:
        raise UsageError(f"Cannot read '{shown(word)}': {error}.") from None


def _by_grammar(word: str) -> tuple[str, Iterator[Any]]:
    if len(word) > LONGEST_WORD:
        raise ValueError(f"an option has at most {LONGEST_WORD:,} characters")
    depth = 0
    for match in _QUOTED_OR_BRACKET.finditer(word):
        depth += (match[1] is not None) - (match[2] is not None)
        if depth > DEEPEST:
            raise ValueError(f"brackets are nested more than {DEEPEST} deep")
    from kdbench.plan.hydra_words import parse

    return parse(_expand_ranges(word), MOST_VALUES)


def _few(values: Iterable[Any]) -> tuple[Any, ...]:
    few = tuple(itertools.islice(values, MOST_VALUES + 1))
    if not few:
        raise ValueError("it holds no value")
    if len(few) > MOST_VALUES:
        raise ValueError(f"it holds more than {MOST_VALUES:,} values")
    return few


def _integers(text: str) -> Iterator[Any]:
    """The values of ``0..4,7``."""
    for part in text.split(","):
        first, dots, last = part.partition("..")
        yield from _range(first, last) if dots else [number(first, 10)]


def _range(first: str, last: str) -> range:
    start, end = int(number(first, 10)), int(number(last, 10))
    if not start <= end < start + MOST_VALUES:
        raise ValueError(f"the range {shown(first)}..{shown(last)} holds no value, or more than {MOST_VALUES:,}")
    return range(start, end + 1)


def _expand_ranges(word: str) -> str:
    """``0..9`` outside quotes as ``0,1,…,9``."""

    def written(match: re.Match[str]) -> str:
        return match[0] if match[1] is None else ",".join(map(str, _range(match[1], match[2])))

    key, equals, value = word.partition("=")
    return key + equals + _QUOTED_OR_RANGE.sub(written, value)


_PLAIN_WORD = re.compile(
    r"(?!(?:null|true|false|nan|inf)$)(?:[a-z_/]|\.{1,2}/)(?:[\w/:%+@?-]|\.(?!\.))*", re.ASCII | re.IGNORECASE
)


def word(value: Any) -> str:
    """A value in the grammar of the overrides: :func:`parse_overrides` reads it back."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        from hydra.core.override_parser.types import Quote, QuotedString

        return value if _PLAIN_WORD.fullmatch(value) else QuotedString(value, Quote.single).with_quotes()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{word(key)}:{word(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ",".join(map(word, value)) + "]"
    return str(value)
