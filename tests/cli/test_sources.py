"""Videos that are no files: addresses, stdin, web pages, folders of images."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import psutil
import pytest

from sttm_cli.decode import bounded_http, download
from sttm_cli.runtime.session import VideoQA
from tests.cli.process import sttm_here
from tests.web import Site, serving

SAMPLE = Path(__file__).parents[2] / "docs" / "sample.mp4"
QUESTION = "how many shapes are there?"


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(SAMPLE) as site:
        yield site


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of temporary files; every test must leave it empty."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """The sample's frames, one a second, as 1.png to 8.png."""
    folder = tmp_path / "my images"
    folder.mkdir()
    with av.open(str(SAMPLE)) as container:
        frames = [f for f in container.decode(video=0) if f.time % 1 < 1e-6]
    for number, frame in enumerate(frames, 1):
        frame.to_image().save(folder / f"{number}.png")
    return folder


def test_an_address_is_answered_like_the_file_and_hits_its_cache(site: Site) -> None:
    file = sttm_here("ask", SAMPLE, QUESTION, "--json").json
    for path in ("video.mp4", "moved", "a name with spaces и кириллица.mp4"):
        report = sttm_here("ask", site.at(path), QUESTION, "--json").json
        assert report["cache"]["hit"]
        assert report["answers"] == file["answers"]
        assert report["video"] == {**file["video"], "path": site.at(path)}


def test_one_process_downloads_a_video_once(site: Site) -> None:
    with VideoQA(no_cache=True, frames=2) as qa:
        for _ in range(2):
            qa.ask(site.at("video.mp4"), QUESTION)
            qa.ask(SAMPLE, QUESTION)
    assert site.asked == ["/video.mp4"]


def test_many_addresses_in_one_process_leave_few_copies(site: Site, temporary: Path) -> None:
    with VideoQA(no_cache=True) as qa:
        for number in range(7):
            qa.request(site.at(f"{number}.mp4"))
        assert len(list(temporary.iterdir())) < 7


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("to-a-file", "302"),
        ("to-ftp", "ftp"),
        ("in-circles", "infinite loop"),
        ("broken-off", "broke off"),
        ("half-a-chunk", "broke off"),
        ("endless", "--max-download"),
        ("huge", "--max-download"),
        ("text", "not a video"),
        ("empty", "empty"),
    ],
)
def test_an_address_without_a_video_ends_with_3_and_names_it(
    site: Site, path: str, part: str
) -> None:
    ended = sttm_here("ask", site.at(path), QUESTION, "--max-download", "2M", "--json")
    assert ended.code == 3
    assert part in ended.json["error"]["message"]
    assert site.at(path) in ended.json["error"]["message"]
    assert len(ended.json["error"]["message"].splitlines()) == 1


@pytest.mark.parametrize("path", ["silent", "dripping"])
def test_a_download_that_stalls_is_given_up(
    site: Site, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(download, "TIMEOUT_S", 0.4)
    ended = sttm_here("ask", site.at(path), QUESTION)
    assert ended.code == 3
    assert site.at(path) in ended.err


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("dripping-head", "which is too slow"),
        ("dripping-chunk", "which is too slow"),
        ("endless-interim", "it sends more than 1,048,576 bytes"),
        ("endless-trailers", "it sends more than 5,048,576 bytes"),
    ],
)
def test_an_answer_without_end_is_given_up_wherever_it_goes_on(
    site: Site, monkeypatch: pytest.MonkeyPatch, path: str, part: str
) -> None:
    monkeypatch.setattr(download, "HEAD_S", 1.0)
    monkeypatch.setattr(download, "TIMEOUT_S", 0.8)
    started = time.monotonic()
    ended = sttm_here("ask", site.at(path), QUESTION, "--max-download", "2000000", "--json")
    assert ended.code == 3
    assert part in ended.json["error"]["message"]
    assert time.monotonic() - started < 15


