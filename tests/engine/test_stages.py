"""Stages are done once, addressed by what they depend on, and safe between processes."""

import json
import multiprocessing
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from kdbench.engine import stages
from kdbench.engine.stages import Stage, StageResult, StageStore
from kdbench.errors import StaleCacheError
from kdbench.hashing import digest


def count(folder: Path, upstream: Mapping[str, StageResult]) -> dict[str, Any]:
    with (folder.parent / "calls").open("a") as stream:
        stream.write("x")
    return {"upstream": sorted(upstream)}


def calls(root: Path) -> int:
    return len((root / "calls").read_text()) if (root / "calls").exists() else 0


def test_done_once_and_reused(tmp_path: Path) -> None:
    stage = Stage("teach", {"lr": 1}, count)
    first, second = StageStore(tmp_path).ensure(stage), StageStore(tmp_path).ensure(stage)
    assert (first.reused, second.reused, calls(tmp_path)) == (False, True, 1)
    assert first.key == second.key and first.seconds == second.seconds > 0


def test_the_address_follows_inputs_code_and_upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = StageStore(tmp_path)
    base = Stage("base", {"lr": 1}, count, code=["kdbench.engine.losses"])
    store.ensure(base)
    other, named = Stage("base", {"lr": 2}, count, base.code), Stage("b", {"lr": 1}, count, base.code)
    keys = {base.key({}), other.key({}), named.key({})}
    down = Stage("down", {}, count, needs=("base",))
    before = down.key(store.results)
    monkeypatch.setattr(stages, "closure_digest", lambda modules: "".join(sorted(modules)))
    keys.add(base.key({}))
    assert len(keys) == 4
    store.ensure(base)
    assert down.key(store.results) != before


def test_a_failed_stage_is_tried_again(tmp_path: Path) -> None:
    def fails(folder: Path, upstream: Mapping[str, StageResult]) -> dict[str, Any]:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        StageStore(tmp_path).ensure(Stage("s", {}, fails))
    assert not StageStore(tmp_path).ensure(Stage("s", {}, count)).reused


def test_another_address_in_the_folder_refuses(tmp_path: Path) -> None:
    result = StageStore(tmp_path).ensure(Stage("s", {}, count))
    done = result.folder / "stage.json"
    told = {**json.loads(done.read_text()), "key": "0" * 64}
    told["digest"] = digest({name: value for name, value in told.items() if name != "digest"})
    done.write_text(json.dumps(told))
    with pytest.raises(StaleCacheError, match="another address"):
        StageStore(tmp_path).ensure(Stage("s", {}, count))


def slow(folder: Path, upstream: Mapping[str, StageResult]) -> dict[str, Any]:
    time.sleep(0.3)
    return count(folder, upstream)


def _work(root: Path) -> None:
    StageStore(root).ensure(Stage("teach", {}, slow))


def test_two_processes_do_it_once(tmp_path: Path) -> None:
    workers = [multiprocessing.get_context("fork").Process(target=_work, args=(tmp_path,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0] and calls(tmp_path) == 1


def leave(folder: Path, upstream: Mapping[str, StageResult]) -> dict[str, Any]:
    (folder / "more").mkdir(exist_ok=True)
    (folder / "weights.bin").write_bytes(bytes(range(256)))
    (folder / "more" / "words").write_text("a b")
    return count(folder, upstream)


@pytest.mark.parametrize("file", ["weights.bin", "more/words", "stage.json"])
@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-1], lambda data: data[::-1]])
def test_a_damaged_stage_is_told_and_done_again(tmp_path: Path, file: str, damage: Callable[[bytes], bytes]) -> None:
    stage = Stage("teach", {}, leave)
    folder = StageStore(tmp_path).ensure(stage).folder
    whole = (folder / file).read_bytes()
    (folder / file).write_bytes(damage(whole))
    said: list[str] = []
    assert not StageStore(tmp_path, said.append).ensure(stage).reused
    assert len(said) == 1 and str(folder / file) in said[0] and "damaged" in said[0]
    assert (folder / "weights.bin").read_bytes() == bytes(range(256))
    assert StageStore(tmp_path, said.append).ensure(stage).reused and len(said) == 1


def test_an_edited_report_of_a_stage_is_noticed(tmp_path: Path) -> None:
    stage = Stage("teach", {}, leave)
    done = StageStore(tmp_path).ensure(stage).folder / "stage.json"
    done.write_text(done.read_text().replace('"seconds": ', '"seconds": 1'))
    assert not StageStore(tmp_path).ensure(stage).reused


def test_a_stage_that_lost_a_file_is_done_again(tmp_path: Path) -> None:
    stage = Stage("teach", {}, leave)
    (StageStore(tmp_path).ensure(stage).folder / "weights.bin").unlink()
    assert not StageStore(tmp_path).ensure(stage).reused
