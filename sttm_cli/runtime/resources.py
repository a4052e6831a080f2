"""Resources that outlive a session: the store, the loaded model, and the KVs in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sttm_cli.base.results import CacheUse
from sttm_cli.base.system import FileFacts
from sttm_cli.base.types import Continuation, LayerState, PrefixKV
from sttm_cli.models.checkpoint import check_unchanged
from sttm_cli.models.family import VideoLLM
from sttm_cli.models.registry import load
from sttm_cli.runtime.model_plan import ModelPlan
from sttm_cli.store import Store

if TYPE_CHECKING:
    import torch

# Prefilled KVs in memory: on the device, then in host memory, each tier bounded in bytes.


DEVICE, HOST, DISK = "device", "host", "disk"

Devices = Sequence["torch.device | str"]


@dataclass
class Held:
    """A KV on the device, its continuation, and its number of current users."""

    kv: PrefixKV
    prefix: Continuation
    cache: CacheUse
    users: int = 1


class KVMemory:
    """KVs by key. With both bounds 0, a KV is kept exactly as long as it is in use.

    Thread-safe.
    """

    def __init__(self, *, device_bytes: int = 0, host_bytes: int = 0) -> None:
        self._bounds = {DEVICE: device_bytes, HOST: host_bytes}
        self._on_device: OrderedDict[str, Held] = OrderedDict()
        self._on_host: OrderedDict[str, tuple[PrefixKV, CacheUse, Devices]] = OrderedDict()
        self._lock = threading.RLock()

    def take(
        self, key: str, continued: Callable[[PrefixKV], Continuation]
    ) -> tuple[Held, str] | None:
        """Return the KV of `key` and the tier that held it; it is in use until `release`.

        `continued` creates the continuation of a KV.
        """
        with self._lock:
            if held := self._on_device.get(key):
                held.users += 1
                self._on_device.move_to_end(key)
                return held, DEVICE
            if key in self._on_host:
                # Removed from the host only once it is on the device: memory may run out on the
                # way.
                kv, cache, devices = self._on_host[key]
                from sttm_cli.prefill import ROOM

                kv = _copied(kv, devices, ROOM)
                return self.add(key, Held(kv, continued(kv), cache)), HOST
            return None

    def has(self, key: str) -> bool:
        """Return whether the KV of `key` is in memory."""
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
        """Give up one use of `held`."""
        with self._lock:
            held.users -= 1
            self._shrink()

    def clear(self) -> None:
        """Drop all KVs; those in use live on with their users."""
        with self._lock:
            self._on_device.clear()
            self._on_host.clear()

    def free_device(self) -> bool:
        """Move unused KVs off the device; return whether any were moved."""
        with self._lock:
            before = len(self._on_device)
            self._shrink(device_bytes=0)
            return len(self._on_device) < before

    def bytes(self) -> dict[str, int]:
        """Return the bytes in each tier."""
        with self._lock:
            return {
                DEVICE: sum(_held_bytes(held) for held in self._on_device.values()),
                HOST: sum(_bytes(kv) for kv, *_ in self._on_host.values()),
            }

    def _shrink(self, device_bytes: int | None = None) -> None:
        bound = self._bounds[DEVICE] if device_bytes is None else device_bytes
        total = self.bytes()[DEVICE]
        for key in [k for k, held in self._on_device.items() if held.users == 0]:
            if total <= bound:
                break
            held = self._on_device.pop(key)
            total -= _held_bytes(held)
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
    """Copy the prefix to new buffers, layer i on `devices[i]`, with `room` free rows."""

    def copy(buffer: torch.Tensor, length: int, device: torch.device | str) -> torch.Tensor:
        new = buffer.new_empty((length + room, *buffer.shape[1:]), device=device)
        new[:length] = buffer[:length]
        return new

    keys, values = (
        [copy(*layer) for layer in zip(side, kv.lengths, devices, strict=True)]
        for side in (kv.keys, kv.values)
    )
    states = {
        index: LayerState(*(t.to(devices[index]) for t in state))
        for index, state in kv.states.items()
    }
    return replace(kv, keys=keys, values=values, states=states)


def _held_bytes(held: Held) -> int:
    """With the states that what continues it has of its own."""
    return _bytes(held.kv) + getattr(held.prefix, "state_bytes", 0)


def _bytes(kv: PrefixKV) -> int:
    return kv.state_bytes + sum(t.numel() * t.element_size() for t in kv.keys + kv.values)


Loading = Callable[[], AbstractContextManager[object]]


class ModelHost:
    """Loads a model at its first use and keeps it until another one is requested.

    `facts`: the memo for fingerprints of checkpoints; `on_unload` is called before a model is
    released. Thread-safe.
    """

    def __init__(self, facts: FileFacts, *, on_unload: Callable[[], None] = lambda: None) -> None:
        self._facts, self._on_unload = facts, on_unload
        self._lock = threading.RLock()
        self._model: VideoLLM | None = None
        self._plan: ModelPlan | None = None
        self._sees = False

    @classmethod
    def holding(cls, plan: ModelPlan, model: VideoLLM, facts: FileFacts) -> ModelHost:
        """Return a host of a model that was loaded elsewhere."""
        host = cls(facts)
        host._model, host._plan, host._sees = model, plan, True
        return host

    def has(self, plan: ModelPlan, *, vision: bool) -> bool:
        """Return whether this exact model is loaded: a checkpoint's files may have changed."""
        return self._held(plan, vision) is not None

    def get(self, plan: ModelPlan, *, vision: bool, loading: Loading = nullcontext) -> VideoLLM:
        """Return the loaded model; without `vision`, its encoder may be missing.

        `loading`: a context entered while a model is loaded. Raises ModelError or OutOfMemoryError.
        """
        with self._lock:
            held = self._held(plan, vision)
            if held is None:
                self.unload()
                with loading():
                    held = self._load(plan, vision)
            return held

    def unload(self) -> None:
        """Release the model; current users keep it until they are done."""
        with self._lock:
            if self._model is not None:
                self._on_unload()
            self._model = self._plan = None

    def _held(self, plan: ModelPlan, vision: bool) -> VideoLLM | None:
        if self._plan is None or (vision and not self._sees):
            return None
        same = self._plan is plan or self._plan.loaded_as == plan.loaded_as
        return self._model if same else None

    def _load(self, plan: ModelPlan, vision: bool) -> VideoLLM:
        model = load(plan.checkpoint, plan.placement(vision=vision), frozenset(plan.options))
        # The identity must describe the files that were actually read.
        check_unchanged(plan.checkpoint, self._facts)
        self._model, self._plan, self._sees = model, plan, vision
        return model


class Resources:
    """A store, a model host and a KV memory, which several sessions may share.

    `device_bytes`, `host_bytes`: bounds of the device and host memory for KVs that no session is
    using. `host`: one that already has a model.
    """

    def __init__(
        self,
        store: Store,
        *,
        device_bytes: int = 0,
        host_bytes: int = 0,
        host: ModelHost | None = None,
    ) -> None:
        self.store = store
        self.memory = KVMemory(device_bytes=device_bytes, host_bytes=host_bytes)
        self.host = host or ModelHost(store, on_unload=self.memory.clear)

    def close(self) -> None:
        """Release the model and the KVs, and close the store."""
        self.host.unload()
        self.memory.clear()
        self.store.close()
