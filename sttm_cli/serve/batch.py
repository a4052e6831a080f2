"""Run questions on the model's thread; those waiting for the same video run together."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Any

from sttm_cli.base.errors import UsageError
from sttm_cli.prefill import KVContinuation, Together
from sttm_cli.runtime.model_plan import ModelPlan
from sttm_cli.runtime.prepared import Prepared

_MOST = 8
Work = Callable[[Prepared], Any]
"""Answers one question about the prepared video it is called with."""


def together(plan: ModelPlan, asked: int | None) -> int:
    """Return how many questions about one video are decoded together: `asked`, or the default.

    The default in half precision is one: rounding differs within a batch, so one of two almost
    equally likely tokens may be replaced by the other. Raises UsageError if the attention kernel
    cannot batch.
    """
    if plan.attention != "sdpa" and (asked or 1) > 1:
        raise UsageError(
            f"--together {asked} cannot be combined with {plan.attention}", "leave it out"
        )
    exact = plan.dtype == "float32" and plan.attention == "sdpa"
    return asked or (_MOST if exact else 1)


@dataclass(frozen=True)
class _Waiting:
    prepared: Prepared
    work: Work
    done: Future[Any] = field(default_factory=Future)


class Batches:
    """Runs questions on `thread` in order of arrival; up to `most` questions waiting for the same
    KV run together, at the turn of the first."""

    def __init__(
        self, thread: ThreadPoolExecutor, most: int, on_batch: Callable[[int], None]
    ) -> None:
        self._thread, self._most, self._on_batch = thread, most, on_batch
        self._waiting: dict[int, list[_Waiting]] = {}
        self._lock = threading.Lock()
        # One thread per question; the last one to reach a step runs the decoder for all.
        self._parts = ThreadPoolExecutor(most, thread_name_prefix="question")

    def submit(self, prepared: Prepared, work: Work, *, alone: bool = False) -> Future[Any]:
        """Return the future result of `work`; `alone`: shares the prefix with no other question."""
        waiting = _Waiting(prepared, work)
        key = id(waiting) if alone else id(prepared.kv)
        with self._lock:
            self._waiting.setdefault(key, []).append(waiting)
        self._thread.submit(self._next, key)
        return waiting.done

    def close(self) -> None:
        """Release the threads; call once nothing is running."""
        self._parts.shutdown()

    def _next(self, key: int) -> None:
        with self._lock:
            waiting = self._waiting.pop(key, [])
            batch, rest = waiting[: self._most], waiting[self._most :]
            if rest:
                self._waiting[key] = rest
        if not batch:
            # Its questions ran in the batch of an earlier one.
            return
        self._on_batch(len(batch))
        prefix = batch[0].prepared.prefix
        if len(batch) > 1 and isinstance(prefix, KVContinuation):
            parts = Together(prefix, len(batch)).parts
            running = [
                self._parts.submit(_finish, each, part)
                for each, part in zip(batch, parts, strict=True)
            ]
            wait(running)
        else:
            for each in batch:
                _settle(each, each.prepared)


def _finish(waiting: _Waiting, part: Any) -> None:
    try:
        _settle(waiting, replace(waiting.prepared, prefix=part))
    finally:
        part.leave()


def _settle(waiting: _Waiting, prepared: Prepared) -> None:
    if not waiting.done.set_running_or_notify_cancel():
        return
    try:
        waiting.done.set_result(waiting.work(prepared))
    except BaseException as error:
        waiting.done.set_exception(error)
