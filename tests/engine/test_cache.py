"""The teacher cache gives back the bits it was given, and refuses what is not its own."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from kdbench.engine.cache import CacheKey, DamagedCacheError, TeacherCache
from kdbench.engine.teachers import CachedTeacher, RandomTeacher
from kdbench.errors import StaleCacheError
from kdbench.hashing import digest

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


CHANGES: list[dict[str, object]] = [
    {"teacher": "u" * 64},
    {"data": "e" * 64},
    {"outputs": ("logits", "hop")},
    {"code": "c" * 64},
    {"shared": ("hop",)},
    {"device": "cuda"},
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_stale_key_refuses(tmp_path: Path, change: dict[str, object]) -> None:
    TeacherCache.ensure(tmp_path, KEY, CHUNKS)
    (field,) = change
    other = replace(KEY, **change)
    assert other.address != KEY.address and (other.hash != KEY.hash) == (field not in ("code", "device", "shared"))
    with pytest.raises(StaleCacheError, match=field):
        TeacherCache(tmp_path / KEY.address[:16], other)


def test_a_killed_writer_leaves_nothing_that_opens(tmp_path: Path) -> None:
    def dies():
        yield CHUNKS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TeacherCache.ensure(tmp_path, KEY, dies())
    with pytest.raises(FileNotFoundError):
        TeacherCache(tmp_path / KEY.address[:16], KEY)
    assert torch.equal(TeacherCache.ensure(tmp_path, KEY, CHUNKS).read(torch.arange(10))["logits"], DATA["logits"])


def test_too_few_rows_and_other_outputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StaleCacheError, match="4 rows for data of 10"):
        TeacherCache.ensure(tmp_path, KEY, CHUNKS[:1])
    with pytest.raises(StaleCacheError, match="the cache is for"):
        TeacherCache.ensure(tmp_path, KEY, [{"logits": DATA["logits"]}])


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def listed(path: Path) -> None:
    path.write_text("[1, 2]")


@pytest.mark.parametrize("name", ["rows.bin", "cache.json"])
@pytest.mark.parametrize("damage", [zeroed, flipped, truncated, emptied, listed])
def test_a_damaged_cache_is_named_and_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: Callable[[Path], None]
) -> None:
    TeacherCache.ensure(tmp_path, KEY, CHUNKS)
    folder = tmp_path / KEY.address[:16]
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    damage(folder / name)
    with pytest.raises(DamagedCacheError, match=f"{folder / name} is damaged"):
        TeacherCache(folder, KEY)
    cache = TeacherCache.ensure(tmp_path, KEY, CHUNKS)
    (message,) = caplog.messages
    assert str(folder / name) in message and message.endswith("The teacher cache is made again.")
    assert torch.equal(cache.read(torch.arange(10))["logits"], DATA["logits"])
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_lost_file_of_rows_is_made_again(tmp_path: Path) -> None:
    TeacherCache.ensure(tmp_path, KEY, CHUNKS)
    (tmp_path / KEY.address[:16] / "rows.bin").unlink()
    assert torch.equal(TeacherCache.ensure(tmp_path, KEY, CHUNKS).read(torch.arange(10))["hop"], DATA["hop"])


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    TeacherCache.ensure(tmp_path, KEY, CHUNKS)
    folder = tmp_path / KEY.address[:16]
    for name in ("rows.bin", "cache.json"):
        content = (folder / name).read_bytes()
        for place in range(0, len(content), 3):
            (folder / name).write_bytes(
                content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :]
            )
            with pytest.raises(DamagedCacheError, match=name):
                TeacherCache(folder, KEY)
        (folder / name).write_bytes(content)


def test_a_reader_keeps_its_rows_while_the_cache_is_made_again(tmp_path: Path) -> None:
    cache = TeacherCache.ensure(tmp_path, KEY, CHUNKS)
    flipped(tmp_path / KEY.address[:16] / "cache.json")
    TeacherCache.ensure(tmp_path, KEY, CHUNKS)
    assert torch.equal(cache.read(torch.arange(10))["hop"], DATA["hop"])


@pytest.mark.slow
def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    script = f"""
import os, sys
from pathlib import Path
import torch
from kdbench.engine.cache import CacheKey, TeacherCache

def chunks():
    yield {{"hop": torch.zeros(4, 3, 2), "logits": torch.zeros(4, 4)}}
    os.kill(os.getpid(), 9)

