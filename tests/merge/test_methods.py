"""The methods: exact in number, and right in cases worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from sttm_cli.base.errors import UsageError
from sttm_cli.base.names import METHODS
from sttm_cli.merge import MergedTokens
from sttm_cli.merge.groups import evenly, grouped, shared_out
from sttm_cli.merge.method import find_method
from tests.merge.footage import footage

EAST, NORTH, WEST = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([-1.0, 0.0])
NAMES = METHODS.names()
OTHERS = [name for name in NAMES if name != "sttm"]
DROPPING = ("dycoke", "evs", "vidcom2", "frames", "random")


def keep(name: str, features: torch.Tensor, count: int) -> MergedTokens:
    return find_method(name).merge(features, count)


def turned(degrees: float) -> torch.Tensor:
    return torch.tensor([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])


def row(*cells: torch.Tensor) -> torch.Tensor:
    """One frame of one row."""
    return torch.stack(cells)[None]


def averages(merged: MergedTokens, values: torch.Tensor) -> torch.Tensor:
    """`merged.sources(values)`, cell by cell."""
    index, weight = merged.sources.index.flatten(), merged.sources.weight.flatten()
    used = index >= 0
    sums = values.new_zeros(len(merged), values.shape[3]).double()
    rows = values.flatten(0, 2).double() * weight[:, None]
    return sums.index_add_(0, index[used], rows[used])


def test_all_methods_are_there_by_name() -> None:
    published = {"sttm", "tome", "dycoke", "evs", "vidcom2", "prunevid"}
    ours = {"anchors", "frames", "pooling", "random", "spatial", "temporal"}
    assert published | ours == set(NAMES)
    assert [name for name in NAMES if find_method(name).sizes] == ["anchors"]
    assert find_method("sttm").identity == "sttm/2"
    assert find_method("vidcom2").identity == "vidcom2/2"
    others = set(OTHERS) - {"vidcom2"}
    assert all(find_method(name).identity == f"{name}/1" for name in others)
    with pytest.raises(UsageError, match="did you mean tome"):
        find_method("tom")


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("shape", [(8, 7, 7, 6), (5, 4, 6, 3), (1, 5, 5, 4)])
def test_exactly_as_many_tokens_are_kept_as_the_budget_allows(
    name: str, shape: tuple[int, int, int, int]
) -> None:
    features = torch.randn(shape, generator=torch.Generator().manual_seed(1)) + 1
    total, merge = features.shape[:3].numel(), find_method(name).merge
    for count in {1, total - 1, total // 2, total // 10, min(shape[0] * 4, total)}:
        assert len(merge(features, count)) == count
        assert len(merge(features, (count + 0.5) / total)) == count
    assert len(merge(features, 1e-9)) == 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("budget", [0.9, 0.5, 0.3, 0.15, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_is_described_in_full_and_applies_to_other_tensors(
    name: str, budget: float | int, dtype: torch.dtype
) -> None:
    features = footage(8, 7, 7, 16, noise=0.4).to(dtype)
    merged, count = find_method(name).merge(features, budget), len(features) * 49
    most = budget if isinstance(budget, int) else int(budget * count)
    assert len(merged) == most
    assert torch.equal(merged.sources(features), merged.features)
    assert merged.features.dtype == dtype
    other = torch.randn(8, 7, 7, 5)
    torch.testing.assert_close(merged.sources(other).double(), averages(merged, other))
    index = merged.sources.index.flatten()
    assert torch.equal(torch.bincount(index[index >= 0]), merged.patch_counts.long())
    assert (
        merged.sources.dropped == int((index < 0).sum()) == count - int(merged.patch_counts.sum())
    )
    assert torch.equal(merged.sources.weight == 0, merged.sources.index < 0)
    assert torch.equal(index[merged.roots], torch.arange(len(merged)))
    assert torch.all(merged.roots[1:] > merged.roots[:-1])
    t, top, left, bottom, right = merged.boxes.long().unbind(1)
    assert torch.equal((t * 7 + top) * 7 + left, merged.roots)
    assert bool(((bottom > top) & (right > left) & (bottom <= 7) & (right <= 7)).all())
    assert merged.boxes.dtype == merged.patch_counts.dtype == torch.int32
    if name in DROPPING:
        assert torch.all(merged.patch_counts == 1)
        assert torch.equal(merged.features, features.flatten(0, 2)[merged.roots])


@pytest.mark.parametrize("name", NAMES)
def test_the_same_video_gives_the_same_tokens(name: str) -> None:
    video = footage(6, 7, 7, 16, noise=0.4)
    one, other = (find_method(name).merge(video.clone(), 0.3) for _ in range(2))
    assert torch.equal(one.features, other.features)
    assert torch.equal(one.sources.index, other.sources.index)


@pytest.mark.parametrize("name", NAMES)
def test_a_budget_that_allows_all_tokens_changes_none(name: str) -> None:
    # Cells that are equal would merge for nothing under any other budget.
    features = torch.randn(4, 4, 4, 8).repeat(2, 1, 1, 1).half()
    for budget in (1.0, 128, 500):
        merged = find_method(name).merge(features, budget)
        assert torch.equal(merged.features, features.flatten(0, 2))
        assert torch.equal(merged.roots, torch.arange(128))
        assert merged.sources.dropped == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("budget", [0, 0.0, -0.5, 1.5, True])
def test_a_budget_that_is_none_is_refused(name: str, budget: float) -> None:
    with pytest.raises(UsageError, match="budget"):
        find_method(name).merge(torch.randn(2, 4, 4, 8), budget)


@pytest.mark.parametrize("name", NAMES)
def test_features_that_are_not_finite_are_refused(name: str) -> None:
    features = torch.randn(2, 4, 4, 8)
    features[1, 2, 3, 4] = torch.nan
    with pytest.raises(UsageError, match="is nan"):
        find_method(name).merge(features, 0.5)


def test_few_whole_tokens_are_a_number_for_our_own_method_too() -> None:
    assert len(keep("sttm", torch.randn(1, 4, 4, 8), 4)) == 4
    with pytest.raises(UsageError, match="least possible"):
        keep("sttm", torch.randn(1, 4, 4, 8), 1)


def test_boxes_are_those_of_whole_rectangles_else_of_the_root_alone() -> None:
    names = torch.tensor([[0, 0, 2], [0, 0, 5], [6, 7, 7]]).flatten()
    later = torch.tensor([[0, 0, 11], [0, 0, 11], [16, 16, 16]]).flatten()
    # 16 stands for the cells around it, of which one is before it; 5 for one of each frame.
    later[0] = 5
    merged = grouped(torch.randn(2, 3, 3, 4), torch.cat([names, later]))
    assert merged.boxes.tolist() == [
        [0, 0, 0, 2, 2],
        [0, 0, 2, 1, 3],
        [0, 1, 2, 2, 3],
        [0, 2, 0, 3, 1],
        [0, 2, 1, 3, 3],
        [1, 0, 2, 2, 3],
        [1, 2, 1, 3, 2],
    ]
    assert merged.patch_counts.tolist() == [7, 1, 2, 1, 2, 2, 3]


def test_tome_merges_the_most_similar_pair_across_the_two_sets() -> None:
    # Cells 0 and 2 are in the first set, 1 and 3 in the second; 0 is most like 3.
    features = row(EAST, NORTH, WEST, turned(10))[None]
    kept = keep("tome", features, 3)
    assert kept.roots.tolist() == [1, 2, 3]
    assert torch.allclose(kept.features[2], (EAST + turned(10)) / 2)


def test_tome_weighs_by_size_over_rounds() -> None:
    features = row(EAST, 3 * EAST, 5 * EAST, 7 * EAST)[None]
    assert torch.allclose(keep("tome", features, 1).features, 4 * EAST)


def test_dycoke_drops_what_is_most_like_the_frame_it_is_compared_with() -> None:
    # The second frame is compared with the first, the fourth with the third, the third with the
    # first; each keeps one of its two cells: the one that changed.
    frames = [row(EAST, NORTH), row(EAST, EAST), row(WEST, NORTH), row(WEST, WEST)]
    kept = keep("dycoke", torch.stack(frames), 5)
    assert kept.roots.tolist() == [0, 1, 3, 4, 7]


def test_dycoke_below_a_quarter_doubles_its_groups_and_then_thins_the_first_frame() -> None:
    features = torch.randn(8, 1, 4, 3)
    assert keep("dycoke", features, 6).roots[:4].tolist() == [0, 1, 2, 3]
    assert keep("dycoke", features, 2).roots.tolist() == [1, 3]


def test_evs_drops_the_patches_that_change_least() -> None:
    frames = [row(EAST, NORTH), row(turned(20), turned(80)), row(turned(25), turned(20))]
    # Changes: 20 and 10 degrees, then 5 and 60.
    assert keep("evs", torch.stack(frames), 4).roots.tolist() == [0, 1, 2, 5]


def test_vidcom2_gives_the_odd_frame_more_and_keeps_its_odd_tokens() -> None:
    # Four channels, of which two vary so much that they are not looked at.
    def steady(*cells: torch.Tensor) -> torch.Tensor:
        noise = 100 * torch.randn(1, 4, 2, generator=torch.Generator().manual_seed(len(seen)))
        seen.append(noise)
        return torch.cat([row(*cells), noise], 2)

    seen: list[torch.Tensor] = []
    same = steady(EAST, EAST, EAST, EAST)
    odd = steady(EAST, EAST, NORTH, WEST)
    kept = keep("vidcom2", torch.stack([same, same, odd, same]), 6)
    frames = (kept.roots // 4).tolist()
    assert frames.count(2) == 3
    assert {10, 11} <= set(kept.roots.tolist())


def test_fewer_frames_are_evenly_spaced_and_the_last_is_thinned() -> None:
    kept = keep("frames", torch.randn(4, 1, 4, 2), 6)
    assert kept.roots.tolist() == [4, 5, 6, 7, 13, 15]


def test_pooling_averages_rectangles_of_every_frame() -> None:
    features = torch.arange(32.0).view(2, 4, 4, 1)
    kept = keep("pooling", features, 8)
    assert kept.roots.tolist() == [0, 2, 8, 10, 16, 18, 24, 26]
    assert kept.features[0].item() == (0 + 1 + 4 + 5) / 4


def test_random_dropping_depends_on_the_video_alone() -> None:
    one, other = torch.randn(2, 4, 4, 3), torch.randn(2, 4, 4, 3)
    assert torch.equal(keep("random", one, 9).roots, keep("random", one, 9).roots)
    assert not torch.equal(keep("random", one, 9).roots, keep("random", other, 9).roots)


def test_spatial_only_never_merges_over_time_and_temporal_only_never_in_space() -> None:
    features = torch.randn(1, 4, 4, 8).repeat(4, 1, 1, 1) + 0.01 * torch.randn(4, 4, 4, 8)
    frames = torch.arange(4.0).repeat_interleave(16).view(4, 4, 4, 1)
    places = torch.arange(16.0).repeat(4).view(4, 4, 4, 1)
    spatial = keep("spatial", features, 23)
    assert set(spatial.sources(frames).flatten().tolist()) == {0.0, 1.0, 2.0, 3.0}
    temporal = keep("temporal", features, 16)
    assert temporal.sources(places).flatten().tolist() == list(map(float, range(16)))
    assert temporal.features.allclose(features.mean(0).flatten(0, 1), atol=1e-6)


def test_temporal_only_links_the_most_similar_first() -> None:
    frames = [row(EAST, NORTH), row(turned(5), turned(60)), row(turned(25), turned(61))]
    kept = keep("temporal", torch.stack(frames), 4)
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["tome", "pooling", "sttm", "spatial"])
def test_half_precision_is_summed_in_float32(name: str, dtype: torch.dtype) -> None:
    # Hundreds of cells a token: a sum in half precision stops growing long before the last.
    features = (footage(16, 14, 14, change=0.0, noise=0.01) + 4).to(dtype)
    merged = keep(name, features, 16)
    wanted = merged.sources(features.double()).to(dtype)
    assert merged.patch_counts.max() > 100
    assert torch.equal(merged.features, merged.sources(features))
    step = torch.finfo(dtype).eps
    assert torch.allclose(merged.features.double(), wanted.double(), rtol=step, atol=0)


def tome_by_hand(rows: torch.Tensor, keep_count: int) -> list[int]:
    """Written out: lists of cells, averages anew in each round."""
    groups = [[cell] for cell in range(len(rows))]
    while len(groups) > keep_count:
        means = [rows[group].mean(0) for group in groups]
        pairs = []
        for a in range(0, len(groups), 2):
            cosines = [
                float(torch.nn.functional.cosine_similarity(means[a], means[b], dim=0))
                for b in range(1, len(groups), 2)
            ]
            best = max(range(len(cosines)), key=cosines.__getitem__)
            pairs.append((cosines[best], a, 2 * best + 1))
        pairs.sort(key=lambda pair: -pair[0])
        for _, a, b in pairs[: min(len(groups) - keep_count, len(groups) // 2)]:
            groups[b] += groups[a]
            groups[a] = []
        groups = [group for group in groups if group]
    return [next(i for i, g in enumerate(groups) if cell in g) for cell in range(len(rows))]


def test_tome_is_the_algorithm_written_out_over_several_rounds() -> None:
    for seed in range(8):
        features = torch.randn(2, 4, 4, 5, generator=torch.Generator().manual_seed(seed))
        merged = keep("tome", features, 4)
        by_hand = tome_by_hand(features.flatten(0, 2), 4)
        ours = merged.sources.index.flatten().tolist()
        # The numbering is the order of roots; the grouping is what counts.
        pairs = set(zip(ours, by_hand, strict=True))
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def test_anchors_are_least_alike_and_the_others_join_the_nearest() -> None:
    # Least like the mean: west. Then the cell least like west, and north, least like both.
    features = row(EAST, turned(10), NORTH, WEST, turned(85))[None]
    kept = keep("anchors", features, 3)
    assert kept.roots.tolist() == [0, 2, 3]
    assert kept.patch_counts.tolist() == [2, 2, 1]
    assert torch.allclose(kept.features[0], (EAST + turned(10)) / 2)
    assert torch.allclose(kept.features[1], (NORTH + turned(85)) / 2)


def test_a_window_in_which_nothing_changes_leaves_its_anchors_to_the_others() -> None:
    # Two windows of eight frames: one of a single colour, one of many directions.
    lively = torch.stack([row(turned(20.0 * i), turned(20.0 * i + 10)) for i in range(8)])
    still = row(EAST, EAST).expand(8, 1, 2, 2)
    kept = keep("anchors", torch.cat([still, lively]), 8)
    frames = kept.roots // 2
    assert int((frames < 8).sum()) == 1
    assert kept.patch_counts[0] == 16
    # Not more than twice its even share, which is two of eight.
    kept = keep("anchors", torch.cat([still, still, still, lively]), 8)
    assert int((kept.roots >= 48).sum()) == 4


def test_wide_rows_are_told_apart_where_their_channels_cancel() -> None:
    kinds = torch.randn(6, 256, generator=torch.Generator().manual_seed(0))
    features = torch.cat([kinds, -kinds], 1).repeat(5, 1).view(1, 5, 6, 512)
    kept = keep("anchors", features, 6)
    assert sorted((kept.roots % 6).tolist()) == list(range(6))
    assert kept.patch_counts.tolist() == [5] * 6


def test_anchors_merge_over_the_frames_of_a_window_and_not_beyond() -> None:
    features = footage(20, 3, 3, 16, noise=0.4)
    times = torch.arange(20.0).repeat_interleave(9).view(20, 3, 3, 1)
    kept = keep("anchors", features, 40)
    window = (torch.arange(20) // 8).repeat_interleave(9)
    index = kept.sources.index.flatten()
    assert torch.equal(window[kept.roots][index], window)
    means = kept.sources(times).flatten()
    assert not torch.equal(means, means.round())


def test_fewer_tokens_than_windows_are_anchors_of_some_windows() -> None:
    features = footage(40, 3, 3, 16, noise=0.4)
    kept = keep("anchors", features, 2)
    assert (kept.roots // 72).tolist() == [1, 3]
    assert kept.patch_counts.tolist() == [72, 72]
    assert kept.sources.dropped == 3 * 72


def test_large_frames_are_several_windows_and_wide_rows_are_sketched() -> None:
    torch.manual_seed(0)
    kinds = torch.randn(24, 1500)
    place = torch.randint(0, 24, (2, 40, 40))
    features = kinds[place] + 0.05 * torch.randn(2, 40, 40, 1500)
    kept = keep("anchors", features, 24 * 4)
    # Four windows of 800 cells, in each of which every kind has its anchor, and only its own cells.
    assert kept.roots.tolist() == sorted(set(kept.roots.tolist()))
    assert torch.bincount(kept.roots // 800).tolist() == [24] * 4
    anchor_kind = place.flatten()[kept.roots]
    assert torch.equal(anchor_kind[kept.sources.index.flatten()], place.flatten())


def anchors_by_hand(rows: torch.Tensor, count: int) -> tuple[list[int], list[int]]:
    """Written out, for a single window: the anchors, and each cell's anchor."""
    rows = torch.nn.functional.normalize(rows.double(), dim=1)
    apart = (1 - rows @ rows.T).tolist()
    mean = rows.mean(0)
    chosen = [min(range(len(rows)), key=lambda i: float(rows[i] @ mean))]
    while len(chosen) < count:
        left = [i for i in range(len(rows)) if i not in chosen]
        chosen.append(max(left, key=lambda i: min(apart[i][j] for j in chosen)))
    own = [i if i in chosen else min(chosen, key=lambda j: apart[i][j]) for i in range(len(rows))]
    return sorted(chosen), own


