"""The stages in order, and the choice between computing a video's KV and restoring it.

video file -> frames -> visual tokens -> merged tokens -> prefilled KV -> answer
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sttm_cli import __version__
from sttm_cli.asking import Asked, answer, choose
from sttm_cli.clock import Clock
from sttm_cli.config import Settings, cache_dir, check_question
from sttm_cli.decode import Sources, digest, read_frames
from sttm_cli.device import memory_told
from sttm_cli.errors import OutOfMemoryError, VideoError
from sttm_cli.fits import fits
from sttm_cli.merge import MergedTokens, merge_tokens
from sttm_cli.models.memory import check_room
from sttm_cli.prefill import ROOM, KVContinuation, Merging, prefill
from sttm_cli.prepared import Prepared, seconds_to_prefix
from sttm_cli.request import ModelChoice, Request, choose_model, kv_bytes, make_request
from sttm_cli.resident import Resident
from sttm_cli.results import Answer, CacheUse, Choice
from sttm_cli.store import NoStore, Store, pack
from sttm_cli.tiers import DEVICE, DISK, Held
from sttm_cli.types import DecodeReport, FrameChunk, Frames, Json, PrefixKV, Sampling, VisualTokens

if TYPE_CHECKING:
    from sttm_cli.models import VideoLLM
    from sttm_cli.types import Continuation

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, how much of it is done, and how much there is (0: unknown)."""
OnChunk = Callable[[FrameChunk], None]

NARROW = 0.1
"""A checkpoint's own top-p below this leaves a temperature next to nothing to act on."""


