"""Pictures from files and boxes on them, checked: an error names the file, and the object where it is one."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from kdbench.errors import DataError

ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
"""What the last bytes of a whole picture hold."""
TAIL = 2**16
OUTSIDE = 0.5  # pixels by which a box may leave its picture, for rounding
UNREADABLE = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, MemoryError, OverflowError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)
"""What Pillow raises for files that are damaged or no pictures."""


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as picture:
            if picture.mode in ("I", "F"):
                raise DataError(f"{path} has pixels of 32 bits without a known range: save it with 8 or 16 bits.")
            yield picture
    except UNREADABLE as error:
        raise DataError(f"{path} cannot be read as a picture: {str(error) or type(error).__name__}.") from None


def read(path: Path) -> Image.Image:
    """The picture in RGB of 8 bits: turned upright as its EXIF data say, of 16 bits the upper 8."""
    with _opened(path) as picture:
        upright = ImageOps.exif_transpose(picture)
        if upright.mode.startswith("I;16"):
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        return upright.convert("RGB")


def size_of(path: Path) -> tuple[int, int]:
    """Width and height of the upright picture.

    It is decoded only if it does not end as its format does, so this takes a fraction of a millisecond.
    """
    with _opened(path) as picture, path.open("rb") as stream:
        stream.seek(-min(TAIL, stream.seek(0, 2)), 2)
        tail = stream.read()
        if ENDS.get(str(picture.format), b"\0none") not in tail or b"eXIf" in tail:
            picture.load()
        lying = Image.Image.getexif(picture).get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        return (picture.height, picture.width) if lying else picture.size


def check_box(where: str, box: Sequence[float], width: float, height: float) -> None:
    """Raise :class:`DataError` for a box [x1, y1, x2, y2] that has no area or leaves its picture."""
    x1, y1, x2, y2 = box
    message = f"{where}: its box from {x1:g}, {y1:g} to {x2:g}, {y2:g}"
    if not (x2 > x1 and y2 > y1):
        raise DataError(f"{message} has no area.")
    if min(x1, y1) < -OUTSIDE or x2 > width + OUTSIDE or y2 > height + OUTSIDE:
        raise DataError(f"{message} leaves the picture of {width:g} × {height:g} pixels.")
