"""vLLM's models, merging at the decoder's entrance where `--video-pruning-method` is ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from vllm.model_executor.models import llava_onevision, qwen2_5_vl, qwen3_5, qwen3_vl, qwen3_vl_moe
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import (
    MultiModalFeatureSpec,
    MultiModalFieldConfig,
    MultiModalFieldElem,
    MultiModalKwargsItem,
    PlaceholderRange,
)

from sttm_cli.base.errors import UsageError
from sttm_cli.merge.tokens import Sources
from sttm_cli.vllm.merger import FLAG, Merger, merger_of, pruning_names
from sttm_cli.vllm.places import Medium, marked, marks, placed, unmarked, unmerged
from sttm_cli.vllm.processors import (
    LlavaOnevisionProcessor,
    Qwen3VLProcessor,
    Qwen25VLProcessor,
)

# A mixin's base is the rest of the class, which vLLM defines.
_Rest: Any = object


class _Merging(_Rest):
    """Reads the merger from the configuration; without one, a model is vLLM's own."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        method = vllm_config.model_config.multimodal_config.get_video_pruning_spec()
        self.merger = merger_of(method)
        if self.merger is not None and vllm_config.speculative_config is not None:
            raise UsageError(
                f"{FLAG} {method[0]} cannot be combined with speculative decoding", "choose one"
            )


