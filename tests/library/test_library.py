"""Many videos: which are meant, reading ahead, the space they need, what becomes of each."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections import namedtuple
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sttm_cli.base.errors import CacheError, UsageError
from sttm_cli.base.types import DecodeReport, FrameChunk
from sttm_cli.library.in_process import LocalRunner, ahead
from sttm_cli.library.loop import prepare_library
from sttm_cli.library.outcome import Computed, Failed, Outcome, Skipped, Stopped
from sttm_cli.library.paths import find_videos, share_of
from sttm_cli.library.space import Estimate, check_space, estimate
from sttm_cli.models.registry import token_count
from sttm_cli.runtime import compute as runtime_compute
from sttm_cli.runtime.compute import Compute
from sttm_cli.runtime.session import VideoQA
from tests.checkpoints_internvl import internvl
from tests.checkpoints_llava import llava_video
from tests.checkpoints_qwen import qwen_vl
from tests.cli.test_ask import SAMPLE


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A tree of files, none of them a video, and one link to a folder."""
    root = tmp_path / "library"
    for name in "b.mp4 a.MKV notes.txt .hidden.mp4 .trash/c.mp4 deep/er/[1].webm".split():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "link").symlink_to(root / "deep")
    return root


def names(found: list[Path], root: Path) -> list[str]:
    return [str(path.relative_to(root)) for path in found]


def test_a_folder_gives_its_videos_sorted_without_hidden_ones_and_links(library: Path) -> None:
    assert names(find_videos([str(library)]).videos, library) == [
        "a.MKV",
        "b.mp4",
        "deep/er/[1].webm",
    ]


def test_a_file_that_is_named_several_times_is_taken_once(library: Path) -> None:
    again = [str(library), str(library / "b.mp4"), str(library / "deep" / ".." / "b.mp4")]
    assert len(find_videos(again, [str(library / "a.MKV")]).videos) == 3


def test_patterns_reach_any_depth_and_names_that_look_like_one_are_names(library: Path) -> None:
    found = find_videos([f"{library}/**/*.webm", f"{library}/?.MKV"]).videos
    assert names(found, library) == ["a.MKV", "deep/er/[1].webm"]
    assert len(find_videos([str(library / "deep" / "er" / "[1].webm")]).videos) == 1


def test_a_file_is_taken_whatever_its_name_and_even_if_it_is_missing(library: Path) -> None:
    given = [str(library / "notes.txt"), str(library / "missing")]
    assert names(find_videos(given).videos, library) == ["missing", "notes.txt"]


@pytest.mark.parametrize("given", ["empty", "*.avi"])
def test_nothing_found_is_an_error_that_names_what_was_given(library: Path, given: str) -> None:
    (library / "empty").mkdir()
    with pytest.raises(UsageError) as raised:
        find_videos([str(library / given)])
    assert given in raised.value.message


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_cannot_be_read_is_told(library: Path) -> None:
    (library / "deep").chmod(0)
    try:
        ((folder, _),) = find_videos([str(library)]).unreadable
    finally:
        (library / "deep").chmod(0o700)
    assert folder == library / "deep"


def test_shards_are_equal_disjoint_and_complete() -> None:
    videos = [Path(f"{i:02}.mp4") for i in range(11)]
    shares = [share_of(videos, f"{i}/3") for i in (1, 2, 3)]
    assert sorted(video for share in shares for video in share) == videos
    assert sorted(map(len, shares)) == [3, 4, 4]


# ---- reading ahead


def test_reading_ahead_keeps_order_and_never_holds_more_than_its_depth() -> None:
    alive, most = 0, 0

    def items() -> Generator[int, None, None]:
        nonlocal alive, most
        for number in range(30):
            alive += 1
            most = max(most, alive)
            yield number

    got = []
    for number in ahead(items(), 3):
        time.sleep(0.002)
        got.append(number)
        alive -= 1
    assert got == list(range(30))
    assert 2 <= most <= 4  # One is counted down here before the next is asked for.


def test_what_reading_raises_comes_after_what_was_read_before() -> None:
    def items() -> Generator[int, None, None]:
        yield 1
        raise KeyError("gone")

    read = ahead(items(), 4)
    assert next(read) == 1
    with pytest.raises(KeyError, match="gone"):
        next(read)


def test_closing_ends_the_thread_and_closes_what_it_reads() -> None:
    closed = threading.Event()

    def items() -> Generator[int, None, None]:
        try:
            yield from range(100)
        finally:
            closed.set()

    read = ahead(items(), 2)
    next(read)
    read.close()
    assert closed.is_set()
    assert not [t for t in threading.enumerate() if t.name == "ahead"]


# ---- the work