def test_anchors_are_the_algorithm_written_out() -> None:
    for seed in range(6):
        features = torch.randn(3, 4, 5, 12, generator=torch.Generator().manual_seed(seed))
        for count in (1, 2, 9, 30, 59):
            merged = keep("anchors", features, count)
            chosen, own = anchors_by_hand(features.flatten(0, 2), count)
            assert merged.roots.tolist() == chosen
            assert merged.roots[merged.sources.index.flatten()].tolist() == own


def test_features_too_large_to_compare_are_refused() -> None:
    with pytest.raises(UsageError, match="features reach 3e"):
        keep("anchors", torch.full((2, 4, 4, 600), 3e38), 9)


def test_prunevid_merges_static_places_over_their_segment_alone() -> None:
    # Two scenes of four frames; in each, one place changes from frame to frame.
    scenes = [row(EAST, EAST, NORTH, NORTH), row(WEST, -NORTH, -NORTH, WEST)]
    frames = [scene.clone() for scene in scenes for _ in range(4)]
    for number, frame in enumerate(frames):
        frame[0, 3] = turned(90.0 * number + 45) / 5
    features = torch.stack(frames)
    kept = keep("prunevid", features, 2 * (3 + 4))
    groups: list[set[int]] = [set() for _ in range(14)]
    for cell, group in enumerate(kept.sources.index.flatten().tolist()):
        groups[group].add(cell)
    still = [{place + 4 * t for t in range(4 * s, 4 * s + 4)} for s in (0, 1) for place in range(3)]
    assert sorted(map(sorted, groups)) == sorted(
        map(sorted, [*still, *({4 * t + 3} for t in range(8))])
    )


