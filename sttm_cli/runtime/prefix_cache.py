"""A video's prefilled prefix: from memory, from the store, or computed and stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeGuard

import torch

from sttm_cli import __version__
from sttm_cli.base.device import reporting_memory
from sttm_cli.base.errors import OutOfMemoryError
from sttm_cli.base.results import CacheUse, Clock
from sttm_cli.base.types import Continuation, Frames, Json, PrefixKV
from sttm_cli.models.loading import check_room
from sttm_cli.prefill import ROOM, KVContinuation, Layout, kv_shapes, layout_of
from sttm_cli.runtime.compute import Compute
from sttm_cli.runtime.prepared import seconds_to_prefix
from sttm_cli.runtime.request import Request, check_unchanged, facts_for, kv_bytes
from sttm_cli.runtime.resources import DEVICE, DISK, Held, Resources
from sttm_cli.settings.settings import Settings
from sttm_cli.store import pack

if TYPE_CHECKING:
    from sttm_cli.runtime.model_plan import ModelPlan

# Validation of a restored KV against the shape that this model would produce.


FARTHEST = 1 << 24
"""Beyond this, neighbouring positions have equal angles in float32."""


def fits(kv: PrefixKV, config: Any, plan: ModelPlan) -> bool:
    """Whether a KV has the model's shape and its record the facts that are read later: a file
    may have all its checksums and still not be made by this program."""
    return (
        _is_shaped(kv, config, plan.dtype)
        and _has_its_states(kv, config, plan)
        and _is_merged(kv, plan.merge_layer, layout_of(config))
        and _is_placed(kv, plan.family.rotary_axes)
        and _is_counted(kv, plan)
        and _has_its_record(kv, config.vocab_size)
    )


def _is_shaped(kv: PrefixKV, config: Any, dtype: str) -> bool:
    wanted = kv_shapes(config)
    tensors = kv.keys + kv.values
    typed = all(str(t.dtype) == f"torch.{dtype}" for t in tensors)
    return typed and [tuple(t.shape[1:]) for t in tensors] == wanted * 2


def _has_its_states(kv: PrefixKV, config: Any, plan: ModelPlan) -> bool:
    """Recurrent layers have states of the model's shapes, all of them numbers: one that is none
    would spoil every token that follows."""
    recurrent = plan.family.recurrent
    if recurrent is None:
        return not kv.states
    shapes = recurrent(config.to_dict())
    return set(kv.states) == set(shapes.layers) and all(
        tuple(state.conv.shape) == shapes.conv
        and str(state.conv.dtype) == f"torch.{plan.dtype}"
        and tuple(state.recurrent.shape) == shapes.recurrent
        and state.recurrent.dtype is torch.float32
        and all(bool(t.isfinite().all()) for t in state)
        for state in kv.states.values()
    )


def _is_merged(kv: PrefixKV, merge_layer: int, layout: Layout) -> bool:
    tokens = kv.tokens
    full = tokens.prefix - tokens.video_kept + tokens.video_full
    wanted = layout.lengths(merge_layer, full, tokens.prefix)
    between = tokens.video_kept if tokens.after_spatial is None else tokens.after_spatial
    kept = 0 < tokens.video_kept <= between <= tokens.video_full
    return kept and kv.merge_layer == merge_layer and tuple(kv.lengths) == wanted


def _is_counted(kv: PrefixKV, plan: ModelPlan) -> bool:
    """Return whether the sizes are those of a method that counts each cell at most once."""
    tokens = kv.tokens
    full = tokens.prefix - tokens.video_kept + tokens.video_full
    return kv.sizes is None or (plan.attention_sizes and int(kv.sizes.sum()) <= full)


def _is_placed(kv: PrefixKV, axes: int) -> bool:
    tokens = kv.tokens
    full = tokens.prefix - tokens.video_kept + tokens.video_full
    below, above = kv.next_positions
    if axes == 1:
        return below == full and above in (full, tokens.prefix)
    return max(below, above) < FARTHEST


def _has_its_record(kv: PrefixKV, vocabulary: int) -> bool:
    decode, seconds = kv.facts.get("decode"), kv.facts.get("seconds")
    if not (isinstance(decode, dict) and isinstance(seconds, dict)):
        return False
    spent, ids = [s for s in seconds.values() if s is not None], kv.facts.get("token_ids")
    return (
        _are(spent, (int, float))
        and _are(decode.get("times_s"), (int, float))
        and _are(decode.get("warnings"), str)
        and _are(ids, int)
        and all(0 <= i < vocabulary for i in ids)
    )


def _are(values: Any, kind: type | tuple[type, ...]) -> TypeGuard[list[Any]]:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


class PrefixCache:
    """Provides the prefixes of videos, one in use at a time, from the fastest source.

    `warn` is called with each message for the user.
    """

    def __init__(
        self,
        settings: Settings,
        resources: Resources,
        compute: Compute,
        *,
        warn: Callable[[str], None],
    ) -> None:
        self._settings, self._compute, self._warn = settings, compute, warn
        self._store, self._memory, self._host = resources.store, resources.memory, resources.host
        self._used: tuple[str, Held] | None = None

    def uses(self, key: str) -> bool:
        """Return whether the prefix in use is that of `key`."""
        return self._used is not None and self._used[0] == key

    def get(self, request: Request, clock: Clock) -> tuple[Held, CacheUse]:
        """Return the video's prefix, in use until the next call or `release`."""
        return self._in_memory(request, clock) or self._restored_or_computed(request, clock)

    def add(
        self, request: Request, clock: Clock, frames: Frames
    ) -> tuple[PrefixKV, CacheUse] | None:
        """Compute and store a video's KV from `frames` decoded elsewhere; None if another process
        has just done so."""
        with self._computing(request.key, clock):
            if not self._settings.refresh and self._store.stored(request.identity) is not None:
                return None
            return self._computed(request, clock, miss_reason="nothing stored", frames=frames)

    def release(self) -> None:
        """Give up the prefix in use."""
        if self._used is not None:
            self._memory.release(self._used[1])
            self._used = None

    # ---- memory

    def _in_memory(self, request: Request, clock: Clock) -> tuple[Held, CacheUse] | None:
        started = clock.total()
        found = self._taken(request.key)
        if found is None:
            return None
        held, tier = found
        if tier != DEVICE:
            clock.add("restore", clock.total() - started)
        self._use(request.key, held)
        return held, replace(
            held.cache,
            hit=True,
            tier=tier,
            restored_tokens=held.kv.tokens.prefix,
            prefilled_tokens=0,
            miss_reason=None,
        )

    def _taken(self, key: str) -> tuple[Held, str] | None:
        """Take `key` from memory; None if it is not there or does not fit on the device."""
        for _ in range(2):
            try:
                with reporting_memory():
                    return self._memory.take(key, self._continued)
            except OutOfMemoryError:
                self.release()
                if not self._memory.free_device():
                    break
        return None

    def _use(self, key: str, held: Held) -> None:
        self.release()
        self._used = key, held

    def _continued(self, kv: PrefixKV) -> Continuation:
        return KVContinuation(self._compute.model(vision=False), kv)

    # ---- the store

    def _restored_or_computed(self, request: Request, clock: Clock) -> tuple[Held, CacheUse]:
        # The prefix in use is released first, to free its memory.
        self.release()
        try:
            kv, cache = self._kv(request, clock)
        except OutOfMemoryError:
            if not self._memory.free_device():
                raise
            kv, cache = self._kv(request, clock)
        held = Held(kv, self._continued(kv), cache)
        self._use(request.key, self._memory.add(request.key, held))
        return held, cache

    def _kv(self, request: Request, clock: Clock) -> tuple[PrefixKV, CacheUse]:
        # The store may be shared; its warnings now concern this video.
        with self._store.telling(self._warn):
            found = self._restored(request, clock)
            if isinstance(found, str):
                with self._computing(request.key, clock):
                    # Another process may have stored it during the wait.
                    found = self._restored(request, clock)
                    if isinstance(found, str):
                        found = self._computed(request, clock, miss_reason=found)
            return found

    def _restored(self, request: Request, clock: Clock) -> tuple[PrefixKV, CacheUse] | str:
        """Return the stored KV, or the reason why it cannot be used."""
        if self._settings.refresh:
            return "recomputed, as --refresh asks"
        with self._store.find(request.identity) as lookup:
            if lookup.entry is None:
                return lookup.miss_reason
            # Continuing from a stored KV does not need the vision encoder.
            entry, model = lookup.entry, self._compute.model(clock, vision=False)
            with clock.stage("restore"), reporting_memory():
                kv = self._store.load(lookup, device=model.layer_devices, room=ROOM)
        if kv is None or not fits(kv, model.decoder.config, self._compute.plan):
            self._warn(f"stored entry {entry.key[:12]} cannot be used; computing it anew")
            return "the stored entry is damaged"
        # Waiting for another process's computation is not time saved.
        sooner = seconds_to_prefix(kv) - clock.spent("restore", "wait")
        self._store.count_use(entry, saved_s=sooner)
        return kv, CacheUse(
            hit=True,
            key=entry.key,
            bytes=entry.bytes,
            restored_tokens=kv.tokens.prefix,
            prefilled_tokens=0,
            miss_reason=None,
            tier=DISK,
            saved_bytes=entry.saved_bytes,
        )

    # ---- computing

    def _computed(
        self, request: Request, clock: Clock, *, miss_reason: str, frames: Frames | None = None
    ) -> tuple[PrefixKV, CacheUse]:
        self._check_room(request)
        tokens, report = self._compute.visual_tokens(request, clock, frames)
        kv = self._compute.prefill(tokens, clock, budget=self._settings.budget)
        with clock.stage("prefill"), reporting_memory():
            # Rounds the KV to the precision that is restored later: both give the same answer.
            packed = pack(kv, self._settings.kv_dtype)
        kv.facts |= {
            "sttm_version": __version__,
            "decode": report.to_json(),
            "seconds": clock.seconds(),
        }
        # If the file was replaced meanwhile, its frames must not be stored.
        check_unchanged(request, facts_for(request.source, self._store))
        label = self._label(request)
        # The fallback reader's result is not stored: the identity names the plan's reader.
        entry = None if report.fallback else self._store.save(request.identity, packed, label=label)
        return kv, CacheUse(
            hit=False,
            key=request.key,
            bytes=entry.bytes if entry else 0,
            restored_tokens=0,
            prefilled_tokens=kv.tokens.prefix,
            miss_reason=miss_reason,
            saved_bytes=entry.saved_bytes if entry else 0,
        )

    def _check_room(self, request: Request) -> None:
        plan = self._compute.plan
        if not self._host.has(plan, vision=True):
            size = kv_bytes(request.plan, plan, self._settings.budget, dtype=plan.dtype)
            check_room(plan.checkpoint, plan.placement(), size or 0)

    def _label(self, request: Request) -> Json:
        # Named as in `bench accuracy`.
        sizes = "+sizes" if self._compute.plan.attention_sizes else ""
        return {
            "video": request.source.origin,
            "model": self._settings.model,
            "budget": self._settings.budget,
            "method": self._settings.method + sizes,
            "duration_s": request.info.duration_s,
            "frames": len(request.plan.times_s),
            "start_s": request.plan.start_s,
            "end_s": request.plan.end_s,
            "merge_layer": self._compute.plan.merge_layer,
            "system": self._settings.system,
        }

    @contextmanager
    def _computing(self, key: str, clock: Clock) -> Iterator[None]:
        """Hold the store's lock on computing `key`; waiting for other processes counts as
        "wait"."""
        since: list[float] = []

        def waits() -> None:
            since.append(clock.total())
            self._warn("another process is preparing this video; waiting for it")

        with self._store.computing(key, on_wait=waits):
            if since:
                clock.add("wait", clock.total() - since[0])
            yield