TeacherCache.ensure(Path(sys.argv[1]), {KEY!r}, chunks())
"""
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    folder = tmp_path / KEY.address[:16]
    assert killed.returncode == -9 and len(list(folder.glob(".rows.bin.*"))) == 1
    TeacherCache.ensure(tmp_path, KEY, CHUNKS)
    assert {file.name for file in folder.iterdir()} == {"lock", "rows.bin", "cache.json"}


def test_reading_does_not_write(tmp_path: Path) -> None:
    cache = TeacherCache.ensure(tmp_path, KEY, CHUNKS)
    cache.read(torch.arange(10))["logits"].zero_()
    assert torch.equal(TeacherCache(tmp_path / KEY.address[:16], KEY).read(torch.arange(10))["logits"], DATA["logits"])


MIXED = replace(KEY, outputs=("tokens", "logits", "classes"), shared=("classes",))
LENGTHS = [3, 0, 1, 5, 2, 2, 0, 4, 1, 6]
TOKENS = [torch.randn(length, 2) for length in LENGTHS]
CLASSES = torch.randn(7, 3)


def mixed(*bounds: int) -> list[dict[str, torch.Tensor]]:
    """Chunks of rows of different lengths, rows of one length, and what is one for all."""
    return [
        {
            "tokens": torch.nested.nested_tensor(TOKENS[first:last], layout=torch.jagged),
            "logits": DATA["logits"][first:last],
            "classes": CLASSES,
        }
        for first, last in pairwise(bounds)
    ]


def test_ragged_rows_and_what_is_one_for_all_come_back_bit_for_bit(tmp_path: Path) -> None:
    cache = TeacherCache.ensure(tmp_path, MIXED, mixed(0, 4, 10))
    rows = torch.tensor([7, 1, 7, 9])
    found = cache.read(rows)
    assert list(found) == list(MIXED.outputs) and torch.equal(found["classes"], CLASSES)
    assert torch.equal(found["logits"], DATA["logits"][rows])
    for part, row in zip(found["tokens"].unbind(), rows.tolist(), strict=True):
        assert torch.equal(part, TOKENS[row])


def test_rows_of_one_length_are_stored_as_without_the_others(tmp_path: Path) -> None:
    plain = replace(KEY, outputs=("logits",))
    TeacherCache.ensure(tmp_path, plain, [{"logits": DATA["logits"]}])
    TeacherCache.ensure(tmp_path, MIXED, mixed(0, 4, 10))
    first, second = ((tmp_path / key.address[:16] / "rows.bin").read_bytes() for key in (plain, MIXED))
    assert first == second == DATA["logits"].numpy().tobytes()


def test_ragged_outputs_alone(tmp_path: Path) -> None:
    key = replace(KEY, outputs=("tokens",))
    cache = TeacherCache.ensure(tmp_path, key, [{"tokens": chunk["tokens"]} for chunk in mixed(0, 10)])
    assert torch.equal(cache.read(torch.tensor([3]))["tokens"].values(), TOKENS[3])


@pytest.mark.parametrize("name", ["rows.bin", "offsets.bin", "shared.bin", "ragged-0.bin"])
def test_any_damaged_file_is_noticed_and_made_again(tmp_path: Path, name: str) -> None:
    TeacherCache.ensure(tmp_path, MIXED, mixed(0, 10))
    path = tmp_path / MIXED.address[:16] / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DamagedCacheError, match=name):
        TeacherCache(path.parent, MIXED)
    assert torch.equal(TeacherCache.ensure(tmp_path, MIXED, mixed(0, 10)).read(torch.tensor([0]))["classes"], CLASSES)


def test_what_is_one_for_all_must_not_differ(tmp_path: Path) -> None:
    first, second = mixed(0, 4, 10)
    with pytest.raises(StaleCacheError, match="'classes' is said to be one for all rows"):
        TeacherCache.ensure(tmp_path, MIXED, [first, {**second, "classes": CLASSES + 1}])


def test_controls_keep_lengths_and_what_is_shared_apart(tmp_path: Path) -> None:
    cache, rows = TeacherCache.ensure(tmp_path, MIXED, mixed(0, 10)), torch.tensor([3, 0])
    drawn = RandomTeacher(cache, lambda batch: batch, 0)(rows)
    assert [len(part) for part in drawn["tokens"].unbind()] == [5, 3]
    assert drawn["classes"].shape == CLASSES.shape and not torch.equal(drawn["classes"], CLASSES)
    turned = CachedTeacher(cache, lambda batch: batch, "t", torch.arange(10).flip(0))(rows)
    assert torch.equal(turned["tokens"].unbind()[0], TOKENS[6]) and torch.equal(turned["classes"], CLASSES)


def test_the_hash_that_records_of_random_teachers_hold_stays() -> None:
    parts = {"teacher": KEY.teacher, "outputs": ["hop", "logits"], "data": KEY.data, "rows": 10, "dtype": "float32"}
    assert KEY.hash == replace(KEY, code="c", device="cuda").hash == digest({**parts, "view_seed": None})
