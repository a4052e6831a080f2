"""The peers: exact in number, and right in cases worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from sttm_cli.bench.peers import PEERS
from sttm_cli.bench.peers.kept import evenly, grouped, shared_out

EAST, NORTH, WEST = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([-1.0, 0.0])


def turned(degrees: float) -> torch.Tensor:
    return torch.tensor([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])


def row(*cells: torch.Tensor) -> torch.Tensor:
    """One frame of one row."""
    return torch.stack(cells)[None]


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("shape", [(8, 7, 7, 6), (5, 4, 6, 3), (1, 5, 5, 4)])
def test_every_peer_keeps_exactly_as_many_as_it_is_told(
    name: str, shape: tuple[int, int, int, int]
) -> None:
    features = torch.randn(shape, generator=torch.Generator().manual_seed(1)) + 1
    total = features.shape[:3].numel()
    for keep in sorted({total, total - 1, total // 2, total * 3 // 10, total // 10, shape[0] * 4}):
        kept = PEERS[name](features, min(keep, total))
        assert len(kept.features) == len(kept.roots) == min(keep, total)
        assert torch.all(kept.roots[1:] > kept.roots[:-1])
        assert torch.isfinite(kept.features).all()
        assert torch.allclose(kept.sources(features), kept.features)


def test_all_cells_are_given_back_as_they_were_where_all_are_kept() -> None:
    features = torch.randn(4, 4, 4, 8)
    for name, peer in PEERS.items():
        assert torch.allclose(peer(features, 64).features, features.flatten(0, 2)), name


def test_tome_merges_the_most_similar_pair_across_the_two_sets() -> None:
    # Cells 0 and 2 are in the first set, 1 and 3 in the second; 0 is most like 3.
    features = row(EAST, NORTH, WEST, turned(10))[None]
    kept = PEERS["tome"](features, 3)
    assert kept.roots.tolist() == [1, 2, 3]
    assert torch.allclose(kept.features[2], (EAST + turned(10)) / 2)


def test_tome_weighs_by_size_over_rounds() -> None:
    features = row(EAST, 3 * EAST, 5 * EAST, 7 * EAST)[None]
    assert torch.allclose(PEERS["tome"](features, 1).features, 4 * EAST)


def test_dycoke_drops_what_is_most_like_the_frame_it_is_compared_with() -> None:
    # The second frame is compared with the first, the fourth with the third, the third with the
    # first; each keeps one of its two cells: the one that changed.
    frames = [row(EAST, NORTH), row(EAST, EAST), row(WEST, NORTH), row(WEST, WEST)]
    kept = PEERS["dycoke"](torch.stack(frames), 5)
    assert kept.roots.tolist() == [0, 1, 3, 4, 7]


def test_dycoke_below_a_quarter_doubles_its_groups_and_then_thins_the_first_frame() -> None:
    features = torch.randn(8, 1, 4, 3)
    assert PEERS["dycoke"](features, 6).roots[:4].tolist() == [0, 1, 2, 3]
    assert PEERS["dycoke"](features, 2).roots.tolist() == [1, 3]


def test_evs_drops_the_patches_that_change_least() -> None:
    frames = [row(EAST, NORTH), row(turned(20), turned(80)), row(turned(25), turned(20))]
    # Changes: 20 and 10 degrees, then 5 and 60.
    assert PEERS["evs"](torch.stack(frames), 4).roots.tolist() == [0, 1, 2, 5]


def test_vidcom2_gives_the_odd_frame_more_and_keeps_its_odd_tokens() -> None:
    same = row(EAST, EAST, EAST, EAST)
    odd = row(EAST, EAST, NORTH, WEST)
    kept = PEERS["vidcom2"](torch.stack([same, same, odd, same]), 6)
    frames = (kept.roots // 4).tolist()
    assert frames.count(2) == 3
    assert {10, 11} <= set(kept.roots.tolist())


def test_fewer_frames_are_evenly_spaced_and_the_last_is_thinned() -> None:
    kept = PEERS["frames"](torch.randn(4, 1, 4, 2), 6)
    assert kept.roots.tolist() == [4, 5, 6, 7, 13, 15]


def test_pooling_averages_rectangles_of_every_frame() -> None:
    features = torch.arange(32.0).view(2, 4, 4, 1)
    kept = PEERS["pooling"](features, 8)
    assert kept.roots.tolist() == [0, 2, 8, 10, 16, 18, 24, 26]
    assert kept.features[0].item() == (0 + 1 + 4 + 5) / 4


def test_random_dropping_depends_on_the_video_alone() -> None:
    one, other = torch.randn(2, 4, 4, 3), torch.randn(2, 4, 4, 3)
    drop = PEERS["random"]
    assert torch.equal(drop(one, 9).roots, drop(one, 9).roots)
    assert not torch.equal(drop(one, 9).roots, drop(other, 9).roots)


def test_spatial_only_never_merges_over_time_and_temporal_only_never_in_space() -> None:
    features = torch.randn(1, 4, 4, 8).repeat(4, 1, 1, 1) + 0.01 * torch.randn(4, 4, 4, 8)
    frames = torch.arange(4.0).repeat_interleave(16).view(4, 4, 4, 1)
    places = torch.arange(16.0).repeat(4).view(4, 4, 4, 1)
    spatial = PEERS["spatial"](features, 23)
    assert set(spatial.sources(frames).flatten().tolist()) == {0.0, 1.0, 2.0, 3.0}
    temporal = PEERS["temporal"](features, 16)
    assert temporal.sources(places).flatten().tolist() == list(map(float, range(16)))
    assert temporal.features.allclose(features.mean(0).flatten(0, 1), atol=1e-6)


def test_temporal_only_links_the_most_similar_first() -> None:
    frames = [row(EAST, NORTH), row(turned(5), turned(60)), row(turned(25), turned(61))]
    kept = PEERS["temporal"](torch.stack(frames), 4)
    assert kept.roots.tolist() == [0, 1, 3, 4]
    assert torch.allclose(kept.features[0], (EAST + turned(5)) / 2)


def test_groups_are_averaged_and_dropped_cells_are_in_none() -> None:
    features = torch.arange(4.0).view(1, 1, 4, 1)
    kept = grouped(features, torch.tensor([-1, 1, 1, 3]))
    assert kept.features.flatten().tolist() == [1.5, 3.0]
    assert kept.roots.tolist() == [1, 3]


def test_numbers_are_shared_out_exactly_and_evenly_spaced() -> None:
    assert shared_out(torch.tensor([1.0, 1, 2]), 8, 8).tolist() == [2, 2, 4]
    assert shared_out(torch.tensor([1.0, 1, 8]), 9, 5).tolist() == [2, 2, 5]
    assert shared_out(torch.ones(3), 7, 9).tolist() == [3, 2, 2]
    assert evenly(2, 4).tolist() == [1, 3]
    assert evenly(3, 3).tolist() == [0, 1, 2]
