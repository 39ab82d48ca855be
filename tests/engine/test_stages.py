"""Stages are done once, addressed by what they depend on, and safe between processes."""

import multiprocessing
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kdbench.engine.stages import Stage, StageResult, StageStore
from kdbench.errors import StaleCacheError


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


def test_the_address_follows_inputs_code_and_upstream(tmp_path: Path) -> None:
    source = tmp_path / "code.py"
    source.write_text("a = 1")
    store = StageStore(tmp_path)
    base = Stage("base", {"lr": 1}, count, code=[source])
    store.ensure(base)
    keys = {base.key({}), Stage("base", {"lr": 2}, count, code=[source]).key({}), Stage("b", {"lr": 1}, count).key({})}
    down = Stage("down", {}, count, needs=("base",))
    before = down.key(store.results)
    source.write_text("a = 2")
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
    done.write_text(done.read_text().replace(result.key, "0" * 64))
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
