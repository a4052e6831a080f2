"""Half precision goes the same way: what is stored is what was computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sttm_cli.runtime.session import VideoQA
from tests.decode.made import Make

QUESTION = "what colour is the circle?"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_hit_in_half_precision_continues_from_the_very_same_numbers(
    folder: Path, dtype: str, tmp_path: Path
) -> None:
    video = Make(pts=range(30)).write(tmp_path / "video.mp4")

    def first_logits() -> tuple[bool, torch.Tensor]:
        with VideoQA(model=str(folder), dtype=dtype, cache_dir=tmp_path / "cache") as qa:
            ready = qa.prepare(video)
            assert ready.kv.keys[0].dtype == getattr(torch, dtype)
            logits = ready.prefix.extend(qa.model(vision=False).question(QUESTION))
            return ready.cache.hit, logits

    (was_hit, cold), (hit, warm) = first_logits(), first_logits()
    assert (was_hit, hit) == (False, True)
    assert cold.isfinite().all()
    assert torch.equal(cold, warm)
