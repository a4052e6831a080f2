"""Frames that repeat earlier ones are encoded once, and their tokens are those of the repeats."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from sttm_cli.base.results import Clock
from sttm_cli.base.types import FrameChunk, VisualTokens
from sttm_cli.decode import read_frames
from sttm_cli.runtime.session import VideoQA
from tests.merged import Case

PICTURES = np.random.default_rng(0).integers(0, 255, (4, 64, 96, 3)).astype(np.uint8)


def video_of(path: Path, pictures: str) -> Path:
    """A lossless video with one of PICTURES a second, as `pictures` names them (a to d)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=1, width=96, height=64, pix_fmt="bgr0")
        for letter in pictures:
            frame = av.VideoFrame.from_ndarray(PICTURES[ord(letter) - ord("a")], format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("family", "pictures", "encoded"),
    [
        ("llava_onevision", "aababdb", "abd"),
        # A step is two frames; the last one alone is another step.
        ("qwen2_5_vl", "ababbaabcdabb", "abbacdb"),
        ("qwen2_5_vl", "abcd", "abcd"),
    ],
)
def test_a_repeated_step_is_encoded_once(
    cases: Callable[[str], Case],
    family: str,
    pictures: str,
    encoded: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    video = video_of(tmp_path / "video.mkv", pictures)
    with VideoQA(model=str(cases(family).folder), frames=len(pictures), fps=1) as qa:
        # A chunk for every two frames, so that repeats lie in other chunks too.
        small = partial(read_frames, max_chunk_bytes=2 * PICTURES[0].nbytes)
        monkeypatch.setattr("sttm_cli.runtime.compute.read_frames", small)
        model, seen = qa.model(), list[np.ndarray]()
        encode = model.encode

        def counted(chunk: FrameChunk, frames: int) -> VisualTokens:
            seen.append(chunk.frames)
            return encode(chunk, frames)

        monkeypatch.setattr(type(model), "encode", lambda self, *rest: counted(*rest))
        tokens, _ = qa.compute.visual_tokens(qa.request(video), Clock())
        order = [ord(letter) - ord("a") for letter in pictures]
        whole = encode(FrameChunk(PICTURES[order], ()), len(pictures))
    wanted = [PICTURES[ord(letter) - ord("a")] for letter in encoded]
    assert np.array_equal(np.concatenate(seen), np.stack(wanted))
    assert torch.allclose(tokens.features, whole.features, atol=1e-5)
    assert len(tokens.times_s) == len(pictures)
