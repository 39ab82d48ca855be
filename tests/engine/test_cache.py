"""The teacher cache gives back the bits it was given, and refuses what is not its own."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kdbench.engine.cache import CacheKey, TeacherCache
from kdbench.errors import StaleCacheError

KEY = CacheKey(teacher="t" * 64, outputs=("hop", "logits"), data="d" * 64, rows=10)
DATA = {"hop": torch.randn(10, 3, 2), "logits": torch.randn(10, 4)}
CHUNKS = [{name: value[at] for name, value in DATA.items()} for at in (slice(0, 4), slice(4, 10))]


def test_rows_come_back_bit_for_bit(tmp_path: Path) -> None:
    cache = TeacherCache.ensure(tmp_path, KEY, CHUNKS)
    rows = torch.tensor([7, 0, 7, 9])
    for name, value in cache.read(rows).items():
        assert torch.equal(value, DATA[name][rows])


def test_it_is_written_once(tmp_path: Path) -> None:
    TeacherCache.ensure(tmp_path, KEY, CHUNKS)
    again = TeacherCache.ensure(tmp_path, KEY, iter(()))
    assert torch.equal(again.read(torch.arange(10))["hop"], DATA["hop"])


@pytest.mark.parametrize(
    "change", [{"teacher": "u" * 64}, {"data": "e" * 64}, {"view_seed": 1}, {"outputs": ("logits", "hop")}]
)
def test_a_stale_key_refuses(tmp_path: Path, change: dict[str, object]) -> None:
    TeacherCache.ensure(tmp_path, KEY, CHUNKS)
    (field,) = change
    other = replace(KEY, **change)
    assert other.hash != KEY.hash
    with pytest.raises(StaleCacheError, match=field):
        TeacherCache(tmp_path / KEY.hash[:16], other)


def test_a_killed_writer_leaves_nothing_that_opens(tmp_path: Path) -> None:
    def dies():
        yield CHUNKS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TeacherCache.ensure(tmp_path, KEY, dies())
    with pytest.raises(FileNotFoundError):
        TeacherCache(tmp_path / KEY.hash[:16], KEY)
    assert torch.equal(TeacherCache.ensure(tmp_path, KEY, CHUNKS).read(torch.arange(10))["logits"], DATA["logits"])


def test_too_few_rows_and_other_outputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StaleCacheError, match="4 rows for data of 10"):
        TeacherCache.ensure(tmp_path, KEY, CHUNKS[:1])
    with pytest.raises(StaleCacheError, match="the cache is for"):
        TeacherCache.ensure(tmp_path, KEY, [{"logits": DATA["logits"]}])


def test_reading_does_not_write(tmp_path: Path) -> None:
    cache = TeacherCache.ensure(tmp_path, KEY, CHUNKS)
    cache.read(torch.arange(10))["logits"].zero_()
    assert torch.equal(TeacherCache(tmp_path / KEY.hash[:16], KEY).read(torch.arange(10))["logits"], DATA["logits"])
