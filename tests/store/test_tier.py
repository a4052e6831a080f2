"""Copies of a bucket's entries: which go first, and a copy whose disk is full."""

from __future__ import annotations

from pathlib import Path

import pytest

from sttm_cli.store import LocalStore, key_of, pack
from sttm_cli.store.cloud import _Copy
from sttm_cli.store.files import SUFFIX, Incoming
from sttm_cli.store.tier import Tier
from tests.store.made import IDENTITY, kv


def test_the_copy_that_was_used_last_goes_last(tmp_path: Path) -> None:
    identities = [{**IDENTITY, "video": {"digest": digest}} for digest in ("used", "left")]
    with LocalStore(tmp_path / "tier", warn=print) as store:
        for identity in identities:
            store.save(identity, pack(kv()), label={})
    tier = Tier(tmp_path / "tier", "s3://videos", warn=print)
    # Written first, but used since.
    tier.count_use(key_of(identities[0]), 1.0)
    assert tier.store is not None
    (removed,) = tier.store.prune(tier.store.bytes - 1)
    tier.close()
    assert removed.key == key_of(identities[1])


def test_a_copy_whose_disk_is_full_is_given_up_and_closed_once_nobody_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    incoming = Incoming(tmp_path / ("0" * 64 + SUFFIX))

    def full(offset: int, data: memoryview) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(incoming, "write", full)
    copy = _Copy(incoming)
    for _ in range(2):
        copy.write(0, memoryview(b"x"))
    assert copy.incoming is None
    # Another thread may be in the middle of a write.
    assert not incoming.file.closed
    copy.drop()
    assert incoming.file.closed
    assert list(tmp_path.iterdir()) == []
