"""Videos that are swapped by rename while they are asked about.

Each answer must be right for the digest in its report, or refused; nothing is ever stored under
the digest of the other file.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import numpy as np
import torch

from sttm_cli.base.types import PrefixKV
from sttm_cli.runtime.resources import Resources
from sttm_cli.runtime.session import VideoQA
from sttm_cli.store import LocalStore, NoStore
from sttm_cli.tiny.scenes import make_scene
from sttm_cli.tiny.textures import textured
from sttm_cli.tiny.video import write_video
from tests.attack.asking import SAMPLE, Tried, answered, asked, host, quiet

FRAMES = 4


def attack(rng: random.Random, folder: Path) -> Iterator[Tried]:
    """Ask while a thread swaps two videos every few milliseconds."""
    videos = two_videos(folder)
    right = right_answers(videos, folder)
    cache = folder / "cache"
    while True:
        every_s = rng.choice([0.005, 0.02, 0.05, 0.1, 0.25])
        with swapping(*videos, every_s=every_s):
            for video in videos * 4:
                yield Tried(f"swapped every {every_s} s", problem(video, right, cache))
        wrong = wrongly_stored(videos, cache)
        yield Tried("stored while swapped", ", ".join(wrong))
        # What is stored would answer from here on: nothing would be read any more.
        shutil.rmtree(cache, ignore_errors=True)


def problem(video: Path, right: dict[str, object], cache: Path) -> str:
    """What is wrong with one answer; "" for a right one and for a refusal."""
    ended, ending = asked(video, "--frames", FRAMES, cache=cache)
    if ending:
        return ending
    if ended.code == 3:
        message = ended.json["error"]["message"]
        return "" if "changed while it was read" in message else message
    given = answered(ended)
    return "" if given == right[given["video"]["digest"]] else f"another video's answer: {given}"


def two_videos(folder: Path) -> list[Path]:
    """Two videos of the same length and size, which give different answers."""
    one, other = folder / "one.mp4", folder / "other.mp4"
    shutil.copy(SAMPLE, one)
    write_video(other, make_scene(5, seconds=8), textured(np.random.default_rng(5)))
    return [one, other]


def right_answers(videos: Sequence[Path], folder: Path) -> dict[str, object]:
    """The answers by digest, from copies that nobody touches and no cache."""
    right = {}
    for video in videos:
        copy = Path(shutil.copy(video, folder / f"untouched-{video.name}"))
        ended, ending = asked(copy, "--frames", FRAMES, cache=None, codes=(0,))
        if ending:
            raise AssertionError(ending)
        given = answered(ended)
        right[given["video"]["digest"]] = given
    return right


def wrongly_stored(videos: Sequence[Path], cache: Path) -> list[str]:
    """The stored keys whose KV is not the one that their video gives, computed now."""
    with LocalStore(cache, warn=quiet) as store:
        resources = Resources(NoStore(), host=host())
        with VideoQA(frames=FRAMES, resources=resources) as qa:
            requests = {request.key: request for request in map(qa.request, videos)}
            wrong = []
            for entry in store.entries():
                request = requests.get(entry.key)
                if request is None:
                    wrong.append(f"{entry.key[:12]} is of neither video")
                    continue
                with store.find(request.identity) as lookup:
                    stored = store.load(lookup, device="cpu", room=0)
                computed = qa.prepare(request).kv
                if stored is None or not _same(stored, computed):
                    wrong.append(f"{entry.key[:12]} is not the KV of its video")
    return wrong


def _same(stored: PrefixKV, computed: PrefixKV) -> bool:
    pairs = zip(
        stored.keys + stored.values,
        computed.keys + computed.values,
        computed.lengths * 2,
        strict=True,
    )
    return stored.lengths == computed.lengths and all(
        torch.allclose(one[:n].float(), two[:n].float(), atol=1e-4) for one, two, n in pairs
    )


def swap(one: Path, other: Path) -> None:
    """Exchange two files by renaming them."""
    first, second = one.with_suffix(".first"), other.with_suffix(".second")
    os.link(one, first)
    os.link(other, second)
    # At every moment there is a file under both names.
    os.replace(second, one)
    os.replace(first, other)


@contextmanager
def swapping(one: Path, other: Path, *, every_s: float) -> Iterator[None]:
    """Within this context a thread swaps the two files."""
    done = Event()

    def run() -> None:
        while not done.wait(every_s):
            swap(one, other)

    thread = Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
