"""KVs in memory: bounded, least recently used first, and never dropped while in use."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sttm_cli.base.results import CacheUse
from sttm_cli.base.types import PrefixKV, TokenCounts
from sttm_cli.runtime.kv_memory import DEVICE, HOST, Held, Tiers

ROWS, ROOM = 8, 4
BUFFERS = 2 * 2 * 4  # keys and values of two layers, float32
ON_DEVICE, ON_HOST = (ROWS + ROOM) * BUFFERS, ROWS * BUFFERS


def kv(value: float) -> PrefixKV:
    buffers = [torch.full((ROWS + ROOM, 1, 1), value) for _ in range(4)]
    counts = TokenCounts(ROWS, ROWS, ROWS)
    return PrefixKV(buffers[:2], buffers[2:], (ROWS, ROWS), 0, (ROWS, ROWS), counts, (1, 1, 1))


def held(value: float) -> Held:
    return Held(kv(value), continued(kv(value)), CacheUse(False, "", 0, 0, ROWS, "new"))


def continued(of: PrefixKV) -> Any:
    return of


def take(tiers: Tiers, key: str) -> tuple[Held, str] | None:
    return tiers.take(key, continued)


def fill(tiers: Tiers, *keys: str) -> None:
    for value, key in enumerate(keys):
        tiers.release(tiers.add(key, held(float(value))))


def test_without_bounds_a_kv_is_kept_for_as_long_as_it_is_in_use() -> None:
    tiers = Tiers()
    first = tiers.add("a", held(1.0))
    assert take(tiers, "a") == (first, DEVICE)
    tiers.release(first)
    assert tiers.bytes() == {DEVICE: ON_DEVICE, HOST: 0}
    tiers.release(first)
    assert tiers.bytes() == {DEVICE: 0, HOST: 0}
    assert take(tiers, "a") is None


def test_the_least_recently_used_goes_down_to_host_memory_and_comes_back_as_it_was() -> None:
    tiers = Tiers(device_bytes=2 * ON_DEVICE, host_bytes=ON_HOST)
    fill(tiers, "a", "b")
    again = take(tiers, "a")
    assert again is not None
    tiers.release(again[0])
    fill(tiers, "c")
    found = take(tiers, "b")
    assert found is not None
    assert found[1] == HOST
    assert all((t[:ROWS] == 1.0).all() for t in found[0].kv.keys + found[0].kv.values)
    assert all(len(t) > ROWS for t in found[0].kv.keys)


def test_both_tiers_stay_within_their_bytes() -> None:
    tiers = Tiers(device_bytes=2 * ON_DEVICE, host_bytes=3 * ON_HOST)
    for number in range(20):
        fill(tiers, str(number))
        assert tiers.bytes()[DEVICE] <= 2 * ON_DEVICE
        assert tiers.bytes()[HOST] <= 3 * ON_HOST
    assert [take(tiers, str(n)) is not None for n in (14, 15, 17, 19)] == [False, True, True, True]


def test_what_is_in_use_is_not_dropped_for_what_is_new() -> None:
    tiers = Tiers(device_bytes=ON_DEVICE)
    used = tiers.add("used", held(1.0))
    fill(tiers, "a", "b", "c")
    assert take(tiers, "used") == (used, DEVICE)
    assert take(tiers, "c") is None


def test_a_kv_that_did_not_fit_on_the_device_is_still_in_host_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tiers = Tiers(host_bytes=ON_HOST)
    fill(tiers, "a")
    with monkeypatch.context() as full:
        full.setattr("sttm_cli.runtime.kv_memory._copied", no_room)
        with pytest.raises(torch.OutOfMemoryError):
            take(tiers, "a")
    found = take(tiers, "a")
    assert found is not None
    assert found[1] == HOST
    assert tiers.bytes()[HOST] == 0


def no_room(*given: object) -> PrefixKV:
    raise torch.OutOfMemoryError


def test_a_kv_larger_than_host_memory_may_take_is_dropped() -> None:
    tiers = Tiers(host_bytes=ON_HOST - 1)
    fill(tiers, "a")
    assert take(tiers, "a") is None
