"""Hostile addresses (`addresses.py`), as a video's and as a server's: each is answered rightly or
refused, within bounds of bytes, memory and seconds, and nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import psutil

from sttm_cli.base.errors import ContextError, UsageError, VideoError
from sttm_cli.decode import download, web_page
from sttm_cli.serve import client, downloads
from sttm_cli.serve.downloads import Downloads
from sttm_cli.serve.options import Options
from sttm_cli.settings.settings import Settings
from tests.attack.addresses import MOST_BYTES, START, Case, cases
from tests.attack.asking import QUESTION, SAMPLE, Tried, answered, asked
from tests.attack.site import MOST_SENT, Site, serving

LONGEST_S, LONGEST_PAGE_S = 20.0, 80.0
"""Until a case ends, on a machine that does other work as well."""
FLAGS = ("--frames", 2, "--max-download", MOST_BYTES)


def attack(rng: random.Random, folder: Path) -> Iterator[Tried]:
    temporary = folder / "temporary"
    temporary.mkdir()
    right = _right(folder)
    # From here on: torch makes a folder of its own there when it is imported.
    os.environ["TMPDIR"], tempfile.tempdir = str(temporary), None
    secret = folder / "secret.mp4"
    secret.write_bytes(SAMPLE.read_bytes() + b"secret")
    with serving() as site:
        for case in cases(rng, site, secret):
            site.begin(case.routes)
            face = "asked" if case.is_page else rng.choice(["asked", "asked", "served", "replied"])
            started = time.monotonic()
            with _patience(case):
                try:
                    if face == "asked":
                        problem = _asked(case, site, right)
                    else:
                        problem = (
                            _served(case, folder, site) if face == "served" else _replied(site)
                        )
                except Exception:
                    problem = traceback.format_exc()
            seconds = time.monotonic() - started
            problem = problem or _bound(case, site, seconds) or _left(temporary)
            yield Tried(f"{case.name}, {face}", problem)


def _right(folder: Path) -> dict[str, Any]:
    ended, problem = asked(SAMPLE, "--frames", 2, cache=folder / "cache", codes=(0,))
    if problem:
        raise AssertionError(problem)
    return answered(ended)


@contextlib.contextmanager
def _patience(case: Case) -> Iterator[None]:
    """Bounds of less than a second for what is slow, those of the product for all else."""
    if not case.is_slow:
        yield
        return
    with (
        mock.patch.multiple(download, HEAD_S=1.0, TIMEOUT_S=0.5, LONGEST_S=3.0),
        mock.patch.object(downloads, "_SILENCE_S", 0.5),
        mock.patch.object(web_page, "PATIENCE_S", 4.0),
    ):
        yield


def _asked(case: Case, site: Site, right: dict[str, Any]) -> str:
    cache = Path(tempfile.gettempdir()).with_name("cache")
    ended, problem = asked(*FLAGS, site.at(START), cache=cache, codes=case.codes)
    if problem:
        return problem
    if ended.code:
        shown = ended.out.strip() + ended.json["error"]["message"]
        return f"more than a line: {shown!r}" if len(shown.splitlines()) > 1 else ""
    given = answered(ended)
    whole = given["video"]["digest"] == right["video"]["digest"]
    if (whole or case.codes == (0,)) and given != right:
        return f"another answer: {given}"
    return ""


def _served(case: Case, folder: Path, site: Site) -> str:
    """As a server downloads it."""
    seconds = 1.0 if case.is_slow else 60.0
    options = Options(allow_private=True, max_download=MOST_BYTES, download_timeout=seconds)
    place = Path(tempfile.mkdtemp(dir=folder))
    try:
        with Downloads(place, options).use(site.at(START)) as path:
            data = path.read_bytes()
            path.unlink()
    except VideoError:
        return "the video was refused" if case.codes == (0,) else ""
    finally:
        left = [file.name for file in place.iterdir()]
    if left:
        return f"left behind: {left}"
    if case.codes == (0,) and data != SAMPLE.read_bytes():
        return "another video was downloaded"
    if case.is_cut_off:
        return "what broke off was taken for whole"
    return "" if len(data) <= MOST_BYTES else f"{len(data):,} bytes were downloaded"


def _replied(site: Site) -> str:
    """As the answer of a server of ours, none of which it is."""
    site.routes = {"/sttm/ask": site.routes[START]}
    with mock.patch.multiple(client, _HEARD_S=0.5, _WORK_S=1.0, _MOST_BYTES=MOST_BYTES):
        try:
            report = client.Server(None, site.at("")).ask(Settings(), "video.mp4", [QUESTION])
        except (client.ServerGone, UsageError, ContextError):
            return ""
    return f"it was taken for an answer: {report}"


def _bound(case: Case, site: Site, seconds: float) -> str:
    if seconds > (LONGEST_PAGE_S if case.is_page else LONGEST_S):
        return f"it took {seconds:.0f} s"
    if site.sent > MOST_SENT:
        return f"{site.sent:,} bytes were taken"
    if not case.is_page and (more := [path for path in site.asked if path.startswith("/named")]):
        return f"an address that a file names was asked for: {more}"
    return ""


def _left(temporary: Path) -> str:
    """Files, and processes that read pages, which are left behind."""
    if left := [path.name for path in temporary.iterdir()]:
        return f"left behind: {left}"
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "sttm_cli.decode.page_child" in child.cmdline():
                return f"left running: {child.pid}"
    return ""
