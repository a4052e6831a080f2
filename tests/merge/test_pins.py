"""Which tokens a budget gives, pinned: a change here must raise the version of the method.

A stored KV is used again for as long as the version stays; other tokens under the same version
would be answered from silently.
"""

from __future__ import annotations

from hashlib import blake2b

import pytest
import torch

from sttm_cli.merge import MergedTokens
from sttm_cli.merge.method import find_method
from tests.merge.footage import footage

# Exact in float32, so that no processor's rounding moves a pin.


def coded(frames: int, height: int, width: int, *, seed: int, change: float) -> torch.Tensor:
    """Footage of small whole numbers."""
    return (footage(frames, height, width, 8, seed=seed, change=change, noise=0.5) * 4).round() + 1


def ties() -> torch.Tensor:
    """The same tile four times in each frame: every similarity occurs four times at least."""
    return (
        coded(1, 6, 6, seed=1, change=0.1).repeat(6, 2, 2, 1) + torch.arange(6)[:, None, None, None]
    )


def held() -> torch.Tensor:
    """Frames that repeat the first one, and others: a cut of the first frame concerns them all."""
    first, other = coded(1, 10, 10, seed=3, change=0.0), coded(1, 10, 10, seed=4, change=0.0)
    return torch.cat([first, first, other, first])


def still() -> torch.Tensor:
    """Three equal frames of few different cells, which every threshold jumps over."""
    return coded(1, 5, 5, seed=6, change=0.1).repeat(1, 2, 2, 1).repeat(3, 1, 1, 1)