def test_prunevid_clusters_by_density_in_a_frame() -> None:
    # Two bunches; the centre of each is inside, not at its rim.
    bunch = [1 + 0.1 * step for step in range(6)]
    cells = row(*(size * EAST for size in bunch), *(2 * size * NORTH for size in bunch))
    kept = keep("prunevid", cells[None], 2)
    assert kept.sources.index.flatten().tolist() == [0] * 6 + [1] * 6
    assert set(kept.roots.tolist()) <= {2, 3, 8, 9}
    assert torch.allclose(kept.features, torch.stack([1.25 * EAST, 2.5 * NORTH]))


def test_prunevid_keeps_places_apart_in_time_where_the_budget_allows_it() -> None:
    features = row(EAST, NORTH).expand(8, 1, 2, 2).clone()
    kept = keep("prunevid", features, 15)
    assert len(kept) == 15
    assert kept.patch_counts.max() <= 2


def test_prunevid_finds_segments_where_its_clusters_are_torn() -> None:
    # Frames of two kinds in turns; the first two runs do not stay.
    for order in ("ABBAABBB", "BAABBAAA", "ABABABAB", "AAAABBBB"):
        kinds = {"A": row(EAST, EAST), "B": row(NORTH, 2 * NORTH)}
        features = torch.stack([kinds[kind] for kind in order]) + 0.01 * torch.randn(8, 1, 2, 2)
        assert len(keep("prunevid", features, 9)) == 9
