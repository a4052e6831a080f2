"""A value that is not possible raises a ValueError that names it and what is allowed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sttm_cli.base.errors import UsageError
from sttm_cli.merge import merge_tokens
from tests.merge.footage import footage


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"spatial_threshold": 1.5}, r"spatial_threshold is 1\.5.*\[-1, 1\]"),
        ({"temporal_threshold": float("nan")}, r"temporal_threshold is nan.*\[-1, 1\]"),
        ({"temporal_threshold": -1.01}, r"temporal_threshold is -1\.01.*\[-1, 1\]"),
        ({"spatial_threshold": True}, r"spatial_threshold is True"),
        ({"spatial_threshold": "high"}, r"spatial_threshold is 'high'"),
        ({"budget": 0.0}, r"budget is 0\.0.*\(0, 1\].*>= 16"),
        ({"budget": 1.01}, r"budget is 1\.01.*\(0, 1\].*>= 16"),
        ({"budget": -0.5}, r"budget is -0\.5"),
        ({"budget": float("nan")}, r"budget is nan"),
        ({"budget": 15}, r"budget is 15.*>= 16"),
        ({"budget": 2}, r"budget is 2.*>= 16"),
        ({"budget": True}, r"budget is True"),
        ({"budget": "half"}, r"budget is 'half'"),
        ({"budget": 0.5, "spatial_threshold": 0.8}, r"budget=0\.5.*spatial_threshold"),
        ({"budget": 0.5, "temporal_threshold": 0.6}, r"budget=0\.5.*temporal_threshold"),
        ({"budget": 0.5, "semantics": "reference"}, r"'reference'.*budget=0\.5"),
        ({"root_level": -1}, r"root_level is -1.*>= 0"),
        ({"root_level": 1.5}, r"root_level is 1\.5"),
        ({"head_dim": 5}, r"head_dim is 5.*16 channels"),
        ({"head_dim": 0}, r"head_dim is 0"),
        ({"weighted": "yes"}, r"weighted is 'yes'.*True or False"),
        ({"semantics": "exact"}, r"semantics is 'exact'.*paper, reference"),
        ({"link": "last"}, r"link is 'last'.*first, most_similar"),
        ({"link": "most_similar", "semantics": "reference"}, r"'reference'.*'most_similar'"),
    ],
)
def test_a_bad_setting_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        merge_tokens(footage(2, 8, 8), **settings)
    assert isinstance(refused.value, UsageError)


@pytest.mark.parametrize(
    ("features", "said"),
    [
        (torch.zeros(2, 8, 8), r"shape \(2, 8, 8\).*\[T, H, W, C\]"),
        (torch.zeros(0, 8, 8, 4), r"\(0, 8, 8, 4\) are empty"),
        (torch.zeros(2, 8, 8, 0), r"\(2, 8, 8, 0\) are empty"),
        (torch.zeros(2, 8, 8, 4, dtype=torch.int64), r"torch\.int64"),
        (torch.zeros(2, 8, 8, 4, dtype=torch.complex64), r"torch\.complex64"),
        ([[1.0]], r"list"),
    ],
)
def test_bad_features_are_refused(features: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        merge_tokens(features)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("settings", [{}, {"budget": 0.5}, {"budget": 1.0}, {"head_dim": 4}])
def test_values_that_are_not_finite_are_refused_and_located(
    value: float, settings: dict[str, Any]
) -> None:
    video = footage(3, 9, 9)
    video[1, 8, 2, 3] = value
    with pytest.raises(ValueError, match=r"features\[\(1, 8, 2, 3\)\] is -?(nan|inf)"):
        merge_tokens(video, **settings)


def test_values_whose_squares_overflow_are_refused() -> None:
    with pytest.raises(ValueError, match=r"features reach .*e\+30"):
        merge_tokens(footage(2, 8, 8) * 1e30)


@pytest.mark.parametrize("threshold", [-1, 1, 0, 1.0])
def test_the_ends_of_the_range_are_allowed(threshold: float) -> None:
    merge_tokens(footage(2, 8, 8), spatial_threshold=threshold, temporal_threshold=threshold)


def test_a_temporal_threshold_of_zero_or_less_switches_merging_in_time_off() -> None:
    video = footage(3, 8, 8)
    counts = {len(merge_tokens(video, temporal_threshold=t)) for t in (0, -0.5, -1.0)}
    assert counts == {merge_tokens(video).after_spatial}


def test_sources_refuse_another_grid_and_whole_numbers() -> None:
    merged = merge_tokens(footage(2, 8, 8))
    with pytest.raises(ValueError, match=r"2 x 8 x 9 grid.*2 x 8 x 8 grid"):
        merged.sources(torch.zeros(2, 8, 9, 3))
    with pytest.raises(ValueError, match=r"torch\.int64.*\.roots"):
        merged.sources(torch.zeros(2, 8, 8, 3, dtype=torch.int64))


def test_position_ids_are_taken_at_the_roots() -> None:
    merged = merge_tokens(footage(3, 8, 8))
    grid = torch.stack(torch.meshgrid(*(torch.arange(n) for n in (3, 8, 8)), indexing="ij"), -1)
    assert torch.equal(grid.flatten(0, 2)[merged.roots].int(), merged.boxes[:, :3])
