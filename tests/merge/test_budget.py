"""A budget is an upper bound, met as closely as the video allows."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sttm_cli.merge import merge_tokens
from sttm_cli.merge.checks import FEWEST
from sttm_cli.merge.quadtree.budget import PATH, spatial_on_path, temporal_on_path, token_limit
from tests.merge.footage import footage, static

SHARES = [0.95, 0.7, 0.5, 0.3, 0.15, 0.1]


def only_equal_cells_merged(video: torch.Tensor) -> int:
    return len(merge_tokens(video, spatial_threshold=1.0, temporal_threshold=1.0))


def assert_met(video: torch.Tensor, budget: float | int) -> None:
    total = video.shape[:3].numel()
    asked = budget if isinstance(budget, int) else budget * total
    kept = len(merge_tokens(video, budget=budget))
    assert kept <= asked
    assert kept >= asked - total / 100 or kept >= only_equal_cells_merged(video)


@pytest.mark.parametrize("budget", SHARES)
@pytest.mark.parametrize(
    "grid", [(8, 14, 14), (2, 14, 14), (5, 13, 17), (3, 24, 42), (4, 7, 30), (16, 12, 1)]
)
@pytest.mark.parametrize("change", [0.0, 0.3])
def test_a_share_is_never_exceeded_and_met_within_one_percent(
    grid: tuple[int, int, int], budget: float, change: float
) -> None:
    video = footage(*grid, noise=0.4, change=change)
    if budget * grid[0] < 4 / 30:
        pytest.skip("fewer tokens than the roots of a frame")
    assert_met(video, budget)


@settings(max_examples=40, deadline=None)
@given(
    frames=st.integers(2, 6),
    side=st.integers(10, 20),
    seed=st.integers(0, 10_000),
    noise=st.sampled_from([0.0, 1e-6, 1e-4, 0.01, 0.3, 2.0]),
    budget=st.floats(0.1, 1.0),
)
def test_a_share_is_met_whatever_the_noise(
    frames: int, side: int, seed: int, noise: float, budget: float
) -> None:
    video = footage(frames, side, side, seed=seed, noise=noise, change=0.05)
    assume(budget * video.shape[:3].numel() >= 16)
    assert_met(video, budget)


Interval = tuple[int, int]


def halved(side: list[Interval]) -> list[Interval]:
    """Neighbours joined; of an odd number the first stays alone."""
    alone = side[: len(side) % 2] if len(side) > 1 else side
    rest = side[len(alone) :]
    return alone + [(a, b) for (a, _), (_, b) in zip(rest[0::2], rest[1::2], strict=True)]


def possible_counts(height: int, width: int, root_level: int) -> set[int]:
    """All numbers of tokens to which one frame can be split by whole cells."""
    levels = [([(i, i + 1) for i in range(height)], [(i, i + 1) for i in range(width)])]
    while 2 not in map(len, levels[-1]) and len(levels[-1][0]) * len(levels[-1][1]) > 1:
        levels.append((halved(levels[-1][0]), halved(levels[-1][1])))
    levels = levels[: max(1, len(levels) - root_level)]

    def inside(side: list[Interval], outer: Interval) -> list[Interval]:
        return [part for part in side if outer[0] <= part[0] and part[1] <= outer[1]]

    def sums(cells: list[tuple[Interval, Interval]], level: int) -> set[int]:
        found = {0}
        for rows, columns in cells:
            below = levels[level - 1] if level else ([], [])
            parts = product(inside(below[0], rows), inside(below[1], columns))
            options = {1} | (sums(list(parts), level - 1) if level else set())
            found = {a + b for a in found for b in options}
        return found

    return sums(list(product(*levels[-1])), len(levels) - 1)


@pytest.mark.parametrize("grid", [(7, 7), (14, 14), (8, 8), (10, 18), (9, 5), (12, 1)])
def test_a_single_frame_is_cut_to_the_largest_count_that_its_cells_can_add_up_to(
    grid: tuple[int, int],
) -> None:
    video = torch.randn(1, *grid, 16, generator=torch.manual_seed(0))
    finer, coarser = possible_counts(*grid, 1), possible_counts(*grid, 0)
    total = grid[0] * grid[1]
    for budget in range(min(coarser), total, max(1, total // 60)):
        counts = finer if budget >= min(finer) else coarser
        kept = len(merge_tokens(video, budget=(budget + 0.5) / total))
        assert kept == max(count for count in counts if count <= budget)


def test_budget_one_is_everything_as_a_whole_number_too() -> None:
    assert len(merge_tokens(footage(2, 7, 7, noise=0.4), budget=1)) == 98


@pytest.mark.parametrize("count", [16, 17, 100, 500, 783, 1568, 10**9])
def test_a_whole_number_is_a_count_of_tokens(count: int) -> None:
    video = footage(8, 14, 14, noise=0.4)
    assert len(merge_tokens(video, budget=count)) == min(count, 8 * 14 * 14)


@pytest.mark.parametrize("budget", [1.0, 784, 785])
def test_a_budget_for_every_token_merges_nothing_not_even_repetition(budget: float | int) -> None:
    video = static(4, 14, 14)
    merged = merge_tokens(video, budget=budget)
    assert torch.equal(merged.features, video.flatten(0, 2))
    assert merged.roots.tolist() == list(range(784))
    assert merged.spatial_threshold is merged.temporal_threshold is None


@pytest.mark.parametrize("share", [0.99, 0.5, 0.3])
def test_exact_repetition_is_free(share: float) -> None:
    merged = merge_tokens(static(4, 14, 14), budget=share)
    assert len(merged) == 4 * 49
    assert merged.temporal_threshold == 1.0
    flat = torch.ones(3, 14, 14, 8)
    assert len(merge_tokens(flat, budget=share)) == 16
    assert len(merge_tokens(torch.zeros_like(flat), budget=share)) == 16


def test_what_differs_in_the_last_digit_is_not_repetition() -> None:
    video = static(4, 14, 14, 64)
    video[2] *= 1 + 1e-6
    assert len(merge_tokens(video, budget=0.9)) == 3 * 196
    assert len(merge_tokens(video, budget=0.4)) == math.floor(0.4 * 784)


@pytest.mark.parametrize("grid", [(2, 10, 10), (4, 10, 10), (2, 14, 14)])
def test_a_lone_child_at_a_corner_is_no_repetition(grid: tuple[int, int, int]) -> None:
    # 10 -> 5 -> 3: the corner root has one child, of four cells that differ.
    video = footage(*grid, noise=1.0)
    total = video.shape[:3].numel()
    assert only_equal_cells_merged(video) == total
    assert_met(video, 0.99)
    corner = merge_tokens(video, spatial_threshold=0.999, temporal_threshold=0)
    assert len(corner) == total - 3 * grid[0]


def test_ties_are_broken_to_the_token() -> None:
    tile = footage(1, 7, 7, noise=0.3).repeat(1, 2, 2, 1)
    video = torch.cat([tile + 1e-3 * k for k in range(6)])
    for share in SHARES:
        assert_met(video, share)


def test_merging_at_the_thresholds_found_gives_the_same() -> None:
    video = footage(8, 14, 14, 64, noise=0.5)
    for share in (0.7, 0.5, 0.3, 0.15):
        merged = merge_tokens(video, budget=share)
        assert merged.spatial_threshold is not None
        again = merge_tokens(
            video,
            spatial_threshold=merged.spatial_threshold,
            temporal_threshold=merged.temporal_threshold,
        )
        assert torch.equal(merged.boxes, again.boxes)
        assert torch.equal(merged.features, again.features)


def test_the_thresholds_found_lie_on_the_path() -> None:
    video = footage(16, 14, 14, 64, noise=0.5)
    for share in (0.7, 0.5, 0.3):
        merged = merge_tokens(video, budget=share)
        on_path = temporal_on_path(torch.tensor(merged.spatial_threshold))
        assert merged.temporal_threshold == pytest.approx(float(on_path), abs=0.02)


def test_the_path_goes_through_the_published_pairs_and_falls_all_the_way() -> None:
    for spatial, temporal in PATH:
        assert float(temporal_on_path(torch.tensor(spatial))) == pytest.approx(temporal)
        assert float(spatial_on_path(torch.tensor(temporal))) == pytest.approx(spatial)
    line = temporal_on_path(torch.linspace(-1, 1, 400))
    assert bool((line.diff() > 0).all())
    # 50 % and 30 % of LLaVA-Video-7B and Qwen2-VL-7B, as published.
    assert 0.55 <= temporal_on_path(torch.tensor(0.85)) <= 0.65
    assert 0.50 <= temporal_on_path(torch.tensor(0.80)) <= 0.65
    assert 0.50 <= temporal_on_path(torch.tensor(0.75)) <= 0.60


def test_a_smaller_budget_never_keeps_more() -> None:
    video = footage(6, 14, 14, noise=0.4)
    counts = [len(merge_tokens(video, budget=share)) for share in SHARES]
    assert counts == sorted(counts, reverse=True)


def test_a_budget_below_the_roots_of_a_frame_starts_the_search_higher() -> None:
    video = footage(1, 24, 42, noise=0.4)
    assert len(merge_tokens(video, budget=16, root_level=3)) <= 16


def test_a_budget_that_no_merging_reaches_names_the_least_count() -> None:
    with pytest.raises(ValueError, match=r"allows 1 of 27 tokens.*least possible.* is 2"):
        merge_tokens(footage(3, 1, 9), budget=0.05)


def test_dissimilar_nodes_are_linked_where_the_budget_asks_for_it() -> None:
    video = torch.cat([footage(1, 14, 14), -footage(1, 14, 14)])
    merged = merge_tokens(video, budget=0.1)
    assert len(merged) == 39
    assert merged.temporal_threshold is not None
    assert merged.temporal_threshold < 0


@pytest.mark.parametrize("budget", [0.5, 40])
def test_one_frame_meets_a_budget_in_space_alone(budget: float | int) -> None:
    video = footage(1, 14, 14, noise=0.4)
    most = token_limit(budget, 196).most
    assert most - 2 <= len(merge_tokens(video, budget=budget)) <= most


def test_shares_are_rounded_down() -> None:
    assert token_limit(0.3, 196).most == 58
    assert token_limit(FEWEST, 196).most == FEWEST
    assert token_limit(0.29, 100).most == math.floor(0.29 * 100)
