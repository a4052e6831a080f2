"""Questions on the model's thread: those that wait for one video at the same time run together."""

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
"""Answers one question about a prepared video, with the prefix that it is given."""


def together(plan: ModelPlan, asked: int | None) -> int:
    """How many questions about one video may be decoded together.

    In half precision a token that is all but as likely as another may lose to it in company:
    there, none are unless asked for. Raises UsageError where the attention cannot.
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
    """Runs questions on `thread` in the order in which they came; when one's turn comes, up to
    `most` that wait for the same KV run with it."""

    def __init__(
        self, thread: ThreadPoolExecutor, most: int, on_batch: Callable[[int], None]
    ) -> None:
        self._thread, self._most, self._on_batch = thread, most, on_batch
        self._waiting: dict[int, list[_Waiting]] = {}
        self._lock = threading.Lock()
        # One thread per question; the decoder runs in whichever completes a step.
        self._parts = ThreadPoolExecutor(most, thread_name_prefix="question")

    def submit(self, prepared: Prepared, work: Work, *, alone: bool = False) -> Future[Any]:
        """What `work` will return or raise; `alone`: it needs the prefix for itself."""
        waiting = _Waiting(prepared, work)
        key = id(waiting) if alone else id(prepared.kv)
        with self._lock:
            self._waiting.setdefault(key, []).append(waiting)
        self._thread.submit(self._next, key)
        return waiting.done

    def close(self) -> None:
        """Let go of the threads; called once nothing runs."""
        self._parts.shutdown()

    def _next(self, key: int) -> None:
        with self._lock:
            waiting = self._waiting.pop(key, [])
            batch, rest = waiting[: self._most], waiting[self._most :]
            if rest:
                self._waiting[key] = rest
        if not batch:
            # They ran with one that came before them.
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