class VideoQA:
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
        self.settings = settings or Settings(**fields)
        self._warn = warn or logging.getLogger("sttm_cli").warning
        self._warned: set[str] = set()
        self._progress = progress or (lambda stage, done, of: None)
        self._owner = resident is None
        self._resident = resident or Resident(self._open_store())
        self._held: tuple[str, Held] | None = None
        self._sources = Sources(max_bytes=self.settings.max_download, progress=self._progress)

    def __enter__(self) -> VideoQA:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the video and its copy, and of the model and the cache unless they are
        another's."""
        self._let_go()
        self._sources.close()
        if self._owner:
            self._resident.close()

    @property
    def store(self) -> Store | NoStore:
        """The cache on disk."""
        return self._resident.store

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

    def prepare(self, video: str | Path) -> Prepared:
        """Restore the video's prefilled KV, or compute and store it."""
        clock = Clock()
        self._warned.clear()
        request = self.request(video)
        known = self._held is not None and self._held[0] == request.key
        held, cache = self._in_memory(request, clock) or self._anew(request, clock)
        if not known:
            for warning in held.kv.facts["decode"]["warnings"]:
                self.warn(warning)
        return Prepared(request, held.kv, cache, clock, held.prefix)

    def answer(
        self,
        prepared: Prepared,
        question: str,
        *,
        history: Sequence[tuple[str, str]] = (),
        sampling: Sampling | None = None,
        max_new_tokens: int | None = None,
        on_text: Callable[[str], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Answer:
        """Answer one question about a prepared video.

        `sampling` and `max_new_tokens`: for this answer, instead of the settings'. `stop` is
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
        with self.store.computing(request.key, on_wait=self._say_waiting):
            stored = self.store.find(request.identity).entry is not None
            if stored and not self.settings.refresh:
                return None
            return self._compute(request, clock, miss_reason="nothing stored", frames=frames)

    def warn(self, line: str) -> None:
        """Pass a warning on, once per video."""
        if line not in self._warned:
            self._warned.add(line)
            self._warn(line)

    # The stages in order ------------------------------------------------------------------

    @cached_property
    def choice(self) -> ModelChoice:
        """The model as it will be used; nothing of it is loaded yet."""
        return choose_model(self.settings, self.store, self.warn)

    def request(self, video: str | Path) -> Request:
        """Everything that shapes the video's KV; reads the file's bytes, decodes nothing."""
        source = self._sources.find(video)
        # What is remembered of a copy would never be looked up again.
        memo = NoStore() if source.is_copy else self.store
        return make_request(source, self.choice, self.settings, memo)

    def model(self, clock: Clock | None = None, *, vision: bool = True) -> VideoLLM:
        """The model, loaded at its first use; without `vision` it need not be able to encode."""
        if not self._resident.has(self.choice, vision=vision):
            self._progress("load", 0, 1)
            with (clock or Clock()).stage("load_model"):
                self._resident.model(self.choice, vision=vision)
            self._progress("load", 1, 1)
        return self._resident.model(self.choice, vision=vision)

    def frames(self, request: Request, clock: Clock) -> Frames:
        """The video's frames, read as their chunks are asked for; needs no model."""
        report = DecodeReport()
        chunks = read_frames(
            request.path,
            request.plan,
            report=report,
            multiple=self.choice.family.multiple,
            fallback=self.settings.decoder == "auto",
        )
        return Frames(clock.each("decode", chunks), report)

    def visual_tokens(
        self,
        request: Request,
        clock: Clock,
        frames: Frames | None = None,
        on_chunk: OnChunk = lambda chunk: None,
    ) -> tuple[VisualTokens, DecodeReport]:
        """Decode and encode chunk by chunk: frames are never held beyond one chunk, which
        `on_chunk` is shown."""
        model = self.model(clock)
        chunks, report = frames or self.frames(request, clock)
        done, parts = 0, []
        with request.source.told_by_name():
            for chunk in chunks:
                with clock.stage("encode"), memory_told():
                    parts.append(model.encode(chunk, len(request.plan.times_s)))
                on_chunk(chunk)
                done += len(chunk.times_s)
                self._progress("decode", done, len(request.plan.times_s))
        features = torch.cat([part.features for part in parts])
        deep = tuple(torch.cat(level) for level in zip(*(p.deep for p in parts), strict=True))
        times = tuple(report.times_s)
        return VisualTokens(features, deep, times, request.info.duration_s), report

    def prefill(
        self,
        tokens: VisualTokens,
        clock: Clock,
        *,
        budget: float | int,
        on_merged: Callable[[MergedTokens], None] | None = None,
    ) -> PrefixKV:
        """Visual tokens through the decoder, merged to the budget on the way."""

        def merge(grid: torch.Tensor) -> MergedTokens:
            merged = merge_tokens(grid, budget=budget)
            if on_merged is not None:
                on_merged(merged)
            return merged

        model, choice = self.model(clock), self.choice
        merging = Merging(choice.merge_layer, merge, choice.positions)
        self._progress("prefill", 0, 1)
        with clock.stage("prefill"), memory_told():
            prompt = model.prompt(tokens)
            embeds = model.embed_prompt(prompt, tokens)
            kv = prefill(model.decoder, prompt, embeds, merging, deep=tokens.deep)
        clock.move("prefill", "merge", kv.facts.pop("merge_seconds"))
        self._progress("prefill", 1, 1)
        return kv

    # Cold or cached -----------------------------------------------------------------------

    def _in_memory(self, request: Request, clock: Clock) -> tuple[Held, CacheUse] | None:
        started = clock.total()
        with memory_told():
            found = self._resident.tiers.take(request.key, self._continued)
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
        lookup = self.store.find(request.identity)
        if lookup.entry is None:
            return lookup.miss_reason or "nothing stored"
        # What is not needed to go on from a stored KV is not loaded.
        entry, model = lookup.entry, self.model(clock, vision=False)
        with clock.stage("restore"), memory_told():
            kv = self.store.load(entry, device=model.layer_devices, room=ROOM)
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
        # Digested before it was decoded: a file replaced meanwhile must not lend its frames.
        if digest(request.path, self.store) != request.digest:
            raise VideoError(
                f"{request.source.name} changed while it was read", "ask again once it is whole"
            )
        entry = self.store.save(request.identity, packed, label=self._label(request))
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

    def _open_store(self) -> Store | NoStore:
        if self.settings.no_cache:
            return NoStore()
        folder = cache_dir(self.settings.cache_dir)
        return Store(folder, max_bytes=self.settings.max_bytes, warn=self.warn)

    def _say_waiting(self) -> None:
        self.warn("another process is preparing this video; waiting for it")
