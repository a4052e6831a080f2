"""Questions about videos: each video's KV is held, restored or computed, then asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sttm_cli import __version__
from sttm_cli.base.clock import Clock
from sttm_cli.base.device import memory_told
from sttm_cli.base.errors import OutOfMemoryError, UsageError, VideoError
from sttm_cli.base.results import Answer, CacheUse, Choice
from sttm_cli.base.types import Frames, Json, OnToken, PrefixKV, Progress, Sampling
from sttm_cli.decode import digest
from sttm_cli.models.placement import check_room
from sttm_cli.prefill import ROOM, KVContinuation
from sttm_cli.runtime.answering import Asked, answer, choose
from sttm_cli.runtime.compute import Stages
from sttm_cli.runtime.kv_checks import fits
from sttm_cli.runtime.kv_memory import DEVICE, DISK, Held
from sttm_cli.runtime.model_host import Resident
from sttm_cli.runtime.prepared import Prepared, seconds_to_prefix
from sttm_cli.runtime.request import Request, kv_bytes
from sttm_cli.settings.settings import Settings, check_question
from sttm_cli.store import pack

if TYPE_CHECKING:
    from sttm_cli.base.types import Continuation
    from sttm_cli.decode import Source

NARROW = 0.1
"""A checkpoint's own top-p below this leaves a temperature next to nothing to act on."""


