"""`semantics="reference"` against what the released code returned (../shared/goldens)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sttm_cli.merge import merge_tokens

GOLDENS = Path(__file__).parents[3] / "shared" / "goldens"
CASES = json.loads((GOLDENS / "cases.json").read_text()) if GOLDENS.is_dir() else []

pytestmark = pytest.mark.skipif(not CASES, reason="the folder ../shared/goldens is not there")


def merged(case: dict[str, Any], semantics: str) -> Any:
    expected = load_file(GOLDENS / f"{case['name']}.safetensors")
    found = merge_tokens(
        expected["video"].permute(0, 2, 3, 1),
        spatial_threshold=case["spatial_threshold"],
        temporal_threshold=case["temporal_threshold"],
        root_level=case["root_level"],
        weighted=case["weighted_avg"],
        head_dim=case["head_dim"],
        semantics=semantics,
    )
    return found, expected


def assert_same(found: Any, expected: dict[str, torch.Tensor]) -> None:
    assert torch.equal(found.boxes, expected["tyxyx"])
    assert torch.equal(found.patch_counts, expected["num_patches"])
    torch.testing.assert_close(found.features, expected["features"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_reference_semantics_return_what_the_released_code_returns(case: dict[str, Any]) -> None:
    assert_same(*merged(case, "reference"))


@pytest.mark.parametrize("name", ["even_8x8_spatial", "even_8x8_two_frames"])
def test_both_semantics_agree_where_no_quirk_is_in_play(name: str) -> None:
    case = next(case for case in CASES if case["name"] == name)
    assert_same(*merged(case, "paper"))


@pytest.mark.parametrize(
    ("name", "count"),
    [("even_8x8_both", 95), ("even_16x16_root1", 151), ("wide_8x16", 114)],
)
def test_paper_semantics_keep_one_token_per_tree_of_the_forest(name: str, count: int) -> None:
    case = next(case for case in CASES if case["name"] == name)
    found, _ = merged(case, "paper")
    assert len(found) == count
