"""vLLM's processors of prompts, with as many placeholders as merged tokens."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vllm.model_executor.models.llava_onevision import LlavaOnevisionMultiModalProcessor
from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLMultiModalProcessor
from vllm.model_executor.models.qwen3_vl import Qwen3VLMultiModalProcessor
from vllm.multimodal.processing.processor import PromptUpdateDetails

from sttm_cli.vllm.merger import Grid, Merger, merger_of
from sttm_cli.vllm.places import resized

if TYPE_CHECKING:
    from vllm.multimodal.processing.processor import PromptReplacement

Count = Callable[[int, list[int]], list[int]]

# A mixin's base is the rest of the class, which vLLM defines.
_Rest: Any = object


class _Merging(_Rest):
    """Shortens the placeholders of videos, and makes the merge part of what a cached KV is for."""

    @property
    def _merger(self) -> Merger | None:
        return merger_of(self.info.ctx.get_mm_config().get_video_pruning_spec())

    def _get_mm_hashes(self, inputs: Any) -> Any:
        hashes = super()._get_mm_hashes(inputs)
        merger = self._merger
        if merger is not None and "video" in hashes:
            # A tier outlives the server, and the next one may have another budget.
            hashes["video"] = [_joined(merger.identity, each) for each in hashes["video"]]
        return hashes

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        updates = super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)
        merger = self._merger
        if merger is None:
            return list(updates)

        def shorten(item: int, ids: list[int]) -> list[int]:
            return self._shortened(ids, merger, mm_items, out_mm_kwargs, item)

        return [_changed(u, shorten) if u.modality == "video" else u for u in updates]

    def _shortened(
        self, ids: list[int], merger: Merger, mm_items: Any, out_mm_kwargs: Any, item: int
    ) -> list[int]:
        raise NotImplementedError


def _joined(*parts: str) -> str:
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=32).hexdigest()


def _changed(update: PromptReplacement, shorten: Count) -> PromptReplacement:
    """The same replacement with fewer placeholders."""

    def replacement(item: int) -> PromptUpdateDetails:
        content = update.content(item) if callable(update.content) else update.content
        if isinstance(content, PromptUpdateDetails):
            return replace(content, full=shorten(item, content.full))
        return PromptUpdateDetails.from_seq(shorten(item, content))

    return replace(update, replacement=replacement)


class _QwenMerging(_Merging):
    def _shortened(
        self, ids: list[int], merger: Merger, mm_items: Any, out_mm_kwargs: Any, item: int
    ) -> list[int]:
        steps, height, width = out_mm_kwargs["video"][item]["video_grid_thw"].data.tolist()
        config = self.info.get_hf_config()
        side = config.vision_config.spatial_merge_size
        grid: Grid = (steps, height // side, width // side)
        return resized(ids, config.video_token_id, merger.count(grid))


class Qwen25VLProcessor(_QwenMerging, Qwen2_5_VLMultiModalProcessor):
    """Of Qwen2.5-VL."""


class Qwen3VLProcessor(_QwenMerging, Qwen3VLMultiModalProcessor):
    """Of Qwen3-VL and Qwen3.5, dense or with experts."""


class LlavaOnevisionProcessor(_Merging, LlavaOnevisionMultiModalProcessor):
    """Of LLaVA-OneVision, whose last placeholder is a newline's."""

    def _shortened(
        self, ids: list[int], merger: Merger, mm_items: Any, out_mm_kwargs: Any, item: int
    ) -> list[int]:
        steps = len(out_mm_kwargs["video"][item]["pixel_values_videos"].data)
        side = math.isqrt((len(ids) - 1) // steps)
        return ids[: merger.count((steps, side, side)) + 1]