class _QwenMerging(_Merging):
    """Models with M-RoPE: merged tokens keep the ids (t, h, w) of their roots."""

    def __init_subclass__(cls) -> None:
        # Those of vLLM's class, which stands behind this one.
        theirs = getattr(super(), "supported_video_pruning_methods", ())
        cls.supported_video_pruning_methods = (*theirs, *pruning_names())

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: list[Any]
    ) -> tuple[torch.Tensor, int]:
        if self.merger is None:
            whole: tuple[torch.Tensor, int] = super().get_mrope_input_positions(
                input_tokens, mm_features
            )
            return whole
        features = sorted(mm_features, key=lambda feature: feature.mm_position.offset)
        config = self.config
        prompt = unmerged(
            list(input_tokens),
            [self._medium(feature) for feature in features],
            token=config.video_token_id,
            start=config.vision_start_token_id,
        )
        moved = [
            replace(feature, mm_position=PlaceholderRange(offset=offset, length=length))
            for feature, (offset, length) in zip(features, prompt.media, strict=True)
        ]
        positions, _ = super().get_mrope_input_positions(prompt.ids, moved)
        following = int(positions.max()) + 1
        return positions[:, prompt.keep], following - len(input_tokens)

    def _medium(self, feature: Any) -> Medium:
        at, side = feature.mm_position, self.visual.spatial_merge_size
        grid = feature.data[f"{feature.modality}_grid_thw"].data.tolist()
        each = (grid[1] // side) * (grid[2] // side)
        return Medium(at.offset, at.length, grid[0], each)

    def recompute_mrope_positions(
        self,
        input_ids: list[int] | torch.Tensor,
        multimodal_embeddings: Sequence[torch.Tensor],
        mrope_positions: torch.Tensor,
        num_computed_tokens: int,
    ) -> tuple[Sequence[torch.Tensor], torch.Tensor, int]:
        if self.merger is None:
            ours: tuple[Sequence[torch.Tensor], torch.Tensor, int]
            ours = super().recompute_mrope_positions(
                input_ids, multimodal_embeddings, mrope_positions, num_computed_tokens
            )
            return ours
        ids = torch.as_tensor(input_ids, device=mrope_positions.device)
        is_place = (ids == self.config.image_token_id) | (ids == self.config.video_token_id)
        split = [unmarked(rows) for rows in multimodal_embeddings]
        media = [values.to(mrope_positions.device) for _, values in split]
        positions = placed(mrope_positions, is_place, num_computed_tokens, media)
        delta = int(positions.max()) + 1 - len(ids)
        return [features for features, _ in split], positions, delta

    def _postprocess_image_embeds_evs(
        self, image_embeds_split: Sequence[torch.Tensor], image_input: Any
    ) -> Sequence[torch.Tensor]:
        if self.merger is None:
            ours: Sequence[torch.Tensor] = super()._postprocess_image_embeds_evs(
                image_embeds_split, image_input
            )
            return ours
        side = self.visual.spatial_merge_size
        grids = image_input["image_grid_thw"].tolist()
        return tuple(
            marked(features, _indices(grid, side))
            for features, grid in zip(image_embeds_split, grids, strict=True)
        )

    def _merged(
        self, merger: Merger, features: torch.Tensor, grid: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor, Sources]:
        """Merge a video's `features` [T*H*W, C]: merged features, roots, sources.

        Of features with deepstack levels behind them, the groups come from the first alone.
        """
        steps, height, width = grid
        side = self.visual.spatial_merge_size
        cells = features.view(steps, height // side, width // side, -1)
        roots, sources = merger.merge(cells[..., : getattr(self, "visual_dim", None)])
        return sources(cells), roots, sources


def _indices(grid: Sequence[int], side: int) -> torch.Tensor:
    """The ids [3, N] of a medium's tokens, row by row."""
    steps, height, width = grid[0], grid[1] // side, grid[2] // side
    axes = torch.arange(steps), torch.arange(height), torch.arange(width)
    return torch.cartesian_prod(*axes).view(-1, 3).T


def _video(grid: Sequence[int], length: int, seconds: float | None = None) -> Any:
    """A video of this grid as the only medium of a prompt, at its beginning."""
    data = {"video_grid_thw": torch.tensor(grid)}
    if seconds is not None:
        data["second_per_grid_ts"] = torch.tensor(seconds)
    field = MultiModalFieldConfig.batched("video").field
    items = {name: MultiModalFieldElem(data=value, field=field) for name, value in data.items()}
    return MultiModalFeatureSpec(
        data=MultiModalKwargsItem(items),
        modality="video",
        identifier="",
        mm_position=PlaceholderRange(offset=0, length=length),
    )


@MULTIMODAL_REGISTRY.register_processor(
    Qwen25VLProcessor,
    info=qwen2_5_vl.Qwen2_5_VLProcessingInfo,
    dummy_inputs=qwen2_5_vl.Qwen2_5_VLDummyInputsBuilder,
)
class Qwen25VL(_QwenMerging, qwen2_5_vl.Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL."""

    def _postprocess_video_embeds_evs(
        self, video_embeds_split: Sequence[torch.Tensor], video_input: Any
    ) -> Sequence[torch.Tensor]:
        if self.merger is None:
            ours: Sequence[torch.Tensor] = super()._postprocess_video_embeds_evs(
                video_embeds_split, video_input
            )
            return ours
        seconds = video_input.get("second_per_grid_ts")
        grids = video_input["video_grid_thw"].tolist()
        spacing = [None] * len(grids) if seconds is None else seconds.tolist()
        merged = []
        for features, grid, each in zip(video_embeds_split, grids, spacing, strict=True):
            tokens, roots, _ = self._merged(self.merger, features, grid)
            ids, _ = self.get_mrope_input_positions(
                [self.config.video_token_id] * len(features), [_video(grid, len(features), each)]
            )
            merged.append(marked(tokens, ids.to(roots.device)[:, roots]))
        return tuple(merged)


class _Qwen3Merging(_QwenMerging):
    """Timestamps stand between the steps; they are part of what the encoder gives."""

    def _postprocess_video_embeds_evs(
        self, video_embeds_split: Sequence[torch.Tensor], video_input: Any
    ) -> Sequence[torch.Tensor]:
        if self.merger is None:
            ours: Sequence[torch.Tensor] = super()._postprocess_video_embeds_evs(
                video_embeds_split, video_input
            )
            return ours
        videos = []
        grids = video_input["video_grid_thw"].tolist()
        for features, grid, times in zip(
            video_embeds_split, grids, video_input.timestamps, strict=True
        ):
            tokens, roots, sources = self._merged(self.merger, features, grid)
            kept = torch.zeros(sources.index.numel(), dtype=torch.bool, device=roots.device)
            kept[roots] = True
            videos.append(
                self._create_final_video_embeddings(
                    video_embeddings=tokens,
                    num_tokens_per_frame=kept.view(grid[0], -1).sum(1).tolist(),
                    timestamps=times,
                    video_grid_thw=grid,
                    retention_mask=kept,
                )
            )
        return tuple(videos)

    def _get_expanded_positions(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        values: torch.Tensor = super()._get_expanded_positions(*args, **kwargs)
        if self.merger is None:
            return values
        # The fourth column marks vision starts; the prompt's placeholders all follow the first.
        lead = int(values[:, 3].nonzero()[0]) + 1
        return marks(values[:, :3].T, lead)


def _like_qwen3(info: Any) -> Any:
    return MULTIMODAL_REGISTRY.register_processor(
        Qwen3VLProcessor, info=info, dummy_inputs=qwen3_vl.Qwen3VLDummyInputsBuilder
    )


@_like_qwen3(qwen3_vl.Qwen3VLProcessingInfo)
class Qwen3VL(_Qwen3Merging, qwen3_vl.Qwen3VLForConditionalGeneration):
    """Qwen3-VL."""


@_like_qwen3(qwen3_vl_moe.Qwen3VLMoeProcessingInfo)
class Qwen3VLMoe(_Qwen3Merging, qwen3_vl_moe.Qwen3VLMoeForConditionalGeneration):
    """Qwen3-VL with experts."""


@_like_qwen3(qwen3_5.Qwen3_5ProcessingInfo)
class Qwen35(_Qwen3Merging, qwen3_5.Qwen3_5ForConditionalGeneration):
    """Qwen3.5."""


@_like_qwen3(qwen3_5.Qwen3_5MoeProcessingInfo)
class Qwen35Moe(_Qwen3Merging, qwen3_5.Qwen3_5MoeForConditionalGeneration):
    """Qwen3.5 with experts."""


@MULTIMODAL_REGISTRY.register_processor(
    LlavaOnevisionProcessor,
    info=llava_onevision.LlavaOnevisionProcessingInfo,
    dummy_inputs=llava_onevision.LlavaOnevisionDummyInputsBuilder,
)
class LlavaOnevision(_Merging, llava_onevision.LlavaOnevisionForConditionalGeneration):
    """LLaVA-OneVision: plain positions, which follow from the shorter prompt."""

    supported_video_pruning_methods = tuple(pruning_names())

    def _process_video_pixels(self, inputs: Any) -> Sequence[torch.Tensor]:
        videos: Sequence[torch.Tensor] = super()._process_video_pixels(inputs)
        if self.merger is None:
            return videos
        steps = [len(video) for video in inputs["pixel_values_videos"]]
        # Videos of different lengths come with a batch axis each.
        return [
            self._merged(self.merger, video.flatten(0, -2), count)
            for video, count in zip(videos, steps, strict=True)
        ]

    def _merged(self, merger: Merger, tokens: torch.Tensor, steps: int) -> torch.Tensor:
        *grid, newline = tokens.split([len(tokens) - 1, 1])
        cells = grid[0].view(steps, -1, tokens.shape[1])
        side = round(cells.shape[1] ** 0.5)
        cells = cells.view(steps, side, side, -1)
        _, sources = merger.merge(cells)
        return torch.cat([sources(cells), newline])
