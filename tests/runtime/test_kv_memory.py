"""KVs in memory: bounded, least recently used first, and never dropped while in use."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sttm_cli.base.results import CacheUse
from sttm_cli.base.types import PrefixKV, TokenCounts
from sttm_cli.runtime.resources import DEVICE, HOST, Held, KVMemory

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


def take(memory: KVMemory, key: str) -> tuple[Held, str] | None:
    return memory.take(key, continued)


def fill(memory: KVMemory, *keys: str) -> None:
    for value, key in enumerate(keys):
        memory.release(memory.add(key, held(float(value))))


def test_without_bounds_a_kv_is_kept_for_as_long_as_it_is_in_use() -> None:
    memory = KVMemory()
    first = memory.add("a", held(1.0))
    assert take(memory, "a") == (first, DEVICE)
    memory.release(first)
    assert memory.bytes() == {DEVICE: ON_DEVICE, HOST: 0}
    memory.release(first)
    assert memory.bytes() == {DEVICE: 0, HOST: 0}
    assert take(memory, "a") is None


def test_the_least_recently_used_goes_down_to_host_memory_and_comes_back_as_it_was() -> None:
    memory = KVMemory(device_bytes=2 * ON_DEVICE, host_bytes=ON_HOST)
    fill(memory, "a", "b")
    again = take(memory, "a")
    assert again is not None
    memory.release(again[0])
    fill(memory, "c")
    found = take(memory, "b")
    assert found is not None
    assert found[1] == HOST
    assert all((t[:ROWS] == 1.0).all() for t in found[0].kv.keys + found[0].kv.values)
    assert all(len(t) > ROWS for t in found[0].kv.keys)


def test_both_tiers_stay_within_their_bytes() -> None:
    memory = KVMemory(device_bytes=2 * ON_DEVICE, host_bytes=3 * ON_HOST)
    for number in range(20):
        fill(memory, str(number))
        assert memory.bytes()[DEVICE] <= 2 * ON_DEVICE
        assert memory.bytes()[HOST] <= 3 * ON_HOST
    assert [take(memory, str(n)) is not None for n in (14, 15, 17, 19)] == [False, True, True, True]


def test_what_is_in_use_is_not_dropped_for_what_is_new() -> None:
    memory = KVMemory(device_bytes=ON_DEVICE)
    used = memory.add("used", held(1.0))
    fill(memory, "a", "b", "c")
    assert take(memory, "used") == (used, DEVICE)
    assert take(memory, "c") is None


def test_a_kv_that_did_not_fit_on_the_device_is_still_in_host_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = KVMemory(host_bytes=ON_HOST)
    fill(memory, "a")
    with monkeypatch.context() as full:
        full.setattr("sttm_cli.runtime.resources._copied", no_room)
        with pytest.raises(torch.OutOfMemoryError):
            take(memory, "a")
    found = take(memory, "a")
    assert found is not None
    assert found[1] == HOST
    assert memory.bytes()[HOST] == 0


def no_room(*given: object) -> PrefixKV:
    raise torch.OutOfMemoryError


def test_a_kv_larger_than_host_memory_may_take_is_dropped() -> None:
    memory = KVMemory(host_bytes=ON_HOST - 1)
    fill(memory, "a")
    assert take(memory, "a") is None