class VideoQA(Stages):
    """Asks questions about videos: decodes, merges and prefills each one once.

    >>> with VideoQA(model="tiny", budget=0.3) as qa:  # doctest: +SKIP
    ...     qa.ask("video.mp4", "what happens?").text

    Takes the fields of `config.Settings`; `warn` gets what a user should know, a line each.
    `resident`: a loaded model that outlives this object; of its own without one. Raises the
    errors of `errors.py`.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        warn: Callable[[str], None] | None = None,
        progress: Progress | None = None,
        resident: Resident | None = None,
        **fields: Any,
    ) -> None:
        if settings is not None and fields:
            raise UsageError(
                f"settings and {', '.join(fields)} cannot hold together", "give one of them"
            )
        settings = settings or Settings(**fields)
        super().__init__(settings, warn=warn, progress=progress, resident=resident)
        self._held: tuple[str, Held] | None = None
        self._said_fewer = False

    def __enter__(self) -> VideoQA:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the video and its copy, and of the model and the cache unless they are
        another's."""
        self._let_go()
        super().close()

    def ask(
        self,
        video: str | Path,
        question: str,
        *,
        history: Sequence[tuple[str, str]] = (),
        on_text: Callable[[str], None] | None = None,
    ) -> Answer:
        """Answer one question; the video is prepared first unless it already is.

        `history`: earlier questions and answers of the same conversation.
        """
        return self.answer(self.prepare(video), question, history=history, on_text=on_text)

    def prepare(self, video: str | Path | Source) -> Prepared:
        """Restore the video's prefilled KV, or compute and store it."""
        clock = Clock()
        self._warned.clear()
        request = self.request(video)
        self.say_fewer(request)
        known = self._held is not None and self._held[0] == request.key
        held, cache = self._in_memory(request, clock) or self._anew(request, clock)
        if not known:
            for warning in held.kv.facts["decode"]["warnings"]:
                self.warn(warning)
        seconds = clock.total() - clock.spent("load_model")
        return Prepared(request, held.kv, cache, clock, held.prefix, seconds)

    def answer(
        self,
        prepared: Prepared,
        question: str,
        *,
        history: Sequence[tuple[str, str]] = (),
        sampling: Sampling | None = None,
        max_new_tokens: int | None = None,
        on_text: Callable[[str], None] | None = None,
        on_token: OnToken | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Answer:
        """Answer one question about a prepared video.

        `sampling` and `max_new_tokens`: for this answer, instead of the settings'. `on_token`
        gets each token of the answer and the logits [V] that it was chosen from. `stop` is
        asked before each token and ends the answer; an exception from `on_text` does so too and
        is passed on. Raises UsageError where the question does not fit the model's context.
        """
        model = self.model(vision=False)
        sampling = self.settings.sampling if sampling is None else sampling
        if sampling.temperature and not sampling.top_p and model.top_p < NARROW:
            self.warn(f"the model's own top-p of {model.top_p} draws the likeliest tokens only")
        with memory_told():
            return answer(
                prepared,
                model,
                Asked(question, history),
                max_new_tokens=max_new_tokens or self.settings.max_new_tokens,
                sampling=sampling,
                on_text=on_text,
                on_token=on_token,
                stop=stop,
            )

    def check(self, questions: Sequence[str]) -> None:
        """Raise UsageError for a question that this model cannot be asked."""
        for question in questions:
            check_question(question)
            self.model(vision=False).question(question)

    def choose(
        self,
        prepared: Prepared,
        question: str,
        options: Sequence[str],
        *,
        history: Sequence[tuple[str, str]] = (),
    ) -> Choice:
        """The likeliest of `options` as the answer to a question about a prepared video.

        Raises UsageError as `answer`, and for fewer than two options or equal ones.
        """
        with memory_told():
            return choose(prepared, self.model(vision=False), Asked(question, history), options)

    def compute(
        self, request: Request, clock: Clock, frames: Frames
    ) -> tuple[PrefixKV, CacheUse] | None:
        """Compute a video's KV and store it; None where another process has just done so."""
        self._warned.clear()
        self.say_fewer(request)
        with self.store.computing(request.key, on_wait=self._say_waiting):
            if not self.settings.refresh and self.store.stored(request.identity) is not None:
                return None
            return self._compute(request, clock, miss_reason="nothing stored", frames=frames)

    def _in_memory(self, request: Request, clock: Clock) -> tuple[Held, CacheUse] | None:
        started = clock.total()
        found = self._taken(request.key)
        if found is None:
            return None
        held, tier = found
        if tier != DEVICE:
            clock.add("restore", clock.total() - started)
        self._hold(request.key, held)
        prefix = held.kv.tokens.prefix
        return held, replace(
            held.cache,
            hit=True,
            tier=tier,
            restored_tokens=prefix,
            prefilled_tokens=0,
            miss_reason=None,
        )

    def _taken(self, key: str) -> tuple[Held, str] | None:
        """What memory holds of `key`; None also where the device has no room for it."""
        tiers = self._resident.tiers
        for _ in range(2):
            try:
                with memory_told():
                    return tiers.take(key, self._continued)
            except OutOfMemoryError:
                self._let_go()
                if not tiers.free_device():
                    break
        return None

    def _anew(self, request: Request, clock: Clock) -> tuple[Held, CacheUse]:
        # What was held makes room first.
        self._let_go()
        try:
            kv, cache = self._kv(request, clock)
        except OutOfMemoryError:
            if not self._resident.tiers.free_device():
                raise
            kv, cache = self._kv(request, clock)
        self.model(clock, vision=False)
        held = Held(kv, self._continued(kv), cache)
        self._hold(request.key, self._resident.tiers.add(request.key, held))
        return held, cache

    def _continued(self, kv: PrefixKV) -> Continuation:
        return KVContinuation(self.model(vision=False), kv)

    def _hold(self, key: str, held: Held) -> None:
        self._let_go()
        self._held = key, held

    def _let_go(self) -> None:
        if self._held is not None:
            self._resident.tiers.release(self._held[1])
            self._held = None

    def _kv(self, request: Request, clock: Clock) -> tuple[PrefixKV, CacheUse]:
        # The store may be shared: what it says now is about this video.
        with self.store.telling(self.warn):
            found = self._restore(request, clock)
            if isinstance(found, str):
                with self.store.computing(request.key, on_wait=self._say_waiting):
                    # Another process may have stored it while this one waited.
                    found = self._restore(request, clock)
                    if isinstance(found, str):
                        found = self._compute(request, clock, miss_reason=found)
            return found

    def _restore(self, request: Request, clock: Clock) -> tuple[PrefixKV, CacheUse] | str:
        """The stored KV, or why there is none to use."""
        if self.settings.refresh:
            return "made anew, as --refresh asks"
        with self.store.find(request.identity) as lookup:
            if lookup.entry is None:
                return lookup.miss_reason
            # The vision encoder is not needed to continue from a stored KV.
            entry, model = lookup.entry, self.model(clock, vision=False)
            with clock.stage("restore"), memory_told():
                kv = self.store.load(lookup, device=model.layer_devices, room=ROOM)
        if kv is None or not fits(kv, model.decoder.config, self.choice):
            self.warn(f"stored entry {entry.key[:12]} cannot be used; computing it anew")
            return "the stored entry is damaged"
        sooner = seconds_to_prefix(kv) - clock.spent("restore")
        self.store.count_use(entry, saved_s=sooner)
        prefix, saved = kv.tokens.prefix, entry.saved_bytes
        return kv, CacheUse(True, entry.key, entry.bytes, prefix, 0, None, DISK, saved)

    def _compute(
        self, request: Request, clock: Clock, *, miss_reason: str, frames: Frames | None = None
    ) -> tuple[PrefixKV, CacheUse]:
        self._check_room(request)
        tokens, report = self.visual_tokens(request, clock, frames)
        kv = self.prefill(tokens, clock, budget=self.settings.budget)
        with clock.stage("prefill"), memory_told():
            # Rounds the KV to what a later process will restore: both give the same answer.
            packed = pack(kv, self.settings.kv_dtype)
        kv.facts |= {
            "sttm_version": __version__,
            "decode": report.to_json(),
            "seconds": clock.seconds(),
        }
        if frames is None:
            # Of frames that were read ahead of time nobody waited so long.
            kv.facts["waited_s"] = clock.total() - clock.spent("load_model")
        # Digested before it was decoded: a file replaced meanwhile must not lend its frames.
        if digest(request.path, self.memo(request.source)) != request.digest:
            raise VideoError(
                f"{request.source.name} changed while it was read", "ask again once it is whole"
            )
        # What another reader than the identity's gave is not kept.
        label = self._label(request)
        entry = None if report.fallback else self.store.save(request.identity, packed, label=label)
        size, saved = (entry.bytes, entry.saved_bytes) if entry else (0, 0)
        prefix = kv.tokens.prefix
        return kv, CacheUse(False, request.key, size, 0, prefix, miss_reason, None, saved)

    def _check_room(self, request: Request) -> None:
        choice = self.choice
        if not self._resident.has(choice, vision=True):
            size = kv_bytes(request.plan, choice, self.settings.budget, dtype=choice.dtype)
            check_room(choice.source, choice.placement(), size or 0)

    def _label(self, request: Request) -> Json:
        return {
            "video": request.source.origin,
            "model": self.settings.model,
            "budget": self.settings.budget,
            "duration_s": request.info.duration_s,
        }

    def say_fewer(self, request: Request) -> None:
        """Say, once, that a rate which was asked for does not hold."""
        times, fps, frames = request.plan.times_s, self.settings.fps, self.settings.frames
        bounded = fps and not frames and len(times) > 1 and times[1] - times[0] > 1.01 / fps
        if bounded and not self._said_fewer:
            self._said_fewer = True
            self._warn(
                f"--fps {fps:g} gives more than the {len(times)} frames that this model takes by "
                f"default: they are {times[1] - times[0]:.2f} s apart; --frames allows more"
            )

    def _say_waiting(self) -> None:
        self.warn("another process is preparing this video; waiting for it")
