"""Hostile videos through `sttm ask`: an answer, or exit code 3; in bounded time and memory."""

from __future__ import annotations

import functools
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from sttm_cli.decode import container, isolated
from sttm_cli.runtime import session
from sttm_cli.runtime.resources import Resources
from sttm_cli.store import NoStore
from tests.cli.process import Ended, sttm_here
from tests.decode.made import Make, numbered
from tests.hostile import bombs, videos
from tests.web import serving

SAMPLE = Path(__file__).parents[2] / "docs" / "sample.mp4"
QUESTION = "how many shapes are there?"
LONGEST_S = 60
MOST_BYTES = 4 << 30

FRAGMENTED = {"movflags": "frag_keyframe+empty_moov"}
MADE = {
    "plain.mp4": Make(pts=range(40)),
    "fragmented.mov": Make(pts=range(40), container=FRAGMENTED),
    "vp9.webm": Make(
        "libvpx-vp9", pts=range(30), options={"deadline": "realtime", "cpu-used": "8"}
    ),
    "hevc.mkv": Make("libx265", pts=range(30), options={"x265-params": "log-level=none"}),
    "stream.ts": Make(pts=range(40)),
    "old.avi": Make("mpeg4", pts=range(40)),
    "flash.flv": Make("flv", pts=range(40)),
    "small.gif": Make("gif", pixels="rgb8", pts=range(8), size=(80, 48)),
}
EACH = 39
"""Damages of each of the eight videos above: 312."""


@pytest.fixture(scope="module")
def resources() -> Iterator[Resources]:
    """One loaded model for all of them."""
    resources = Resources(NoStore())
    yield resources
    resources.close()


