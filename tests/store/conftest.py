"""A cache in a folder of its own, one in a bucket, and what they warned of."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sttm_cli.store import LocalStore
from tests.store.bucket import Open, Proxy, environment, moto


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, warnings: list[str]) -> LocalStore:
    return LocalStore(tmp_path / "cache", warn=warnings.append)


@pytest.fixture(scope="session")
def port() -> Iterator[int]:
    pytest.importorskip("obstore", reason="the extra 'cloud' is not installed")
    pytest.importorskip("moto", reason="moto, a server for tests, is not installed")
    with moto() as port:
        yield port


@pytest.fixture
def proxy(port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    proxy = Proxy(port)
    monkeypatch.setenv("MOTO", f"http://127.0.0.1:{port}")
    for name, value in environment(proxy.address).items():
        monkeypatch.setenv(name, value)
    yield proxy
    proxy.close()


@pytest.fixture
def address() -> str:
    return f"s3://videos/team/{random.getrandbits(64):x}"


@pytest.fixture
def open_bucket(proxy: Proxy, address: str, tmp_path: Path, warnings: list[str]) -> Iterator[Open]:
    """Open the bucket as another machine does: each name has copies of its own."""
    from sttm_cli.store.cloud import BucketStore

    opened: list[BucketStore] = []

    def opening(machine: str = "a", **more: Any) -> Any:
        store = BucketStore(
            address, **{"warn": warnings.append, "tier": tmp_path / machine, **more}
        )
        opened.append(store)
        return store

    yield opening
    for store in opened:
        store.close()
