"""Prefilled KVs in memory: on the device, then in host memory, each bounded in bytes.

Below both is the store, and below that computing it again. The least recently used
goes first, down a tier and then out of memory; what is in use stays where it is.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sttm_cli.base.results import CacheUse
from sttm_cli.base.types import Continuation, PrefixKV
from sttm_cli.prefill import ROOM

if TYPE_CHECKING:
    import torch

DEVICE, HOST, DISK = "device", "host", "disk"

Devices = Sequence["torch.device | str"]


@dataclass
class Held:
    """A KV on the device, what continues it, and how many use it now."""

    kv: PrefixKV
    prefix: Continuation
    cache: CacheUse
    users: int = 1


class KVMemory:
    """KVs by key. With both bounds 0 a KV is kept for exactly as long as it is in use.

    Safe to use from several threads.
    """

    def __init__(self, *, device_bytes: int = 0, host_bytes: int = 0) -> None:
        self._bounds = {DEVICE: device_bytes, HOST: host_bytes}
        self._on_device: OrderedDict[str, Held] = OrderedDict()
        self._on_host: OrderedDict[str, tuple[PrefixKV, CacheUse, Devices]] = OrderedDict()
        self._lock = threading.RLock()

    def take(
        self, key: str, continued: Callable[[PrefixKV], Continuation]
    ) -> tuple[Held, str] | None:
        """The KV of `key` and the tier it was found in; in use until `release`.

        `continued` makes what continues a KV.
        """
        with self._lock:
            if held := self._on_device.get(key):
                held.users += 1
                self._on_device.move_to_end(key)
                return held, DEVICE
            if key in self._on_host:
                # It stays there until it is on the device: memory may run out on the way.
                kv, cache, devices = self._on_host[key]
                kv = _copied(kv, devices, ROOM)
                return self.add(key, Held(kv, continued(kv), cache)), HOST
            return None

    def has(self, key: str) -> bool:
        """Whether the KV of `key` is in memory."""
        with self._lock:
            return key in self._on_device or key in self._on_host

    def add(self, key: str, held: Held) -> Held:
        """Keep a KV that is on the device; in use until `release`."""
        with self._lock:
            self._on_host.pop(key, None)
            self._on_device[key] = held
            self._shrink()
            return held

    def release(self, held: Held) -> None:
        """One user less."""
        with self._lock:
            held.users -= 1
            self._shrink()

    def clear(self) -> None:
        """Forget everything; what is in use lives on with its users."""
        with self._lock:
            self._on_device.clear()
            self._on_host.clear()

    def free_device(self) -> bool:
        """Move everything that is not in use off the device; whether that was anything."""
        with self._lock:
            before = len(self._on_device)
            self._shrink(device_bytes=0)
            return len(self._on_device) < before

    def bytes(self) -> dict[str, int]:
        """What each tier holds."""
        with self._lock:
            return {
                DEVICE: sum(_bytes(held.kv) for held in self._on_device.values()),
                HOST: sum(_bytes(kv) for kv, *_ in self._on_host.values()),
            }

    def _shrink(self, device_bytes: int | None = None) -> None:
        bound = self._bounds[DEVICE] if device_bytes is None else device_bytes
        total = self.bytes()[DEVICE]
        for key in [k for k, held in self._on_device.items() if held.users == 0]:
            if total <= bound:
                break
            held = self._on_device.pop(key)
            total -= _bytes(held.kv)
            self._lower(key, held)

    def _lower(self, key: str, held: Held) -> None:
        bound = self._bounds[HOST]
        if held.kv.nbytes > bound:
            return
        devices = [keys.device for keys in held.kv.keys]
        kv = _copied(held.kv, ["cpu"] * len(devices), 0)
        self._on_host[key] = (kv, held.cache, devices)
        total = self.bytes()[HOST]
        while total > bound:
            _, (kv, *_) = self._on_host.popitem(last=False)
            total -= _bytes(kv)


def _copied(kv: PrefixKV, devices: Devices, room: int) -> PrefixKV:
    """The prefix in new buffers, layer i on `devices[i]`, with `room` free rows."""

    def copy(buffer: torch.Tensor, length: int, device: torch.device | str) -> torch.Tensor:
        new = buffer.new_empty((length + room, *buffer.shape[1:]), device=device)
        new[:length] = buffer[:length]
        return new

    keys, values = (
        [copy(*layer) for layer in zip(side, kv.lengths, devices, strict=True)]
        for side in (kv.keys, kv.values)
    )
    return replace(kv, keys=keys, values=values)


def _bytes(kv: PrefixKV) -> int:
    return sum(t.numel() * t.element_size() for t in kv.keys + kv.values)
