"""The stages of one computation: frames -> visual tokens -> merged tokens -> prefilled KV."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from blake3 import blake3

from sttm_cli.base.device import reporting_memory, wait_for
from sttm_cli.base.errors import ModelError
from sttm_cli.base.results import Clock
from sttm_cli.base.types import (
    DecodeReport,
    FrameChunk,
    Frames,
    Merged,
    PrefixKV,
    Progress,
    VisualTokens,
)
from sttm_cli.decode import read_frames
from sttm_cli.prefill import MergeConfig, prefill
from sttm_cli.runtime.model_plan import ModelPlan
from sttm_cli.runtime.request import Request, version_to_read
from sttm_cli.runtime.resources import ModelHost

if TYPE_CHECKING:
    from sttm_cli.models.family import VideoLLM

OnChunk = Callable[[FrameChunk], None]
MergeFunction = Callable[[torch.Tensor], Merged]
"""Features [T, H, W, C] -> the remaining tokens."""


class Compute:
    """Computes videos' KVs with the model of `plan`, stage by stage.

    `host` loads the model. `decoder_thread`: the only thread on which the text decoder may run, for
    a server that computes several videos at once; without it, the calling thread.
    """

    def __init__(
        self,
        plan: ModelPlan,
        host: ModelHost,
        *,
        progress: Progress,
        decoder_thread: Executor | None = None,
    ) -> None:
        self.plan, self._host = plan, host
        self._progress, self._decoder_thread = progress, decoder_thread

    def model(self, clock: Clock | None = None, *, vision: bool = True) -> VideoLLM:
        """Return the model, loaded at its first use; without `vision`, maybe without its
        encoder."""
        loading = partial(self._loading, clock or Clock())
        model = self._host.get(self.plan, vision=vision, loading=loading)
        # The loaded model is shared with sessions that have another system prompt.
        return model.with_system(self.plan.system) if self.plan.system else model

    def frames(self, request: Request, clock: Clock) -> Frames:
        """Return the video's frames, read as their chunks are consumed; needs no model."""
        report = DecodeReport()
        return Frames(clock.each("decode", self._chunks(request, report)), report)

    def _chunks(self, request: Request, report: DecodeReport) -> Iterator[FrameChunk]:
        yield from read_frames(
            request.path,
            request.plan,
            report=report,
            version=version_to_read(request),
            multiple=self.plan.family.multiple,
        )

    def visual_tokens(
        self,
        request: Request,
        clock: Clock,
        frames: Frames | None = None,
        on_chunk: OnChunk = lambda chunk: None,
    ) -> tuple[VisualTokens, DecodeReport]:
        """Decode and encode chunk by chunk, with at most one chunk of frames in memory; each is
        passed to `on_chunk`."""
        chunks, report = frames or self.frames(request, clock)
        planned, done = len(request.plan.times_s), 0
        encoder = _Encoder(self.model(clock), planned, self.plan.family.multiple)
        with request.source.naming_it():
            for chunk in chunks:
                with clock.stage("encode"), reporting_memory():
                    encoder.add(chunk)
                on_chunk(chunk)
                done += len(chunk.times_s)
                self._progress("decode", done, planned)
        with clock.stage("encode"), reporting_memory():
            tokens = encoder.tokens()
            wait_for(tokens.features.device)
        self._check_numbers(tokens.features)
        times, duration = tuple(report.times_s), request.info.duration_s
        return replace(tokens, times_s=times, duration_s=duration), report

    def prefill(
        self,
        tokens: VisualTokens,
        clock: Clock,
        *,
        budget: float | int,
        merge: MergeFunction | None = None,
        layer: int | None = None,
        sizes: bool | None = None,
    ) -> PrefixKV:
        """Run visual tokens through the decoder, merged to the budget on the way.

        `merge` replaces the method; `layer` and `sizes` replace the plan's.
        """
        chosen = merge or (lambda features: self.plan.method.merge(features, budget))

        def checked(features: torch.Tensor) -> Merged:
            self._check_numbers(features)
            return chosen(features)

        where = self.plan.merge_layer if layer is None else layer
        count = self.plan.attention_sizes if sizes is None else sizes
        merging = MergeConfig(where, checked, self.plan.positions, count)
        if self._decoder_thread is None:
            return self._prefill(tokens, clock, merging)
        return self._decoder_thread.submit(self._prefill, tokens, clock, merging).result()

    def _prefill(self, tokens: VisualTokens, clock: Clock, merging: MergeConfig) -> PrefixKV:
        model = self.model(clock)
        self._progress("prefill", 0, 1)
        with clock.stage("prefill"), reporting_memory():
            prompt = model.prompt(tokens)
            kv = prefill(
                model.decoder,
                prompt,
                model.embed_prompt(prompt, tokens),
                merging,
                deep=tokens.deep,
                extras=model.extras(prompt.ids),
                merging_stage=partial(clock.stage, "merge", within="prefill"),
            )
            wait_for(kv.keys[-1].device)
        # What is no number in a layer is none in those above it; layers with a window may not hold
        # it any more.
        merged = range(kv.merge_layer, len(kv.lengths))
        last = max(merged, key=lambda index: (kv.lengths[index], index))
        self._check_numbers(kv.keys[last][: kv.lengths[last]])
        for state in kv.states.values():
            self._check_numbers(state.recurrent)
        self._progress("prefill", 1, 1)
        return kv

    def _check_numbers(self, tensor: torch.Tensor) -> None:
        if not bool(tensor.isfinite().all()):
            raise ModelError(
                f"model {self.plan.checkpoint.name!r} computes values that are not numbers in "
                f"{self.plan.dtype}",
                "its weights are damaged, or need another --dtype",
            )

    @contextmanager
    def _loading(self, clock: Clock) -> Iterator[None]:
        self._progress("load", 0, 1)
        with clock.stage("load_model"):
            yield
        self._progress("load", 1, 1)


