"""Every real video gets an answer or the contract's error, with either decoder."""

from __future__ import annotations

import importlib.util
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from sttm_cli.base.errors import VideoError
from sttm_cli.runtime.session import VideoQA
from tests.conftest import SHARED

QUESTION = "how many shapes are there?"
VIDEOS = sorted(p.name for p in (SHARED / "videos").glob("*") if p.suffix != ".md")
UNREADABLE = {
    "androidx_invalid-bitstream.webm",
    "filetype_corrupt.mkv",
    "mp4parse_moov_without_mdat_truncated.mp4",
    "rails_audio_only.mp4",
}
DECORD_REFUSES = {
    "androidx_bbb_h264.avi",
    "androidx_hdr10-av1.mp4",
    "androidx_roadtrip-vp92-10bit.webm",
    "androidx_sample_vvc.mp4",
    "decord_corrupted.mp4",
    "intel_person-bicycle-car.gif",
    "mediabunny_annex-b-avc.mkv",
    "mediabunny_annex-b_truncated.mp4",
    "mediabunny_hevc.ts",
}
DECODERS = ["auto", "av"] + (["decord"] if importlib.util.find_spec("decord") else [])

pytestmark = pytest.mark.skipif(not VIDEOS, reason="../shared/videos is not there")


@pytest.fixture(scope="module", params=DECODERS)
def qa(request: pytest.FixtureRequest) -> Iterator[VideoQA]:
    warned: list[str] = []
    with VideoQA(decoder=request.param, no_cache=True, frames=4, warn=warned.append) as qa:
        yield qa
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\n{request.param}: peak memory {peak:.2f} GiB")


@pytest.mark.timeout(90)
@pytest.mark.parametrize("name", VIDEOS)
def test_a_video_is_answered_or_refused_in_bounded_time(
    qa: VideoQA, shared_videos: Path, name: str
) -> None:
    try:
        answer = qa.ask(shared_videos / name, QUESTION)
    except VideoError as error:
        refused = error
    else:
        assert name not in UNREADABLE
        assert answer.text
        assert answer.tokens.video_kept <= answer.tokens.video_full / 2
        return
    refuses = UNREADABLE | (DECORD_REFUSES if qa.settings.decoder == "decord" else set())
    assert name in refuses, str(refused)
    assert refused.message
    assert refused.hint
