"""What holds of every merge, whatever the video."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sttm_cli.merge import MergedTokens, merge_tokens
from sttm_cli.merge.quadtree.products import full_float32
from tests.merge.footage import footage, static

videos = st.builds(
    footage,
    st.integers(1, 5),
    st.integers(1, 12),
    st.integers(1, 12),
    st.just(8),
    seed=st.integers(0, 10_000),
    change=st.sampled_from([0.0, 0.1, 0.5]),
    noise=st.sampled_from([0.0, 0.2, 0.6]),
)
thresholds = st.floats(0.2, 1.0)
merges = settings(max_examples=40, deadline=None)


def same(one: MergedTokens, other: MergedTokens) -> bool:
    return torch.equal(one.boxes, other.boxes) and torch.equal(
        one.sources.index, other.sources.index
    )


@merges
@given(video=videos, spatial=thresholds, temporal=thresholds)
def test_boxes_of_a_frame_never_overlap_and_tile_it_without_time(
    video: torch.Tensor, spatial: float, temporal: float
) -> None:
    covered = torch.zeros(video.shape[:3], dtype=torch.int64)
    for t, top, left, bottom, right in merge_tokens(
        video, spatial_threshold=spatial, temporal_threshold=temporal
    ).boxes.tolist():
        covered[t, top:bottom, left:right] += 1
    assert int(covered.max()) == 1
    assert int(covered[0].min()) == 1
    alone = merge_tokens(video, spatial_threshold=spatial, temporal_threshold=0)
    areas = (alone.boxes[:, 3] - alone.boxes[:, 1]) * (alone.boxes[:, 4] - alone.boxes[:, 2])
    assert torch.equal(areas, alone.patch_counts)
    assert len(alone) == alone.after_spatial


@merges
@given(video=videos, spatial=thresholds, temporal=thresholds, weighted=st.booleans())
def test_patches_are_all_accounted_for_and_shares_sum_to_one(
    video: torch.Tensor, spatial: float, temporal: float, weighted: bool
) -> None:
    merged = merge_tokens(
        video, spatial_threshold=spatial, temporal_threshold=temporal, weighted=weighted
    )
    index, weight = merged.sources.index.flatten(), merged.sources.weight.flatten()
    assert int(merged.patch_counts.sum()) == video.shape[:3].numel()
    assert torch.equal(torch.bincount(index), merged.patch_counts.long())
    sums = torch.zeros(len(merged)).index_add(0, index, weight)
    torch.testing.assert_close(sums, torch.ones(len(merged)))


@merges
@given(video=videos, budget=st.floats(0.4, 1.0))
def test_sources_rebuild_the_features_and_merge_other_tensors_alike(
    video: torch.Tensor, budget: float
) -> None:
    try:
        merged = merge_tokens(video, budget=budget)
    except ValueError:  # a grid so small that its roots are over the budget
        return
    assert torch.equal(merged.sources(video), merged.features)
    torch.testing.assert_close(
        merged.sources(torch.cat([video, 2 * video], 3)),
        torch.cat([merged.features, 2 * merged.features], 1),
    )
    assert merged.sources(video[..., 0]).shape == (len(merged),)


@merges
@given(video=videos, spatial=thresholds, temporal=thresholds)
def test_order_and_roots_follow_the_boxes(
    video: torch.Tensor, spatial: float, temporal: float
) -> None:
    merged = merge_tokens(video, spatial_threshold=spatial, temporal_threshold=temporal)
    places = [tuple(box[:3]) for box in merged.boxes.tolist()]
    assert places == sorted(set(places))
    _, height, width, _ = video.shape
    assert merged.roots.tolist() == [(t * height + y) * width + x for t, y, x in places]
    assert torch.equal(merged.sources.index.flatten()[merged.roots], torch.arange(len(merged)))


@merges
@given(video=videos, temporal=thresholds)
def test_a_lower_spatial_threshold_never_leaves_more_nodes(
    video: torch.Tensor, temporal: float
) -> None:
    counts = [
        merge_tokens(video, spatial_threshold=s, temporal_threshold=temporal).after_spatial
        for s in (1.0, 0.9, 0.7, 0.4, -1.0)
    ]
    assert all(more >= fewer for more, fewer in pairwise(counts))


@merges
@given(video=videos, spatial=thresholds, link=st.sampled_from(["first", "most_similar"]))
def test_a_lower_temporal_threshold_never_leaves_more_tokens(
    video: torch.Tensor, spatial: float, link: str
) -> None:
    counts = [
        len(merge_tokens(video, spatial_threshold=spatial, temporal_threshold=t, link=link))
        for t in (0, 1.0, 0.9, 0.7, 0.4, 0.01)
    ]
    assert all(more >= fewer for more, fewer in pairwise(counts))


@merges
@given(video=videos, power=st.integers(-30, 30), factor=st.floats(0.5, 2.0))
def test_scaling_the_features_changes_nothing_else(
    video: torch.Tensor, power: int, factor: float
) -> None:
    merged = merge_tokens(video, spatial_threshold=0.75)
    assert same(merged, merge_tokens(video * 2.0**power, spatial_threshold=0.75))
    odd = merge_tokens(video * factor, spatial_threshold=0.75)
    if same(merged, odd):  # a factor that rounds may move a cosine over a threshold
        torch.testing.assert_close(odd.features, merged.features * factor)


@merges
@given(video=videos, after=st.integers(0, 100), spatial=thresholds, temporal=thresholds)
def test_the_first_half_is_not_changed_by_the_second(
    video: torch.Tensor, after: int, spatial: float, temporal: float
) -> None:
    more = footage(3, *video.shape[1:], seed=after)
    how = {"spatial_threshold": spatial, "temporal_threshold": temporal}
    alone, first = merge_tokens(video, **how), merge_tokens(torch.cat([video, more]), **how)
    inside = first.boxes[:, 0] < len(video)
    assert torch.equal(first.boxes[inside], alone.boxes)
    assert torch.equal(first.sources.index[: len(video)], alone.sources.index)


def test_the_later_frames_do_change_groups_of_the_released_code() -> None:
    video = footage(6, 8, 8, noise=0.5)
    first = merge_tokens(video, root_level=0, semantics="reference")
    alone = merge_tokens(video[:2], root_level=0, semantics="reference")
    assert not torch.equal(first.boxes[first.boxes[:, 0] < 2], alone.boxes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_dtype_is_kept_and_tokens_that_merged_with_none_are_kept_exactly(
    dtype: torch.dtype,
) -> None:
    video = footage(4, 14, 14, 96, noise=0.4).to(dtype)
    merged = merge_tokens(video)
    assert merged.features.dtype == dtype
    alone = merged.patch_counts == 1
    assert alone.any()
    assert not alone.all()
    assert torch.equal(merged.features[alone], video.flatten(0, 2)[merged.roots[alone]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    video = footage(40, 6, 6, 200, noise=0.2, change=0).to(dtype)
    merged, exact = (
        merge_tokens(v, spatial_threshold=0.9, temporal_threshold=0.5)
        for v in (video, video.double())
    )
    assert torch.equal(merged.sources.index, exact.sources.index)
    # One rounding at the end, not one for each of the forty frames.
    torch.testing.assert_close(
        merged.features.double(), exact.features, rtol=torch.finfo(dtype).eps, atol=1e-6
    )


@pytest.mark.parametrize(
    "grid", [(1, 1, 1), (3, 1, 1), (2, 1, 9), (2, 9, 1), (2, 2, 2), (2, 3, 40)]
)
def test_grids_with_a_short_side_merge(grid: tuple[int, int, int]) -> None:
    merged = merge_tokens(static(*grid), spatial_threshold=-1)
    assert int(merged.patch_counts.sum()) == static(*grid).shape[:3].numel()
    assert merged.boxes[:, 0].max() == 0


def test_a_video_laid_out_otherwise_in_memory_merges_the_same() -> None:
    video = footage(3, 14, 14)
    turned = video.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert same(merge_tokens(video), merge_tokens(turned))


def test_the_input_is_neither_changed_nor_shared() -> None:
    video = footage(2, 8, 8)
    before = video.clone()
    for budget in (1.0, 0.5):
        merge_tokens(video, budget=budget).features.zero_()
    assert torch.equal(video, before)
    assert not merge_tokens(video.requires_grad_()).features.requires_grad


def test_thousands_of_frames_chain_to_the_first_one() -> None:
    video = static(3000, 2, 2, 4)
    merged = merge_tokens(video)
    assert merged.boxes.tolist() == [[0, y, x, y + 1, x + 1] for y in (0, 1) for x in (0, 1)]
    assert merged.patch_counts.tolist() == [3000] * 4
    torch.testing.assert_close(merged.features, video[0].flatten(0, 1), rtol=1e-4, atol=1e-4)


def test_autocast_and_the_default_dtype_around_it_change_nothing() -> None:
    video = footage(3, 14, 14, 96, noise=0.5).bfloat16()
    expected = merge_tokens(video, budget=0.4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(merge_tokens(video, budget=0.4).features, expected.features)
    torch.set_default_dtype(torch.float64)
    try:
        other_size = merge_tokens(video[:, 1:], budget=0.4).features
        assert torch.equal(merge_tokens(video, budget=0.4).features, expected.features)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(other_size, merge_tokens(video[:, 1:], budget=0.4).features)


def test_tf32_is_off_while_products_are_taken_and_back_afterwards() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with full_float32("cuda"):
            matmul = torch.backends.cuda.matmul
            new = hasattr(matmul, "fp32_precision")
            assert (matmul.fp32_precision == "ieee") if new else not matmul.allow_tf32
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_it_works_in_inference_mode_and_outside_afterwards() -> None:
    video = footage(2, 11, 13)
    with torch.inference_mode():
        merged = merge_tokens(video, budget=0.5)
    assert torch.equal(merged.sources(video), merge_tokens(video, budget=0.5).features)
