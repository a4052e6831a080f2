"""The stages one by one: video file -> frames -> visual tokens -> merged tokens -> prefilled KV."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sttm_cli.base.clock import Clock
from sttm_cli.base.device import memory_told, wait_for
from sttm_cli.base.filefacts import Memo
from sttm_cli.base.types import DecodeReport, FrameChunk, Frames, PrefixKV, Progress, VisualTokens
from sttm_cli.decode import Source, Sources, read_frames
from sttm_cli.merge import MergedTokens, merge_tokens
from sttm_cli.prefill import Merging, prefill
from sttm_cli.runtime.model_host import Resident
from sttm_cli.runtime.request import ModelChoice, Request, choose_model, make_request
from sttm_cli.settings.settings import Settings, cache_dir
from sttm_cli.store import NoStore, Store, open_store

if TYPE_CHECKING:
    from sttm_cli.models import VideoLLM

OnChunk = Callable[[FrameChunk], None]


class Stages:
    """What can be done with a video under one choice of settings, a stage at a time.

    `resident`: a loaded model that outlives this object; of its own without one.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        warn: Callable[[str], None] | None = None,
        progress: Progress | None = None,
        resident: Resident | None = None,
    ) -> None:
        self.settings = settings
        self._warn = warn or logging.getLogger("sttm_cli").warning
        self._warned: set[str] = set()
        self._progress = progress or (lambda stage, done, of: None)
        self._owner = resident is None
        self._resident = resident or Resident(self._open_store())
        self._sources = Sources(max_bytes=settings.max_download, progress=self._progress)

    def close(self) -> None:
        """Let go of the video's copy, and of the model and the cache unless they are another's."""
        self._sources.close()
        if self._owner:
            self._resident.close()

    @property
    def store(self) -> Store:
        """The cache."""
        return self._resident.store

    def warn(self, line: str) -> None:
        """Pass a warning on, once per video."""
        if line not in self._warned:
            self._warned.add(line)
            self._warn(line)

    @cached_property
    def choice(self) -> ModelChoice:
        """The model as it will be used; nothing of it is loaded yet."""
        return choose_model(self.settings, self.store, self.warn)

    def request(self, video: str | Path | Source) -> Request:
        """Everything that shapes the video's KV; reads the file's bytes, decodes nothing."""
        source = self._sources.find(video)
        return make_request(source, self.choice, self.settings, self.memo(source))

    def memo(self, source: Source) -> Memo:
        """Where things about a video's bytes are remembered: of a copy they would never be looked
        up again."""
        return NoStore() if source.is_copy else self.store

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
        with clock.stage("encode"), memory_told():
            features = torch.cat([part.features for part in parts])
            deep = tuple(torch.cat(level) for level in zip(*(p.deep for p in parts), strict=True))
            wait_for(features.device)
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
            wait_for(kv.keys[-1].device)
        clock.move("prefill", "merge", kv.facts.pop("merge_seconds"))
        self._progress("prefill", 1, 1)
        return kv

    def _open_store(self) -> Store:
        where = None if self.settings.no_cache else cache_dir(self.settings.cache_dir)
        return open_store(where, max_bytes=self.settings.max_bytes, warn=self.warn)
