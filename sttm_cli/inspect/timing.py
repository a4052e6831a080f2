"""Measurement of the seconds to restore a KV, and from a question to its first tokens."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sttm_cli.base.device import reporting_memory, wait_for
from sttm_cli.prefill import ROOM, KVContinuation
from sttm_cli.store import PackedKV, Store

if TYPE_CHECKING:
    from sttm_cli.models.family import VideoLLM

QUESTION = "what happens in the video?"
"""The question for measuring the time to the first token; the answer is discarded."""


def restore_seconds(store: Store, packed: PackedKV, model: VideoLLM) -> float | None:
    """Measure restoring a KV that is stored and removed for this purpose.

    Returns None if it could not be stored.
    """
    identity = {"measured": True}
    entry = store.save(identity, packed, label={})
    if entry is None:
        return None
    started = time.perf_counter()
    store.load(store.find(identity), device=model.layer_devices, room=ROOM)
    wait_for(model.layer_devices[-1])
    seconds = time.perf_counter() - started
    store.remove([entry.key])
    return seconds


def token_seconds(
    model: VideoLLM, prefix: KVContinuation, *, new_tokens: int = 0
) -> tuple[float, float]:
    """Measure the seconds to a question's first token, and per token of `new_tokens` more."""
    with reporting_memory():
        started = time.perf_counter()
        token = prefix.extend(model.question(QUESTION)).argmax()[None].cpu()
        first = time.perf_counter()
        for _ in range(new_tokens):
            token = prefix.extend(token).argmax()[None].cpu()
        done = time.perf_counter()
    prefix.rewind()
    return first - started, (done - first) / max(1, new_tokens)
