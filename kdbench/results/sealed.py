"""Documents that are published beside records, sealed like them: a digest over all else, checked when they are read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import ValidationError

from kdbench import hashing
from kdbench.errors import DataError
from kdbench.results.parts import Part


class Sealed(Part):
    """A document with the SHA-256 of the canonical JSON of its other fields."""

    called: ClassVar[str]
    """What it is, in messages: ``the log``."""
    digest: str = ""

    @property
    def body(self) -> dict[str, Any]:
        """All but the digest, as JSON values."""
        return self.model_dump(mode="json", exclude={"digest"})

    @property
    def text(self) -> str:
        """The document as JSON text."""
        content = {**self.body, "digest": self.digest}
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def seal(cls, fields: Mapping[str, Any]) -> Self:
        """The document of all fields but the digest. Raises :class:`DataError` for fields that do not hold together."""
        try:
            document = cls.model_validate(fields)
        except ValidationError as error:
            raise DataError(f"{cls.called}: {_first(error)}") from None
        return document.model_copy(update={"digest": hashing.digest(document.body)})

    @classmethod
    def read(cls, path: Path) -> Self:
        """The document in a file. Raises :class:`DataError` naming file and field where it does not hold."""
        try:
            document = cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise DataError(f"{path}: {_first(error)}") from None
        if document.digest != hashing.digest(document.body):
            raise DataError(f"{path}: digest: does not match {cls.called}: a field was changed afterwards.")
        return document


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"]))
    return f"{field}: {first['msg']}." if field else f"{first['msg']}."
