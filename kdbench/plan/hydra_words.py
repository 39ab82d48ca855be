"""Hydra's parser for one override, with numbers that keep how they were written (importing it takes a while)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from antlr4 import CommonTokenStream, InputStream
from hydra.core.override_parser.overrides_parser import create_functions
from hydra.core.override_parser.overrides_visitor import HydraErrorListener, HydraOverrideVisitor
from hydra.core.override_parser.types import OverrideType, QuotedString, RangeSweep
from hydra.errors import HydraException
from hydra.grammar.gen.OverrideLexer import OverrideLexer
from hydra.grammar.gen.OverrideParser import OverrideParser

from kdbench.errors import shown
from kdbench.plan.written import number


class _Visitor(HydraOverrideVisitor):
    def visitPrimitive(self, ctx: OverrideParser.PrimitiveContext) -> Any:
        text = ctx.getText().strip()
        try:
            value = super().visitPrimitive(ctx)
        except ValueError:  # too long for Python: number() says so
            return number(text, 10)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return value
        return number(text, 10 if isinstance(value, int) else None)


def parse(word: str, most: int) -> tuple[str, Iterator[Any]]:
    """Key and values of a word, as plain values. Of a range no more than ``most`` and one are made.

    Raises ValueError with the reason for a word that cannot be read or does more than set a key.
    """
    try:
        parsed = _parse(word)
        if parsed.type != OverrideType.CHANGE or parsed.package is not None:
            raise ValueError("options are set as key=value; nothing is added, deleted or moved")
        if not parsed.is_sweep_override():
            values: Iterable[Any] = [parsed.value()]
        elif isinstance(swept := parsed.value(), RangeSweep) and (
            len(listed := list(itertools.islice(swept.range(), most + 1))) > most or not swept.shuffle
        ):
            values = listed
        else:
            values = parsed.sweep_iterator()
    except HydraException as error:
        hint = "text with special characters goes in quotes: \"key='a=b'\""
        raise ValueError(f"{shown(str(error).splitlines()[0])} ({hint})") from None
    except ArithmeticError:
        raise ValueError("a range is of finite numbers") from None
    return parsed.key_or_group, map(_plain, values)


def _parse(word: str) -> Any:
    """Hydra's ``OverridesParser.parse_override``, which has no place for another visitor."""
    listener = HydraErrorListener()
    lexer = OverrideLexer(InputStream(word))
    parser: Any = OverrideParser(CommonTokenStream(lexer))
    for part in (lexer, parser):
        part.removeErrorListeners()
        part.addErrorListener(listener)
    parsed = _Visitor(create_functions()).visit(parser.override())
    parsed.validate()
    return parsed


def _plain(value: Any) -> Any:
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if value is not None and not isinstance(value, bool | int | float | str):
        raise ValueError("several values stand at the top, not within brackets")
    return value