def test_a_download_ends_after_hours_though_it_is_never_too_slow(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_http, "LEAST_SPEED", 1)
    monkeypatch.setattr(download, "LONGEST_S", 0.5)
    ended = sttm_here("ask", site.at("dripping"), QUESTION, "--json")
    assert ended.code == 3
    assert "which is too slow" in ended.json["error"]["message"]


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """That of a server at 127.0.0.1, which is trusted here."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed, which makes the server's certificate")
    key, made = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    more = ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    command_line = [*command.split(), *more, "-keyout", str(key), "-out", str(made)]
    subprocess.run(command_line, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made, key)
    monkeypatch.setenv("SSL_CERT_FILE", str(made))
    return context


def test_a_video_comes_over_tls_from_the_host_of_the_certificate_only(
    certificate: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(SAMPLE, certificate) as site:
        assert sttm_here("ask", site.at("video.mp4"), QUESTION).code == 0
        other = site.at("video.mp4").replace("127.0.0.1", "localhost")
        ended = sttm_here("ask", other, QUESTION)
        assert ended.code == 3
        assert "certificate" in ended.err
        monkeypatch.delenv("SSL_CERT_FILE")
        assert sttm_here("ask", site.at("again.mp4"), QUESTION).code == 3
    assert site.asked == ["/video.mp4"]


def test_the_proxies_of_the_environment_are_used(
    site: Site, certificate: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, site.at(""))
    monkeypatch.setenv("no_proxy", "")
    assert sttm_here("ask", "http://elsewhere.test/a.mp4", QUESTION).code == 0
    with serving(SAMPLE, certificate) as behind:
        assert sttm_here("ask", behind.at("b.mp4"), QUESTION).code == 0
        assert site.asked == ["http://elsewhere.test/a.mp4", f"CONNECT 127.0.0.1:{behind.port}"]
        assert behind.asked == ["/b.mp4"]


@pytest.mark.parametrize("address", ["rtsp://127.0.0.1/x", "http://", "http://127.0.0.1:1/x.mp4"])
def test_an_address_that_leads_nowhere_ends_with_3(address: str) -> None:
    ended = sttm_here("ask", address, QUESTION)
    assert ended.code == 3
    assert address in ended.err


def test_a_web_page_is_left_to_yt_dlp(site: Site) -> None:
    pytest.importorskip("yt_dlp")
    report = sttm_here("ask", site.at("page"), QUESTION, "--json").json
    assert report["answers"] == sttm_here("ask", SAMPLE, QUESTION, "--json").json["answers"]


def test_a_web_page_with_a_video_that_is_too_large_is_refused(site: Site) -> None:
    pytest.importorskip("yt_dlp")
    ended = sttm_here("ask", site.at("page"), QUESTION, "--max-download", "1K")
    assert ended.code == 3
    assert "--max-download" in ended.err


@pytest.mark.parametrize(
    ("page", "part"),
    [
        ("endless-page", "its page is larger than 32 MiB"),
        # Which of its bounds it meets first depends on the HTTP library that yt-dlp finds.
        ("bomb-page", "its page takes too much memory|larger than --max-download allows"),
        ("page-of-a-playlist", "its page is larger than 32 MiB"),
        ("page-of-a-long-playlist", "--max-download"),
    ],
)
def test_a_hostile_web_page_is_given_up_within_seconds_and_bounded_in_memory(
    site: Site, page: str, part: str
) -> None:
    pytest.importorskip("yt_dlp")
    watched = _watched("ask", site.at(page), QUESTION, "--max-download", "1M", "-q")
    assert watched.code == 3
    assert re.search(part, watched.err.splitlines()[0])
    assert len([line for line in watched.err.splitlines() if line.startswith("sttm:")]) == 1
    assert watched.peak_bytes < 2 << 30
    assert watched.seconds < 50


def test_a_web_page_that_drips_is_given_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("yt_dlp")
    monkeypatch.setattr("sttm_cli.decode.web_page.PATIENCE_S", 4.0)
    ended = sttm_here("ask", site.at("dripping-page"), QUESTION, "-q")
    assert ended.code == 3
    assert "nothing came for 4 s" in ended.err


def test_a_web_page_is_given_up_after_hours_though_bytes_still_come(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("yt_dlp")
    monkeypatch.setattr("sttm_cli.decode.web_page.LONGEST_S", 3.6)
    ended = sttm_here("ask", site.at("dripping-page"), QUESTION, "-q")
    assert ended.code == 3
    assert "it took longer than 0 hours" in ended.err


def test_no_process_is_left_of_a_web_page_whose_reader_was_killed(
    site: Site, temporary: Path
) -> None:
    pytest.importorskip("yt_dlp")
    process = subprocess.Popen(
        [sys.executable, "-m", "sttm_cli", "ask", site.at("dripping-page"), QUESTION, "-q"]
    )
    deadline = time.monotonic() + 60
    while not (children := _page_readers(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert children
    assert psutil.wait_procs(children, timeout=20)[1] == []
    for copy in temporary.iterdir():
        shutil.rmtree(copy)


def test_the_body_of_a_redirect_is_not_read(site: Site) -> None:
    report = sttm_here("ask", site.at("endless-redirect"), QUESTION, "--json").json
    assert report["answers"] == sttm_here("ask", SAMPLE, QUESTION, "--json").json["answers"]


@dataclass(frozen=True)
class _Watched:
    """How a command ended, its seconds, and the most memory that all its processes took at once."""

    code: int
    err: str
    seconds: float
    peak_bytes: int


def _watched(*arguments: str) -> _Watched:
    """Run `sttm ARGUMENTS`; killed where it takes more than 4 GiB or 100 s."""
    started, peak = time.monotonic(), 0
    process = subprocess.Popen(
        [sys.executable, "-m", "sttm_cli", *arguments], stderr=subprocess.PIPE, text=True
    )
    main = psutil.Process(process.pid)
    while process.poll() is None:
        taken = 0
        with contextlib.suppress(psutil.Error):
            taken = sum(each.memory_info().rss for each in [main, *main.children(recursive=True)])
        peak = max(peak, taken)
        if peak > 4 << 30 or time.monotonic() - started > 100:
            process.kill()
        time.sleep(0.02)
    _, err = process.communicate()
    return _Watched(process.returncode, err, time.monotonic() - started, peak)


def _page_readers(parent: int) -> list[psutil.Process]:
    """The processes that read web pages for the process `parent`."""
    with contextlib.suppress(psutil.Error):
        return [
            each
            for each in psutil.Process(parent).children(recursive=True)
            if "sttm_cli.decode.page_child" in each.cmdline()
        ]
    return []


def test_a_web_page_without_yt_dlp_says_what_to_install(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sttm_cli.decode.web_page.find_spec", lambda name: None)
    ended = sttm_here("ask", site.at("page"), QUESTION)
    assert ended.code == 3
    assert "pip install yt-dlp" in ended.err


def test_stdin_is_answered_like_the_file() -> None:
    report = sttm_here("ask", "-", QUESTION, "--json", stdin=SAMPLE.read_bytes()).json
    assert report["video"]["path"] == "-"
    assert sttm_here("ask", SAMPLE, QUESTION, "--json").json["cache"]["hit"]


@pytest.mark.parametrize(
    ("stdin", "part"),
    [(b"", "empty"), (b"no video\n" * 50, "not a video"), (bytes(3 << 20), "--max-download")],
)
def test_stdin_without_a_video_ends_with_3(stdin: bytes, part: str) -> None:
    ended = sttm_here("ask", "-", QUESTION, "--max-download", "2M", stdin=stdin)
    assert ended.code == 3
    assert "stdin" in ended.err
    assert part in ended.err


def test_stdin_cannot_hold_the_video_and_the_questions() -> None:
    ended = sttm_here("ask", "-", "-", stdin=SAMPLE.read_bytes())
    assert ended.code == 2
    assert "VIDEO -" in ended.err
    assert "QUESTION -" in ended.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_removes_the_copy(temporary: Path, number: int) -> None:
    process = reading_stdin(temporary)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else 128 + number)
    assert b"Traceback" not in err
    said = "interrupted" if number == signal.SIGINT else f"ended by signal {int(number)}"
    assert said.encode() in err


def test_a_hangup_that_the_caller_ignores_stays_ignored(temporary: Path) -> None:
    process = reading_stdin(temporary, "nohup")
    process.send_signal(signal.SIGHUP)
    out, _ = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, b"three\n")


def reading_stdin(temporary: Path, *before: str) -> subprocess.Popen[bytes]:
    """The command in a process of its own that has begun to copy a video from stdin."""
    process = subprocess.Popen(
        [*before, sys.executable, "-m", "sttm_cli", "ask", "-", QUESTION],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ.copy(),
    )
    assert process.stdin is not None
    process.stdin.write(SAMPLE.read_bytes())
    process.stdin.flush()
    waited = time.monotonic() + 120
    while not list(temporary.glob("sttm-*/video")) and time.monotonic() < waited:
        time.sleep(0.05)
    assert list(temporary.glob("sttm-*/video"))
    return process


def test_images_in_natural_order_are_a_video(images: Path) -> None:
    report = sttm_here("ask", images, QUESTION, "--json").json
    assert report["video"]["frame_times_s"] == [float(i) for i in range(8)]
    assert report["answers"] == sttm_here("ask", SAMPLE, QUESTION, "--json").json["answers"]
    assert sttm_here("ask", images, QUESTION, "--json").json["cache"]["hit"]


def test_a_renamed_or_changed_image_is_another_video(images: Path, tmp_path: Path) -> None:
    sttm_here("ask", images, QUESTION)
    moved = images.rename(tmp_path / "elsewhere")
    assert sttm_here("ask", moved, QUESTION, "--json").json["cache"]["hit"]
    (moved / "8.png").rename(moved / "9.png")
    assert not sttm_here("ask", moved, QUESTION, "--json").json["cache"]["hit"]


def test_the_rate_of_images_counts_even_where_the_times_are_equal(images: Path) -> None:
    for path in list(images.iterdir())[1:]:
        path.unlink()
    slow = sttm_here("ask", images, QUESTION, "--json", "--fps", "0.5").json
    fast = sttm_here("ask", images, QUESTION, "--json", "--fps", "2").json
    assert (slow["video"]["duration_s"], fast["video"]["duration_s"]) == (2, 0.5)
    assert not fast["cache"]["hit"]


def test_a_broken_image_is_left_out_and_named(images: Path) -> None:
    (images / "3.png").write_bytes(b"no image")
    data = (images / "5.png").read_bytes()
    (images / "5.png").write_bytes(data[: len(data) // 2])
    ended = sttm_here("ask", images, QUESTION, "--json")
    assert ended.json["video"]["frame_times_s"] == [0, 1, 3, 5, 6, 7]
    assert "2 of 8 frames" in ended.err
    assert "3.png" in ended.err
    assert "5.png" in ended.err


def test_a_folder_of_broken_images_ends_with_3(images: Path) -> None:
    for path in images.iterdir():
        path.write_bytes(b"")
    ended = sttm_here("ask", images, QUESTION)
    assert ended.code == 3
    assert "8 images" in ended.err


def test_a_decoder_for_files_cannot_be_asked_to_read_images(images: Path) -> None:
    ended = sttm_here("ask", images, QUESTION, "--decoder", "av")
    assert ended.code == 2
    assert "--decoder av" in ended.err


def test_inspect_takes_the_same_sources(site: Site, images: Path) -> None:
    common = ("--json", "--budgets", "0.5", "--repeat", "1")
    for video in (site.at("video.mp4"), str(images)):
        assert sttm_here("inspect", video, *common).json["video"]["path"] == video
