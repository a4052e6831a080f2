"""What storing in a bucket, a hit and a miss cost: seconds, requests and bytes."""

from __future__ import annotations

import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sttm_cli.base.device import wait_for
from sttm_cli.base.errors import CacheError, UsageError
from sttm_cli.base.types import Json
from sttm_cli.bench.storage import ROOM, made_up_kv
from sttm_cli.settings.fields import NO_TIER
from sttm_cli.store import PackedKV, key_of, open_store, pack
from sttm_cli.store.cloud import BucketStore


@dataclass(frozen=True)
class Step:
    """One step: its seconds, the best of the repeats, and what each asked of the bucket."""

    name: str
    seconds: float
    received: int
    sent: int
    requests: dict[str, int]


@dataclass(frozen=True)
class BucketRow:
    """One size in bytes as stored, and its steps."""

    bytes: int
    steps: list[Step]


def measure_bucket(
    address: str,
    sizes: Sequence[int],
    *,
    kv_dtype: str = "auto",
    device: str = "cpu",
    repeat: int = 5,
) -> Iterator[BucketRow]:
    """A row for each size (bytes in bfloat16), as it is measured, below a prefix of its own under
    `address`, where nothing is left.

    Raises CacheError where the bucket fails, UsageError for an address that is not a bucket's.
    """
    place = f"{address.rstrip('/')}/bench-{secrets.token_hex(4)}"
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="sttm-") as folder, ExitStack() as opened:
            tiers: list[str | Path] = [NO_TIER, *(Path(folder) / f"{n}" for n in range(repeat + 1))]
            machines = [opened.enter_context(_machine(place, tier)) for tier in tiers]
            yield _measured(machines, pack(made_up_kv(size), kv_dtype), device)


def _machine(place: str, tier: str | Path) -> BucketStore:
    store = open_store(place, warn=_fail, tier=tier)
    if not isinstance(store, BucketStore):
        store.close()
        raise UsageError(
            f"--cache-dir {place} is not a local folder", "give a folder or a bucket to measure in"
        )
    return store


def _measured(machines: Sequence[BucketStore], kv: PackedKV, device: str) -> BucketRow:
    """`machines`: one without copies, one that stores, and those that then restore."""
    alone, first, *others = machines
    identities = [{"bench": kv.nbytes, "repeat": number} for number in range(len(others))]
    try:
        stored = _best("miss, then stored", [(first, partial(_miss, kv, i)) for i in identities])
        wanted = identities[0]
        restore = partial(_restore, wanted, device)
        entry = first.stored(wanted)
        if entry is None:
            raise CacheError("the KV could not be stored")
        steps = [
            stored,
            _best("hit, no copies kept", [(alone, restore)] * len(others)),
            _best("hit, copied meanwhile", [(other, restore) for other in others]),
            _best("hit, from the copy", [(other, restore) for other in others]),
        ]
        return BucketRow(entry.bytes, steps)
    finally:
        first.remove([key_of(identity) for identity in identities])
        first.prune(0)


def _miss(kv: PackedKV, identity: Json, store: BucketStore) -> None:
    """As a question about a new video goes, without the computing."""
    store.find(identity).close()
    with store.computing(key_of(identity), on_wait=lambda: None):
        store.find(identity).close()
        if store.save(identity, kv, label={}) is None:
            raise CacheError("the KV could not be stored")


def _restore(identity: Json, device: str, store: BucketStore) -> None:
    if store.load(store.find(identity), device=device, room=ROOM) is None:
        raise CacheError("the KV could not be restored")
    wait_for(device)


def _best(name: str, runs: Sequence[tuple[BucketStore, Callable[[BucketStore], None]]]) -> Step:
    found = list[Step]()
    for store, run in runs:
        traffic = store.traffic
        before = traffic.requests.copy(), traffic.received, traffic.sent
        started = time.perf_counter()
        run(store)
        seconds = time.perf_counter() - started
        requests = dict(sorted((traffic.requests - before[0]).items()))
        received, sent = traffic.received - before[1], traffic.sent - before[2]
        found.append(Step(name, seconds, received, sent, requests))
    return min(found, key=lambda step: step.seconds)


def _fail(line: str) -> None:
    raise CacheError(line)
