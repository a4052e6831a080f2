"""The stages in their order, with one model: frames -> visual tokens -> merged -> prefilled KV."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch

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
from sttm_cli.prefill import Merging, prefill
from sttm_cli.runtime.request import ModelPlan, Request, version_to_read
from sttm_cli.runtime.resources import ModelHost

if TYPE_CHECKING:
    from sttm_cli.models.family import VideoLLM

OnChunk = Callable[[FrameChunk], None]
Merge = Callable[[torch.Tensor], Merged]
"""Features [T, H, W, C] -> the tokens that are left."""


class Compute:
    """Computes videos' KVs with the model of `plan`, a stage at a time.

    `host` loads the model. `decoder_thread`: one on which alone the text decoder may run, for a
    server in which several videos are computed at once; here without one.
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
        """The model, loaded at its first use; without `vision` it need not be able to encode."""
        loading = partial(self._loading, clock or Clock())
        model = self._host.get(self.plan, vision=vision, loading=loading)
        # The loaded model is shared with sessions that have another system prompt.
        return model.with_system(self.plan.system) if self.plan.system else model

    def frames(self, request: Request, clock: Clock) -> Frames:
        """The video's frames, read as their chunks are asked for; needs no model."""
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
        """Decode and encode chunk by chunk: frames are never held beyond one chunk, which
        `on_chunk` is shown."""
        model = self.model(clock)
        chunks, report = frames or self.frames(request, clock)
        planned, done, parts = len(request.plan.times_s), 0, []
        with request.source.naming_it():
            for chunk in chunks:
                with clock.stage("encode"), reporting_memory():
                    parts.append(model.encode(chunk, planned))
                on_chunk(chunk)
                done += len(chunk.times_s)
                self._progress("decode", done, planned)
        with clock.stage("encode"), reporting_memory():
            features = torch.cat([part.features for part in parts])
            deep = tuple(torch.cat(level) for level in zip(*(p.deep for p in parts), strict=True))
            wait_for(features.device)
        self._check_numbers(features)
        times, duration = tuple(report.times_s), request.info.duration_s
        return VisualTokens(
            features=features, deep=deep, times_s=times, duration_s=duration
        ), report

    def prefill(
        self,
        tokens: VisualTokens,
        clock: Clock,
        *,
        budget: float | int,
        merge: Merge | None = None,
        layer: int | None = None,
        sizes: bool | None = None,
    ) -> PrefixKV:
        """Visual tokens through the decoder, merged to the budget on the way.

        `merge` in place of the method, `layer` and `sizes` in place of the plan's.
        """
        chosen = merge or (lambda features: self.plan.method.merge(features, budget))

        def checked(features: torch.Tensor) -> Merged:
            self._check_numbers(features)
            return chosen(features)

        where = self.plan.merge_layer if layer is None else layer
        count = self.plan.attention_sizes if sizes is None else sizes
        merging = Merging(where, checked, self.plan.positions, count)
        if self._decoder_thread is None:
            return self._prefill(tokens, clock, merging)
        return self._decoder_thread.submit(self._prefill, tokens, clock, merging).result()

    def _prefill(self, tokens: VisualTokens, clock: Clock, merging: Merging) -> PrefixKV:
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
