"""`merge_tokens` against the plain oracle, on every kind of grid and setting."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sttm_cli.merge import merge_tokens
from tests.merge.footage import footage
from tests.merge.oracle import Oracle

TOO_CLOSE = 1e-5
"""A similarity this near to a threshold may fall on either side of it in float32."""


def assert_agrees(video: torch.Tensor, oracle: Oracle) -> None:
    expected = oracle.merge(video)
    if oracle.margin <= TOO_CLOSE:
        return
    found = merge_tokens(
        video,
        spatial_threshold=oracle.spatial,
        temporal_threshold=oracle.temporal,
        root_level=oracle.root_level,
        weighted=oracle.weighted,
        head_dim=oracle.head_dim,
        semantics="reference" if oracle.reference else "paper",
        link="most_similar" if oracle.most_similar else "first",
    )
    boxes, patches, features = zip(*expected, strict=True)
    assert [tuple(box) for box in found.boxes.tolist()] == list(boxes)
    assert found.patch_counts.tolist() == list(patches)
    torch.testing.assert_close(
        found.features.double(), torch.stack(features), rtol=0, atol=1e-5, check_dtype=False
    )


grids = st.tuples(st.integers(1, 6), st.integers(1, 15), st.integers(1, 15))
thresholds = st.floats(0.3, 0.95)


@settings(max_examples=60, deadline=None)
@given(
    grid=grids,
    seed=st.integers(0, 10_000),
    spatial=thresholds,
    temporal=st.one_of(st.just(0.0), thresholds),
    root_level=st.integers(0, 3),
    weighted=st.booleans(),
    head_dim=st.sampled_from([None, 4]),
    kind=st.sampled_from(["paper", "most_similar", "reference"]),
)
def test_agrees_with_the_oracle(
    grid: tuple[int, int, int],
    seed: int,
    spatial: float,
    temporal: float,
    root_level: int,
    weighted: bool,
    head_dim: int | None,
    kind: str,
) -> None:
    # The released code never returns for a side of 1; it has no result to agree with.
    assume(kind != "reference" or min(grid[1:]) > 1)
    video = footage(*grid, 8, seed=seed, noise=0.2 + seed % 5 / 10)
    oracle = Oracle(spatial, temporal, root_level, weighted, head_dim)
    oracle.reference, oracle.most_similar = kind == "reference", kind == "most_similar"
    assert_agrees(video, oracle)


@pytest.mark.parametrize("grid", [(5, 14, 14), (3, 13, 17), (2, 24, 42), (7, 9, 5), (3, 1, 12)])
@pytest.mark.parametrize("reference", [False, True])
def test_agrees_with_the_oracle_on_the_grids_of_real_models(
    grid: tuple[int, int, int], reference: bool
) -> None:
    if not (reference and 1 in grid):
        assert_agrees(footage(*grid, noise=0.4), Oracle(0.8, 0.6, reference=reference))


def test_a_long_chain_makes_the_released_code_join_more_than_the_forest() -> None:
    video = footage(6, 8, 8, noise=0.5)
    forest, released = (
        merge_tokens(video, root_level=0, semantics=semantics)
        for semantics in ("paper", "reference")
    )
    assert len(released) < len(forest)