@pytest.fixture
def videos(tmp_path: Path) -> list[Path]:
    """Three different videos."""
    return [copy(tmp_path / f"{i}.mp4", i) for i in range(3)]


def copy(path: Path, number: int) -> Path:
    """The sample under another digest."""
    path.write_bytes(SAMPLE.read_bytes() + b"\0" * number)
    return path


def precompute(qa: VideoQA, videos: list[Path]) -> Iterator[Outcome]:
    return prepare_library(qa, videos, LocalRunner(qa))


def outcomes(qa: VideoQA, videos: list[Path]) -> dict[str, Outcome]:
    return {outcome.path.name: outcome for outcome in precompute(qa, videos)}


def test_every_video_is_stored_and_not_computed_again(videos: list[Path]) -> None:
    with VideoQA() as qa:
        first = outcomes(qa, videos)
        assert all(isinstance(found, Computed) for found in first.values())
        assert qa.ask(videos[1], "how many shapes are there?").cache_hit
    with VideoQA() as qa:
        again = outcomes(qa, videos)
        assert all(isinstance(found, Skipped) for found in again.values())
        assert not qa._resources.host.has(qa.model_plan, vision=False), (
            "nothing was to be computed, yet the weights were loaded"
        )


def test_what_is_stored_is_what_ask_would_have_stored(videos: list[Path], tmp_path: Path) -> None:
    """The same numbers from the same frames, under the same key."""
    found = []
    for name in ("asked", "prepared"):
        with VideoQA(cache_dir=tmp_path / name) as qa:
            if name == "asked":
                qa.prepare(videos[2])
            else:
                outcomes(qa, videos)
            (entry,) = [e for e in qa.store.beginning("") if e.label["video"] == str(videos[2])]
            kv = qa.store.load(qa.store.find(entry.identity), device="cpu", room=0)
        assert kv is not None
        assert all(kv.facts["seconds"][s] > 0 for s in ("decode", "encode", "merge", "prefill"))
        numbers = [tensor.tolist() for tensor in kv.keys + kv.values]
        found.append((entry.identity, numbers, kv.facts["decode"]))
    assert found[0] == found[1]


def test_equal_bytes_are_computed_once(videos: list[Path]) -> None:
    twin = shutil.copy(videos[0], videos[0].with_name("9.mp4"))
    with VideoQA() as qa:
        found = outcomes(qa, [*videos, twin])
        assert len(qa.store.entries()) == 3
    assert found["9.mp4"] == Skipped(Path(twin), f"same bytes as {videos[0]}", twin=videos[0])


