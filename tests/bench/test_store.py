"""`sttm bench store` measures what it names, and leaves nothing behind."""

from __future__ import annotations

import os
from collections import namedtuple
from pathlib import Path

import pytest

from sttm_cli.bench import storage as store
from tests.cli.process import sttm_here

TIMES = ("write", "write_floor", "warm", "warm_floor")


def test_each_size_is_measured_and_the_folder_is_left_empty() -> None:
    ended = sttm_here("bench", "store", "--sizes", "1M,3M", "--repeat", "2", "--json")
    assert ended.code == 0, ended.err
    rows = ended.json["sizes"]
    assert [round(row["bytes"] / 2**20) for row in rows] == [1, 3]
    assert all(row[name]["seconds"] > 0 for row in rows for name in TIMES)
    assert not list(Path(os.environ["STTM_CACHE_DIR"]).iterdir())


def test_int8_takes_about_half_the_bytes() -> None:
    asked = ("bench", "store", "--sizes", "4M", "--repeat", "1", "--json", "--kv-dtype")
    (whole,), (small,) = (sttm_here(*asked, kept).json["sizes"] for kept in ("auto", "int8"))
    assert 0.5 < small["bytes"] / whole["bytes"] < 0.6
    assert sttm_here(*asked, "int7").code == 2


def test_a_disk_without_room_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(store.shutil, "disk_usage", lambda place: usage(2**40, 2**40, 2**20))
    ended = sttm_here("bench", "store", "--sizes", "1M", "--cache-dir", tmp_path / "c")
    assert ended.code == 1
    assert "bytes free" in ended.err
    assert not list((tmp_path / "c").iterdir())


def test_a_size_that_is_none_is_a_usage_error() -> None:
    assert sttm_here("bench", "store", "--sizes", "much").code == 2


def test_a_file_dropped_from_the_page_cache_is_not_in_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    store.plain_write(path, 1 << 22)
    if not store.drop_from_page_cache(path):
        pytest.skip("the page cache cannot be emptied of a file here")
    with path.open("rb") as file:
        assert not store._is_cached(file.fileno(), 1 << 21)
    store.plain_read(path)
    with path.open("rb") as file:
        assert store._is_cached(file.fileno(), 1 << 21)
