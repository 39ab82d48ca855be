"""A method's docstring as blocks of a page: sentences, equations, and what differs from the released code."""

from __future__ import annotations

import re
from dataclasses import dataclass

CODE = re.compile(r"``([^`]+)``|`([^`]+)`")
DIFFERENCES = re.compile(r"variant=|official|released|re-?implement|differs?\b|not built|not at hand|as built", re.I)


@dataclass(frozen=True)
class Piece:
    """A stretch of text, or of code."""

    text: str
    code: bool


@dataclass(frozen=True)
class Block:
    """A paragraph, or an equation with its lines as they are."""

    equation: bool
    pieces: tuple[Piece, ...]

    @property
    def text(self) -> str:
        """The block without marks of code."""
        return "".join(piece.text for piece in self.pieces)


def blocks(doc: str) -> tuple[Block, ...]:
    """Paragraphs and items of a docstring: indented ones are equations."""
    parsed = []
    for part in re.split(r"\n\s*\n", doc.strip("\n")):
        lines = part.split("\n")
        if all(line.startswith("    ") for line in lines if line.strip()):
            indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
            parsed.append(Block(True, (Piece("\n".join(line[indent:] for line in lines), False),)))
        else:
            items = re.split(r"\n(?=(?:\d+\.|-) )", part)
            parsed += [Block(False, pieces(" ".join(item.split()))) for item in items if item.strip()]
    return tuple(parsed)


def pieces(text: str) -> tuple[Piece, ...]:
    """Text and code, told apart by backquotes."""
    parts, at = [], 0
    for match in CODE.finditer(text):
        parts += [Piece(text[at : match.start()], False), Piece(match[1] or match[2], True)]
        at = match.end()
    return tuple(piece for piece in (*parts, Piece(text[at:], False)) if piece.text)


def differences(doc: str) -> tuple[Block, ...]:
    """The sentences that say where paper, released code and this implementation differ."""
    matching = []
    for block in blocks(doc):
        if not block.equation:
            plain = re.sub(r"\s+", " ", "".join(f"``{p.text}``" if p.code else p.text for p in block.pieces))
            sentences = re.split(r"(?<=[.])\s+(?=[A-Z`])", plain)
            kept = [sentence for sentence in sentences if DIFFERENCES.search(sentence)]
            matching += [Block(False, pieces(" ".join(kept)))] if kept else []
    return tuple(matching)