def test_a_video_that_fails_is_told_and_so_is_its_twin(
    videos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = shutil.copy(videos[1], videos[1].with_name("9.mp4"))
    frames = Compute.frames

    def breaks(compute: Compute, request: Any, clock: Any) -> Any:
        read = frames(compute, request, clock)
        if request.path != videos[1]:
            return read

        def chunks() -> Generator[FrameChunk, None, None]:
            yield next(iter(read.chunks))
            raise RuntimeError("the reader broke")

        return read._replace(chunks=chunks())

    monkeypatch.setattr(Compute, "frames", breaks)
    with VideoQA() as qa:
        found = outcomes(qa, [*videos, twin])
    failed = found["1.mp4"]
    assert isinstance(failed, Failed)
    assert failed.error == "RuntimeError: the reader broke"
    assert "breaks" in failed.traceback or "chunks" in failed.traceback
    assert isinstance(found["9.mp4"], Failed)
    assert isinstance(found["0.mp4"], Computed)
    assert isinstance(found["2.mp4"], Computed)


def test_a_model_that_breaks_on_one_video_leaves_the_next_alone(
    videos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read of the broken one must not be taken for the next one's frames."""
    with VideoQA() as qa:
        encode, calls = type(qa.model()).encode, []

        def breaks(model: Any, chunk: FrameChunk, frames: int) -> Any:
            calls.append(frames)
            if len(calls) == 2:
                raise MemoryError("no memory left")
            return encode(model, chunk, frames)

        monkeypatch.setattr(type(qa.model()), "encode", breaks)
        # The broken one is left with chunks still to come.
        one_frame_a_chunk = partial(runtime_compute.read_frames, max_chunk_bytes=1)
        monkeypatch.setattr(runtime_compute, "read_frames", one_frame_a_chunk)
        found = outcomes(qa, videos)
    assert isinstance(found["0.mp4"], Failed)
    assert isinstance(found["1.mp4"], Computed)
    assert isinstance(found["2.mp4"], Computed)


def test_two_runs_at_once_compute_each_video_once(videos: list[Path]) -> None:
    def run(order: list[Path]) -> list[Outcome]:
        with VideoQA() as qa:
            return list(precompute(qa, order))

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(run, [videos, videos[::-1]])
    found = [*one, *other]
    assert sum(isinstance(outcome, Computed) for outcome in found) == 3
    assert sum(isinstance(outcome, Skipped) for outcome in found) == 3


def test_decoding_of_the_next_video_overlaps_the_models_work_on_this_one(
    videos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = threading.Event()
    frames, prefill = Compute.frames, Compute.prefill

    def shown(compute: Compute, request: Any, clock: Any) -> Any:
        if request.path == videos[1]:
            opened.set()
        return frames(compute, request, clock)

    def waits(compute: Compute, *args: Any, **kwargs: Any) -> Any:
        assert opened.wait(30), "the second video was not opened while the first was prefilled"
        return prefill(compute, *args, **kwargs)

    monkeypatch.setattr(Compute, "frames", shown)
    monkeypatch.setattr(Compute, "prefill", waits)
    with VideoQA() as qa:
        assert all(isinstance(found, Computed) for found in outcomes(qa, videos[:2]).values())


# ---- space

Disk = namedtuple("Disk", "total used free")


def test_the_estimate_is_close_to_what_is_stored(videos: list[Path]) -> None:
    with VideoQA() as qa:
        wanted = estimate(qa, videos)
        stored = sum(found.bytes for found in outcomes(qa, videos).values())
    assert wanted is not None
    assert wanted.bytes == pytest.approx(stored, rel=0.05)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "internvl", "llava_video"])
def test_visual_tokens_are_counted_before_a_model_is_loaded(tmp_path: Path, family: str) -> None:
    """Exactly, or not much too many where frames keep their aspect ratio."""
    makes = {"internvl": internvl, "llava_video": llava_video}
    make = makes.get(family) or partial(qwen_vl, family=family, pixels=(256, 512 * 512))
    with VideoQA(model=str(make(tmp_path / "model"))) as qa:
        plan = qa.request(SAMPLE).plan
        width, height = plan.size
        count = token_count(qa.model_plan.checkpoint, len(plan.times_s), width=width, height=height)
        (found,) = precompute(qa, [SAMPLE])
    assert isinstance(found, Computed), found
    assert count is not None
    most = 1.5 if "qwen" in family else 1
    assert found.tokens.video_full <= count.visual <= most * found.tokens.video_full


def test_more_than_the_caches_bound_is_refused_before_the_work(videos: list[Path]) -> None:
    with VideoQA(max_bytes=1 << 20) as qa, pytest.raises(CacheError, match="bounded") as raised:
        check_space(qa, estimate(qa, videos))
    assert "--max-bytes" in raised.value.hint


def test_more_than_the_disk_holds_is_refused_before_the_work(
    videos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: Disk(1 << 30, 1 << 30, 1 << 20))
    with VideoQA(max_bytes=1 << 30) as qa, pytest.raises(CacheError, match="free"):
        check_space(qa, estimate(qa, videos))
    with VideoQA(max_bytes=1 << 30) as qa:
        check_space(qa, Estimate(1, 1 << 19))


def test_the_run_stops_before_it_would_push_out_what_it_stored(videos: list[Path]) -> None:
    with VideoQA(max_bytes=1_700_000) as qa:
        found = list(precompute(qa, videos))
        assert [type(outcome) for outcome in found] == [Computed, Computed, Stopped]
        assert len(qa.store.entries()) == 2


def test_the_run_stops_before_the_disk_is_full(
    videos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    stored: list[Outcome] = []
    left = {0: 10 << 20, 1: 5 << 20}
    disk = Disk(100 << 20, 0, 0)
    monkeypatch.setattr("shutil.disk_usage", lambda path: disk._replace(free=left[len(stored)]))
    with VideoQA(max_bytes=1 << 30) as qa:
        for outcome in precompute(qa, videos):
            stored.append(outcome)
    assert [type(outcome) for outcome in stored] == [Computed, Stopped]
    assert "nearly full" in stored[-1].reason
    assert stored[-1].path == videos[1]


def test_a_video_that_the_other_reader_had_to_read_does_not_end_the_work(
    videos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = runtime_compute.read_frames

    def other(path: Path, *args: Any, report: DecodeReport, **options: Any) -> Any:
        yield from sound(path, *args, report=report, **options)
        if path.name == "0.mp4":
            report.fallback = "av crashed"
            report.warnings.append("read with decord")

    monkeypatch.setattr(runtime_compute, "read_frames", other)
    with VideoQA() as qa:
        found = outcomes(qa, videos)
    assert isinstance(found["0.mp4"], Failed)
    assert "read with decord" in found["0.mp4"].error
    assert isinstance(found["1.mp4"], Computed)
    assert isinstance(found["2.mp4"], Computed)
