"""A stored KV is the one of the bytes it is stored under, whatever happens to files meanwhile."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sttm_cli.base.errors import DisturbedError, ModelError, VideoError
from sttm_cli.base.types import DecodeReport
from sttm_cli.decode import digest, file, plan_frames, read_frames, video_version
from sttm_cli.decode.isolated import probe_isolated
from sttm_cli.runtime import request
from sttm_cli.runtime.compute import Compute
from sttm_cli.runtime.session import VideoQA
from sttm_cli.store import NoStore
from tests.attack import swaps
from tests.checkpoints_llava import llava_video
from tests.decode.made import Make, numbered

SAMPLE = Path(__file__).parents[2] / "docs" / "sample.mp4"
QUESTION = "how many shapes are there?"


def flip_a_byte(path: Path) -> None:
    """Change a byte in place and put the modification time back."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-5, os.SEEK_END)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_byte_changed_behind_an_unchanged_time_is_a_miss(tmp_path: Path) -> None:
    video = Path(shutil.copy(SAMPLE, tmp_path / "video.mp4"))
    with VideoQA() as qa:
        qa.ask(video, QUESTION)
    flip_a_byte(video)
    with VideoQA() as qa:
        assert not qa.ask(video, QUESTION).cache_hit


def test_a_second_change_within_a_step_of_the_file_systems_clock_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "version_key", lambda path, found: str(path))
    video, memo = tmp_path / "video.mp4", NoStore()
    video.write_bytes(b"one")
    first = digest(video, memo)
    video.write_bytes(b"two")
    assert digest(video, memo) != first


@pytest.mark.parametrize("fact", [{"duration_s": 7.99}, {"start_s": 0.04}, {"transfer": "pq"}])
def test_what_another_version_reads_from_the_header_is_another_entry(
    monkeypatch: pytest.MonkeyPatch, fact: dict[str, Any]
) -> None:
    with VideoQA() as qa:
        before, probe = qa.request(SAMPLE), request.remembered_probe
        monkeypatch.setattr(
            request, "remembered_probe", lambda *a, **k: replace(probe(*a, **k), **fact)
        )
        after = qa.request(SAMPLE)
    assert after.plan.times_s == before.plan.times_s
    assert after.key != before.key


def test_a_weight_changed_behind_an_unchanged_time_is_a_miss(
    random_model: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(random_model, tmp_path / "model"))
    with VideoQA(model=model, max_new_tokens=2) as qa:
        qa.ask(SAMPLE, QUESTION)
    flip_a_byte(model / "model.safetensors")
    with VideoQA(model=model, max_new_tokens=2) as qa:
        assert not qa.ask(SAMPLE, QUESTION).cache_hit


def test_a_video_replaced_while_it_is_decoded_is_not_stored_as_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = Path(shutil.copy(SAMPLE, tmp_path / "video.mp4"))
    other = Make(pts=range(20)).write(tmp_path / "other.mp4")

    encoded = Compute.visual_tokens

    def replacing(*arguments: Any) -> Any:
        shutil.copy(other, video)
        return encoded(*arguments)

    with monkeypatch.context() as replaced, VideoQA() as qa:
        replaced.setattr(Compute, "visual_tokens", replacing)
        with pytest.raises(VideoError, match="changed while it was read"):
            qa.ask(video, QUESTION)
    with VideoQA() as qa:
        assert not qa.ask(SAMPLE, QUESTION).cache_hit


def test_a_model_replaced_while_it_is_loaded_is_refused(random_model: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(random_model, tmp_path / "model"))
    with VideoQA(model=model) as qa:
        qa.request(SAMPLE)
        flip_a_byte(model / "model.safetensors")
        with pytest.raises(ModelError, match="changed while it was read"):
            qa.ask(SAMPLE, QUESTION)


def test_a_name_that_is_no_text_is_a_name(tmp_path: Path) -> None:
    video = Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.mp4"))
    try:
        shutil.copy(SAMPLE, video)
    except OSError:
        pytest.skip("this file system takes no such names")
    with VideoQA() as qa:
        assert not qa.ask(video, QUESTION).cache_hit
        assert [entry.label["video"] for entry in qa.store.entries()]
    with VideoQA() as qa:
        assert qa.ask(video, QUESTION).cache_hit


def test_a_shard_below_the_folder_that_was_replaced_is_a_miss(tmp_path: Path) -> None:
    model = llava_video(tmp_path / "model")
    index = model / "model.safetensors.index.json"
    named = json.loads(index.read_text())
    (model / "w").mkdir()
    for shard in set(named["weight_map"].values()):
        (model / shard).rename(model / "w" / shard)
    named["weight_map"] = {name: f"w/{shard}" for name, shard in named["weight_map"].items()}
    index.write_text(json.dumps(named))
    with VideoQA(model=model, max_new_tokens=2, frames=4) as qa:
        qa.ask(SAMPLE, QUESTION)
    with VideoQA(model=model, max_new_tokens=2, frames=4) as qa:
        assert qa.ask(SAMPLE, QUESTION).cache_hit
    flip_a_byte(next((model / "w").iterdir()))
    with VideoQA(model=model, max_new_tokens=2, frames=4) as qa:
        assert not qa.ask(SAMPLE, QUESTION).cache_hit


def test_files_swapped_while_they_are_read_give_right_answers_or_an_error(tmp_path: Path) -> None:
    videos, cache = swaps.two_videos(tmp_path), tmp_path / "cache"
    right = swaps.right_answers(videos, tmp_path)
    with swaps.swapping(*videos, every_s=0.05):
        problems = [swaps.problem(videos[n % 2], right, cache) for n in range(24)]
    assert problems == [""] * 24
    assert swaps.wrongly_stored(videos, cache) == []


def test_images_swapped_while_they_are_read_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(4):
        Image.fromarray(numbered(number)).save(folder / f"{number}.png")
    seen, plan = video_version(folder), plan_frames(probe_isolated(folder), max_frames=4)
    chunks = read_frames(folder, plan, report=DecodeReport(), version=seen, max_chunk_bytes=1)
    next(chunks)
    swaps.swap(folder / "2.png", folder / "3.png")
    with pytest.raises(DisturbedError, match="changed while it was read"):
        list(chunks)


@pytest.mark.parametrize("reader", ["av", "decord"])
def test_a_file_swapped_while_its_frames_are_read_gives_no_frames_of_the_other(
    tmp_path: Path, reader: str
) -> None:
    videos = swaps.two_videos(tmp_path)
    seen = video_version(videos[0])
    plan = plan_frames(probe_isolated(videos[0]), max_frames=8, decoder=reader)
    swaps.swap(*videos)
    with pytest.raises(DisturbedError, match="changed while it was read"):
        list(read_frames(videos[0], plan, report=DecodeReport(), version=seen))


def test_a_file_that_is_overwritten_while_it_is_open_is_refused(tmp_path: Path) -> None:
    video = Path(shutil.copy(SAMPLE, tmp_path / "video.mp4"))
    opened = file.open_file(video)
    opened.__enter__().read(1000)
    flip_a_byte(video)
    with pytest.raises(DisturbedError, match="changed while it was read"):
        opened.__exit__(None, None, None)


def test_a_file_that_was_only_linked_since_it_was_digested_is_read(tmp_path: Path) -> None:
    video = Path(shutil.copy(SAMPLE, tmp_path / "video.mp4"))
    with VideoQA(no_cache=True) as qa:
        request = qa.request(video)
        os.link(video, tmp_path / "backup.mp4")
        assert not qa.prepare(request).cache.hit