VIDEOS = {
    "lively": coded(8, 14, 14, seed=0, change=0.3),
    "calm": coded(12, 10, 12, seed=2, change=0.02),
    "ties": ties(),
    "held": held(),
    "still": still(),
    "single": coded(1, 14, 14, seed=5, change=0.1),
}
PINS = {
    ("sttm/2", "still", 21): "0949fbf74625",
    ("sttm/2", "still", 38): "562468d0ec22",
    ("sttm/2", "still", 0.15): "f61685240257",
    ("anchors/1", "lively", 0.3): "bf5b6ddfc7da",
    ("anchors/1", "lively", 0.05): "2dcd51a56d77",
    ("anchors/1", "calm", 0.3): "ed2ab5b34655",
    ("anchors/1", "calm", 0.05): "3b4b54136b7e",
    ("anchors/1", "ties", 0.3): "1d340bca1d4e",
    ("anchors/1", "ties", 0.05): "eed4ad2bf7d2",
    ("anchors/1", "held", 0.3): "e5334f0d7469",
    ("anchors/1", "held", 0.05): "4273fb08968e",
    ("anchors/1", "single", 0.3): "0dcea7f92834",
    ("anchors/1", "single", 0.05): "dcfe48691f71",
    ("dycoke/1", "lively", 0.3): "0cbc755eac63",
    ("dycoke/1", "calm", 0.3): "980d113ecaf9",
    ("dycoke/1", "ties", 0.3): "7ad7df41e47a",
    ("dycoke/1", "held", 0.3): "03b288dca13c",
    ("dycoke/1", "single", 0.3): "90a78c8f7196",
    ("evs/1", "lively", 0.3): "1c03372b521b",
    ("evs/1", "calm", 0.3): "f29ce43bff68",
    ("evs/1", "ties", 0.3): "ddbb9c4332f5",
    ("evs/1", "held", 0.3): "20c5158dd3ac",
    ("evs/1", "single", 0.3): "90a78c8f7196",
    ("frames/1", "lively", 0.3): "471c29cf3ebe",
    ("frames/1", "calm", 0.3): "840f89fec88e",
    ("frames/1", "ties", 0.3): "8119c5f333ac",
    ("frames/1", "held", 0.3): "5d2d0f95fe13",
    ("frames/1", "single", 0.3): "90a78c8f7196",
    ("pooling/1", "lively", 0.3): "93c1f3a0ab1c",
    ("pooling/1", "calm", 0.3): "8145b006cabe",
    ("pooling/1", "ties", 0.3): "5320ad35b089",
    ("pooling/1", "held", 0.3): "7defd79baa61",
    ("pooling/1", "single", 0.3): "a47b18bb6df8",
    ("prunevid/1", "lively", 0.3): "3e9f2233ff8a",
    ("prunevid/1", "calm", 0.3): "07df52ed2c86",
    ("prunevid/1", "ties", 0.3): "9994dd4f58a4",
    ("prunevid/1", "held", 0.3): "eee323f2e79b",
    ("prunevid/1", "single", 0.3): "9dfbf218f09a",
    ("random/1", "lively", 0.3): "8fabd067fbd6",
    ("random/1", "calm", 0.3): "5c085ccc9c58",
    ("random/1", "ties", 0.3): "28f1127e3b21",
    ("random/1", "held", 0.3): "016dd1772f7f",
    ("random/1", "single", 0.3): "26eb94e0715f",
    ("spatial/1", "lively", 0.3): "b3bc484dbfe3",
    ("spatial/1", "calm", 0.3): "64c369c02ce2",
    ("spatial/1", "ties", 0.3): "a4b0b064599b",
    ("spatial/1", "held", 0.3): "e96ebbdb9494",
    ("spatial/1", "single", 0.3): "c2b0cadb49cf",
    ("sttm/2", "lively", 0.5): "9e49bee3eb8a",
    ("sttm/2", "lively", 0.3): "49969a2263eb",
    ("sttm/2", "lively", 0.15): "6fddf448bdf4",
    ("sttm/2", "lively", 40): "b927e22a53df",
    ("sttm/2", "calm", 0.5): "b82ef0a4dad7",
    ("sttm/2", "calm", 0.3): "618cd93dda0e",
    ("sttm/2", "calm", 0.15): "d3d5d8fd9088",
    ("sttm/2", "calm", 40): "9e622fcfd44c",
    ("sttm/2", "ties", 0.5): "4445129bc828",
    ("sttm/2", "ties", 0.3): "4ade1dd8623a",
    ("sttm/2", "ties", 0.15): "29d7c2e94dd8",
    ("sttm/2", "ties", 40): "497b5febc2f4",
    ("sttm/2", "held", 0.5): "dfd5e44f48a2",
    ("sttm/2", "held", 0.3): "1c7e24e2f000",
    ("sttm/2", "held", 0.15): "fbac37cd0704",
    ("sttm/2", "held", 40): "4c134bc1acd6",
    ("sttm/2", "single", 0.5): "2f41161ccc66",
    ("sttm/2", "single", 0.3): "0a5c24060d91",
    ("sttm/2", "single", 0.15): "cebec7365fe0",
    ("sttm/2", "single", 40): "3390d3f1e1ae",
    ("temporal/1", "lively", 0.3): "f44df6f14896",
    ("temporal/1", "calm", 0.3): "977371f34765",
    ("temporal/1", "ties", 0.3): "98d75850a6e3",
    ("temporal/1", "held", 0.3): "5750d1f3f0d5",
    ("temporal/1", "single", 0.3): "90a78c8f7196",
    ("tome/1", "lively", 0.3): "6ac5695912eb",
    ("tome/1", "calm", 0.3): "fa208435df3d",
    ("tome/1", "ties", 0.3): "0fbf9871b941",
    ("tome/1", "held", 0.3): "316307a956b9",
    ("tome/1", "single", 0.3): "b5fa62e055a5",
    ("vidcom2/2", "lively", 0.3): "5cb7fc8c854c",
    ("vidcom2/2", "calm", 0.3): "ee9f3da3fed4",
    ("vidcom2/2", "ties", 0.3): "dbbb3aaf6c30",
    ("vidcom2/2", "held", 0.3): "bddc7d9dced5",
    ("vidcom2/2", "single", 0.3): "699b493e7772",
}


def fingerprint(merged: MergedTokens) -> str:
    """The grouping and the thresholds."""
    total = blake2b(digest_size=6)
    total.update(merged.sources.index.to(torch.int32).numpy().tobytes())
    total.update(merged.roots.to(torch.int32).numpy().tobytes())
    thresholds = [merged.spatial_threshold, merged.temporal_threshold]
    total.update(repr([None if t is None else round(t, 3) for t in thresholds]).encode())
    return total.hexdigest()


@pytest.mark.parametrize(("method", "video", "budget"), PINS)
def test_the_tokens_are_those_of_this_version(method: str, video: str, budget: float | int) -> None:
    name, _, version = method.partition("/")
    found = find_method(name)
    assert found.identity == f"{name}/{version}"
    merged = found.merge(VIDEOS[video], budget)
    assert fingerprint(merged) == PINS[method, video, budget], (
        "this method gives other tokens than before: raise its version, then pin the new ones"
    )
