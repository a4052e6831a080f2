"""An artifact too long for one request goes to the bucket in parts: all of it, or nothing."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from sttm_cli.store import pack
from tests.store.made import IDENTITY, kv, restored, same

pytest.importorskip("obstore", reason="the extra 'cloud' is not installed")
pytest.importorskip("moto", reason="moto, a server for tests, is not installed")

from sttm_cli.store import bucket
from tests.store.bucket import Open, Proxy

LONG = (80_000, 80_000, 60_000)
STORING = """
import sys
from sttm_cli.store import bucket, pack
from sttm_cli.store.cloud import BucketStore
from tests.store.made import IDENTITY, kv
bucket.MOST_AT_ONCE, bucket.UPLOAD_PART = 6 << 20, 5 << 20
store = BucketStore(sys.argv[1], warn=print, tier=None)
store.save(IDENTITY, pack(kv(lengths=tuple(map(int, sys.argv[2:])))), label={})
"""


@pytest.fixture(autouse=True)
def _lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "MOST_AT_ONCE", 6 << 20)
    # The least that S3 takes.
    monkeypatch.setattr(bucket, "UPLOAD_PART", 5 << 20)


def parts(proxy: Proxy) -> set[str]:
    """The numbers of the parts that were sent."""
    asked = [line.partition("partNumber=")[2] for line in proxy.lines if line.startswith("PUT")]
    return {number.split("&")[0].split()[0] for number in asked if number}


def test_a_long_artifact_is_sent_in_parts_and_is_whole(
    open_bucket: Open, proxy: Proxy, warnings: list[str]
) -> None:
    store, made = open_bucket("a"), kv(lengths=LONG)
    entry = store.save(IDENTITY, pack(made), label={})
    assert entry is not None
    assert parts(proxy) == {"1", "2", "3"}
    assert same(restored(open_bucket("a")), made)
    assert same(restored(open_bucket("b")), made)
    assert store.verify() == (1, [])
    (listed,) = open_bucket("b").entries()
    assert (listed.key, listed.bytes) == (entry.key, entry.bytes)
    # There is no condition: what is stored once more replaces it whole.
    other = kv(1, lengths=LONG)
    assert open_bucket("b").save(IDENTITY, pack(other), label={}) is not None
    assert same(restored(open_bucket("a")), other)
    assert store.verify() == (1, [])
    assert warnings == []


def test_an_upload_killed_between_its_parts_leaves_no_entry(
    open_bucket: Open, proxy: Proxy, address: str
) -> None:
    proxy.only, proxy.status, proxy.times = "partNumber=2", 503, 10**6
    command = [sys.executable, "-c", STORING, address, *map(str, LONG)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    try:
        while not {"1", "2"} <= parts(proxy) and process.poll() is None:
            time.sleep(0.05)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    proxy.times = 0
    store, made = open_bucket("a"), kv(lengths=LONG)
    assert restored(store) is None
    assert store.entries() == []
    assert store.verify() == (0, [])
    assert store.save(IDENTITY, pack(made), label={}) is not None
    assert same(restored(open_bucket("b")), made)
    assert store.verify() == (1, [])
