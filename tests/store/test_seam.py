"""A store is a protocol: any implementation behind an address serves every command."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from sttm_cli.base.errors import UsageError
from sttm_cli.serve.server_files import pinned
from sttm_cli.settings.settings import Settings, cache_dir
from sttm_cli.store import LocalStore, Store, open_store, pack
from tests.cli.process import sttm, sttm_here
from tests.store import toy_store
from tests.store.made import IDENTITY, kv, restored, same
from tests.store.toy_store import ToyStore

SAMPLE = Path(__file__).parents[2] / "docs" / "sample.mp4"
QUESTION = "how many shapes are there?"


@pytest.fixture
def toy_address(tmp_path: Path) -> str:
    return f"toy://{tmp_path / 'Toy Box'}"


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """The environment of a process that has the toy store installed."""
    folder = tmp_path / "installed"
    (folder / "toy_store-1.0.dist-info").mkdir(parents=True)
    shutil.copy(toy_store.__file__, folder / "toy_store.py")
    info = folder / "toy_store-1.0.dist-info"
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-store\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sttm_cli.stores]\ntoy = toy_store:ToyStore\n")
    paths = [str(folder), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def test_a_store_in_one_file_serves_ask_and_the_cache_commands(
    installed: dict[str, str], toy_address: str
) -> None:
    address = toy_address
    at = ("--cache-dir", address, "--json")
    cold = sttm("ask", SAMPLE, QUESTION, *at, **installed)
    assert cold.code == 0, cold.err
    assert not cold.json["cache"]["hit"]
    warm = sttm("ask", SAMPLE, QUESTION, "--json", **installed, STTM_CACHE_DIR=address)
    assert warm.json["cache"]["hit"], warm.err
    assert warm.json["answers"] == cold.json["answers"]
    (row,) = sttm("cache", "ls", *at, **installed).json["entries"]
    assert (row["key"], row["hits"]) == (cold.json["cache"]["key"], 1)
    assert row["path"].startswith(address)
    assert sttm("cache", "path", *at, **installed).json == {"path": address}
    assert sttm("cache", "verify", *at, **installed).json["checked"] == 1
    prepared = sttm("precompute", SAMPLE, *at, **installed)
    assert prepared.json["skipped"] == 1, prepared.err
    assert len(sttm("cache", "rm", row["key"], *at, **installed).json["removed"]) == 1


def test_an_unknown_scheme_is_a_usage_error_that_names_it() -> None:
    for command in (["ask", SAMPLE, QUESTION], ["cache", "ls"], ["cache", "path"]):
        ended = sttm_here(*command, "--cache-dir", "nowhere://x")
        assert ended.code == 2
        assert "there is no store for nowhere://" in ended.err
    ended = sttm_here("bench", "store", "--sizes", "1M", "--cache-dir", "nowhere://x")
    assert (ended.code, "is not a local folder" in ended.err) == (2, True)


def test_an_address_arrives_unchanged_and_a_path_as_a_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert Settings(cache_dir="toy://a//b/").cache_dir == "toy://a//b/"
    assert pinned(Settings(cache_dir="toy://a//b/"))["cache_dir"] == "toy://a//b/"
    assert Settings(cache_dir="file:///a/b%20c").cache_dir == Path("/a/b c")
    monkeypatch.setenv("STTM_CACHE_DIR", "toy://a//b/")
    assert cache_dir() == "toy://a//b/"
    assert cache_dir("x/y") == Path("x/y")
    with open_store(tmp_path.as_uri(), warn=print) as store:
        assert store.location == str(tmp_path)
    with pytest.raises(UsageError, match="toy"):
        open_store("toy://a", warn=print)


@pytest.fixture(params=["local", "none", "toy", "bucket"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path, toy_address: str) -> Store:
    if request.param == "bucket":
        return request.getfixturevalue("open_bucket")()
    if request.param == "toy":
        return ToyStore(toy_address, max_bytes=None, warn=print)
    return open_store(tmp_path / "cache" if request.param == "local" else None, warn=print)


def test_every_method_of_the_protocol_works_in_every_store(any_store: Store) -> None:
    assert isinstance(any_store, Store)
    keeps = not any_store.keeps_nothing
    with any_store as store:
        store.set("row", {"a": 1})
        assert store.get("row") == {"a": 1}
        assert store.get("other") is None
        assert store.find(IDENTITY).miss_reason
        assert store.stored(IDENTITY) is None
        assert store.load(store.find(IDENTITY), device="cpu", room=0) is None
        made = kv()
        with store.computing("k", on_wait=pytest.fail), store.telling(pytest.fail):
            saved = store.save(IDENTITY, pack(made), label={"video": "v.mp4"})
        found = store.stored(IDENTITY)
        assert (saved is not None) is (found is not None) is keeps is store.writable
        loaded = restored(store, room=3)
        assert (loaded is not None and same(loaded, made)) is keeps
        if saved is not None and found is not None:
            store.count_use(found, saved_s=2.0)
            assert found.key == saved.key
            assert found.location
            assert found.bytes == store.bytes == saved.bytes
            assert [entry.uses.hits for entry in store.beginning(found.key[:9])] == [1]
            assert [entry.identity for entry in store.beginning(found.key[:9])] == [IDENTITY]
        assert len(store.entries()) == len(store.beginning("")) == keeps
        assert store.verify(limit=3) == (keeps, [])
        assert store.bytes <= store.max_bytes
        assert len(store.space()) == 2
        assert store.location
        removed = store.prune(0)
        assert [entry.key for entry in removed] == ([found.key] if found else [])
        store.save(IDENTITY, pack(kv(1)), label={})
        assert len(store.remove([entry.key for entry in store.entries()])) == keeps
        assert store.entries() == []


def test_an_artifact_of_any_store_that_is_cut_short_while_it_is_read_is_damaged(
    toy_address: str,
) -> None:
    said = list[str]()
    store = ToyStore(toy_address, max_bytes=None, warn=said.append)
    store.save(IDENTITY, pack(kv()), label={})
    lookup = store.find(IDENTITY)
    assert lookup.artifact is not None
    lookup.artifact.blob._data = lookup.artifact.blob._data[:-9]
    assert store.load(lookup, device="cpu", room=0) is None
    assert "ends before" in said[0]


def test_opening_a_store_and_listing_it_imports_no_torch(tmp_path: Path) -> None:
    from tests.test_startup import modules_after

    with LocalStore(tmp_path / "cache", warn=print) as store:
        store.save(IDENTITY, pack(kv(dtype=torch.bfloat16)), label={})
    code = (
        "from sttm_cli.store import open_store\n"
        f"with open_store({str(tmp_path / 'cache')!r}, warn=print) as store:\n"
        "    assert store.beginning('')\n"
        "    assert store.entries()"
    )
    assert not modules_after(code) & {"torch", "numpy"}
    assert "diskcache" not in modules_after("import sttm_cli.store")