class _Encoder:
    """Encodes a video of `frames` frames, each distinct grid step once.

    A step is `multiple` frames, which families encode independently of the others. A step whose
    pixels all equal an earlier one's reuses its tokens: slides, screen recordings, duplicated
    frames.
    """

    def __init__(self, model: VideoLLM, frames: int, multiple: int) -> None:
        self._model, self._frames, self._multiple = model, frames, multiple
        self._seen: dict[bytes, int] = {}
        self._order: list[int] = []
        self._parts: list[VisualTokens] = []

    def add(self, chunk: FrameChunk) -> None:
        """Encode the steps of a chunk that differ from all earlier ones."""
        starts = range(0, len(chunk.frames), self._multiple)
        steps = [chunk.frames[start : start + self._multiple] for start in starts]
        new = []
        for step in steps:
            digest = blake3(np.ascontiguousarray(step).data).digest()
            if digest not in self._seen:
                new.append(step)
            self._order.append(self._seen.setdefault(digest, len(self._seen)))
        if len(new) == len(steps):
            self._parts.append(self._model.encode(chunk, self._frames))
        elif new:
            # The encoder ignores times, which are for the prompt.
            chunk = FrameChunk(frames=np.concatenate(new), times_s=())
            self._parts.append(self._model.encode(chunk, self._frames))

    def tokens(self) -> VisualTokens:
        """Return the tokens of all steps in order."""
        levels = zip(*((part.features, *part.deep) for part in self._parts), strict=True)
        features, *deep = (self._arranged(torch.cat(level)) for level in levels)
        return VisualTokens(features=features, deep=tuple(deep))

    def _arranged(self, level: torch.Tensor) -> torch.Tensor:
        repeats = len(self._order) > len(self._seen)
        return level[torch.tensor(self._order, device=level.device)] if repeats else level
