"""Hydra's override grammar, parsed by hydra-core; ``0..9`` is our short form of 0,1,…,9."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdbench.errors import UsageError


@dataclass(frozen=True)
class Override:
    """One ``key=value,value`` of the command line."""

    key: str
    values: tuple[Any, ...]


def parse_overrides(words: Sequence[str]) -> list[Override]:
    """Parse overrides in Hydra's grammar. Raises :class:`UsageError` naming the word that does not parse."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import OverrideType, Transformer
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    result = []
    for word in words:
        if "=" not in word.lstrip("="):
            raise UsageError(f"Cannot read '{word}': options are set as key=value.")
        if alone := _RANGE_ALONE.fullmatch(word):  # parsed value by value, thousands of seeds would take seconds
            result.append(Override(alone[1], tuple(_range(word, int(alone[2]), int(alone[3])))))
            continue
        try:
            parsed = parser.parse_override(_expand_ranges(word))
            if parsed.type != OverrideType.CHANGE or parsed.package is not None:
                raise UsageError(
                    f"Cannot use '{word}': options are set as key=value; nothing is added, deleted or moved."
                )
            if parsed.is_sweep_override():
                written = [str(value) for value in parsed.sweep_iterator(transformer=Transformer.encode)]
                values = tuple(parser.parse_override(f"{parsed.key_or_group}={value}").value() for value in written)
            else:
                values = (parsed.value(),)
        except HydraException as error:
            hint = "text with special characters goes in quotes: \"key='a=b'\""
            raise UsageError(f"Cannot read '{word}': {str(error).splitlines()[0]} ({hint}).") from None
        result.append(Override(parsed.key_or_group, values))
    doubled = [o.key for o in result if sum(o.key == other.key for other in result) > 1]
    if doubled:
        raise UsageError(f"'{doubled[0]}' is given twice.")
    return result


_QUOTED_OR_RANGE = re.compile(r"""'(?:\\.|[^'])*'|"(?:\\.|[^"])*"|(?<![\w.])(\d+)\.\.(\d+)(?![\w.])""")


_RANGE_ALONE = re.compile(r"([A-Za-z_][\w.]*)=(\d+)\.\.(\d+)", re.ASCII)

LONGEST_RANGE = 10_000


def _range(word: str, first: int, last: int) -> range:
    if not first <= last < first + LONGEST_RANGE:
        raise UsageError(
            f"Cannot use '{word}': the range {first}..{last} holds no value, or more than {LONGEST_RANGE}."
        )
    return range(first, last + 1)


def _expand_ranges(word: str) -> str:
    """``0..9`` outside quotes as ``0,1,…,9``."""

    def written(match: re.Match[str]) -> str:
        return match[0] if match[1] is None else ",".join(map(str, _range(word, int(match[1]), int(match[2]))))

    key, equals, value = word.partition("=")
    return key + equals + _QUOTED_OR_RANGE.sub(written, value)


_PLAIN_WORD = re.compile(r"(?!(?:null|true|false|nan|inf)$)[a-z_/](?:[\w/:%+@?-]|\.(?!\.))*", re.ASCII | re.IGNORECASE)


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
