"""YAML files with the line of every field, so that an error can name it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from kdbench.errors import CardError


def read_yaml(path: Path) -> tuple[Any, dict[str, int]]:
    """The content of a YAML file and the line of every field by its dotted path."""
    text = path.read_text(encoding="utf-8")
    lines: dict[str, int] = {}

    def visit(node: yaml.Node, prefix: str) -> None:
        if isinstance(node, yaml.MappingNode):
            items = [(str(key.value), key.start_mark.line + 1, value) for key, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            items = [(str(place), value.start_mark.line + 1, value) for place, value in enumerate(node.value)]
        else:
            return
        for key, line, value in items:
            field = f"{prefix}.{key}" if prefix else key
            if field in lines:
                raise CardError(f"{path}:{line}: field '{field}' is given twice, first in line {lines[field]}.")
            lines[field] = line
            visit(value, field)

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        node = yaml.compose(text, Loader=loader)
        if node is not None:
            visit(node, "")
        return yaml.load(text, Loader=loader), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        if mark is None or (error.context_mark is not None and mark.index >= len(text)):
            mark = error.context_mark  # what is not closed is better named by its beginning than by the end of the file
        said = " ".join(word for word in (error.context, error.problem) if word)
        raise CardError(f"{path}:{mark.line + 1 if mark else 1}: {said}.") from None
    except yaml.YAMLError as error:
        raise CardError(f"{path}:1: {error}") from None