@pytest.fixture
def ask(resources: Resources, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """`sttm ask` on a video, checked: its end, its time, and what it says."""
    warm = functools.partial(session.VideoQA, resources=resources)
    monkeypatch.setattr(session, "VideoQA", warm)

    def run(*video: object) -> Ended:
        started = time.monotonic()
        ended = sttm_here("ask", "--frames", 4, "--json", "--", *video, QUESTION)
        assert ended.code in (0, 3), (video, ended)
        assert "Traceback" not in ended.err
        assert time.monotonic() - started < LONGEST_S, video
        if ended.code == 3:
            assert ended.json["schema"] == "sttm.error/1"
            assert ended.json["error"]["hint"]
        else:
            film = ended.json["video"]
            lost = len(film["frame_times_s"]) < film["frames_asked"]
            assert not lost or "warning: " in ended.err, (video, ended)
        return ended

    return run


@pytest.fixture
def before() -> int:
    """The peak that earlier tests of this process have left: it never falls."""
    return peak_bytes()


def peak_bytes() -> int:
    """The most memory that this process or a finished child of it ever had."""
    isolated.end_children()
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return 1024 * max(resource.getrusage(kind).ru_maxrss for kind in kinds)


@pytest.mark.parametrize("name", MADE)
def test_damaged_videos_are_answered_or_refused(
    ask: Callable[..., Ended], tmp_path: Path, name: str, before: int
) -> None:
    sound = MADE[name].write(tmp_path / name)
    assert ask(sound).code == 0
    codes = [ask(damaged).code for damaged in videos.mutated(sound, tmp_path, EACH)]
    assert len(codes) == EACH
    assert {0, 3} == set(codes)
    assert peak_bytes() <= max(MOST_BYTES, before)


def test_a_folder_of_damaged_images_is_answered_from_the_sound_ones(
    ask: Callable[..., Ended], tmp_path: Path, before: int
) -> None:
    for ending in ("png", "jpg", "webp", "tif", "bmp"):
        sound = tmp_path / f"sound.{ending}"
        Image.fromarray(numbered(3)).save(sound)
        folder = tmp_path / ending
        folder.mkdir()
        codes = {ask(damaged).code for damaged in videos.mutated(sound, folder, 10)}
        assert codes <= {0, 3}
        assert ask(folder).code in (0, 3)
        sound.rename(folder / "0.png")
        assert ask(folder).code == 0
    assert peak_bytes() <= max(MOST_BYTES, before)


def test_what_is_no_video_is_refused(ask: Callable[..., Ended], tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)
    for path in (
        videos.text(tmp_path / "text.mp4"),
        videos.empty(tmp_path / "empty.mp4"),
        videos.noise(tmp_path / "noise.mp4"),
        videos.audio_only(tmp_path / "sound.mp4"),
        videos.streams_without_frames(tmp_path / "hollow.mp4"),
        pipe,
        Path("/dev/zero"),
    ):
        ended = ask(path)
        assert ended.code == 3
        assert path.name in ended.json["error"]["message"]


@pytest.mark.parametrize("scheme", ["path", "file", "pipe", "http", "tcp"])
def test_no_file_makes_another_one_or_an_address_be_opened(
    ask: Callable[..., Ended], tmp_path: Path, scheme: str
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with serving(SAMPLE) as site:
        victim = {
            "path": str(SAMPLE),
            "file": f"file://{SAMPLE}",
            # Who opens it for reading waits for ever.
            "pipe": str(pipe),
            "http": site.at("video.mp4"),
            "tcp": f"tcp://127.0.0.1:{site.port}",
        }[scheme]
        for path in bombs.nested(tmp_path, victim):
            assert ask(path).code == 3, path.name
    assert site.asked == []


def test_pictures_of_a_pattern_are_not_opened(ask: Callable[..., Ended], tmp_path: Path) -> None:
    for number in range(3):
        bombs.huge_picture(tmp_path / f"shot{number}.gif", side=16)
    (tmp_path / "shot%d.gif").write_bytes(b"GIF89a")
    assert ask(tmp_path / "shot%d.gif").code == 3


def test_small_files_that_ask_for_all_memory_do_not_get_it(
    ask: Callable[..., Ended], tmp_path: Path, before: int
) -> None:
    for path in (
        bombs.packed_header(tmp_path / "packed.mov"),
        bombs.endless_fragment(tmp_path / "endless.mp4"),
        bombs.huge_picture(tmp_path / "huge.gif"),
    ):
        assert ask(path).code == 3, path.name
    assert peak_bytes() <= max(MOST_BYTES, before)


def test_pictures_beyond_the_bound_are_not_decoded_though_the_header_is_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sttm_cli.decode.av_reader import read_sound
    from sttm_cli.decode.plan import plan_frames
    from sttm_cli.decode.probe import probe

    path = bombs.growing_picture(tmp_path / "growing.h264")
    plan = plan_frames(probe(path), max_frames=20, fps=25)
    assert len(list(read_sound(path, plan))) == len(plan.times_s)
    monkeypatch.setattr(container, "MAX_PIXELS", 64 * 48)
    assert len(list(read_sound(path, plan))) < len(plan.times_s)


NAMES = [
    " space first.mp4", "new\nline.mp4", "фильм 映画 🎬.mp4", "-x.mp4", "--json", "100%d.mp4",
    "a#b?c&d.mp4", "quo'te\".mp4", "concat:b.mp4", "http:b.mp4", "~", "[bold]b[", "x" * 250,
    "\x1b[2Jsteering.mp4",
    os.fsdecode(b"\xff\xfe.mp4"),
]  # fmt: skip


def test_any_file_name_will_do(
    ask: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        (tmp_path / name).write_bytes(SAMPLE.read_bytes())
        assert ask(name).code == 0, name
        assert ask(f"./{name}").json["video"]["path"] == f"./{name}"
        (tmp_path / name).write_bytes(b"none")
        refused = ask(name)
        assert refused.code == 3, name
        # A line for the reason and one for the next step, and nothing that steers a terminal.
        assert all(c.isprintable() for line in refused.err.split("\n") for c in line), name
        assert len([line for line in refused.err.splitlines() if line.startswith("  ")]) == 1
