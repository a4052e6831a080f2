"""One video of a library: what it needs, and preparing it."""

from __future__ import annotations

import traceback
from functools import lru_cache
from pathlib import Path

from sttm_cli.base.errors import SttmError
from sttm_cli.base.results import Clock
from sttm_cli.base.types import Frames
from sttm_cli.library.outcome import STORED, Computed, Failed, Job, Outcome, Skipped, Stopped
from sttm_cli.library.space import needed_bytes
from sttm_cli.runtime.session import VideoQA
from sttm_cli.settings.settings import Settings

NOT_STORED = "its KV could not be stored"


def prepare_one(settings: Settings, video: Path) -> Outcome:
    """Prepare one video in whatever process this is: what a worker elsewhere is sent.

    Its arguments and its outcome can be pickled. The model stays loaded in the process for the
    next video with the same settings.
    """
    qa = _session(settings)
    found = look(qa, video)
    return prepare(qa, found) if isinstance(found, Job) else found


def look(qa: VideoQA, video: Path) -> Job | Skipped | Failed:
    """What a video needs: reads its header and its bytes, decodes nothing."""
    try:
        request = qa.request(video)
        entry = qa.store.stored(request.identity)
        if entry is not None and not qa.settings.refresh:
            return Skipped(video, STORED, bytes=entry.bytes, key=request.key)
        return Job(request, needed_bytes(qa, request.plan))
    except Exception as error:
        return failed(video, error)


def prepare(
    qa: VideoQA, job: Job, *, clock: Clock | None = None, frames: Frames | None = None
) -> Outcome:
    """Compute and store a video's KV, from `frames` where they are read elsewhere.

    Raises ModelError or OutOfMemoryError where the model cannot be loaded; everything else is
    the video's failure.
    """
    # A model that cannot be loaded is not the video's fault.
    qa.model()
    clock = clock or Clock()
    frames = frames or qa.compute.frames(job.request, clock)
    try:
        made = qa.add(job.request, clock, frames)
    except Exception as error:
        return failed(job.path, error)
    if made is None:
        return Skipped(job.path, STORED, bytes=job.need or 0)
    (kv, cache), report = made, frames.report
    if report.fallback:
        return Failed(job.path, f"it is not stored: {report.warnings[-1]}")
    if not cache.bytes:
        return Stopped(job.path, NOT_STORED)
    return Computed(
        path=job.path,
        bytes=cache.bytes,
        tokens=kv.tokens,
        video_s=job.video_s,
        seconds=clock.seconds(),
        warnings=tuple(report.warnings),
    )


def failed(path: Path, error: Exception) -> Failed:
    """The outcome for a video of which `error` was raised."""
    if isinstance(error, SttmError):
        return Failed(path, error.message)
    first = (str(error).strip().splitlines() or [""])[0]
    trace = "".join(traceback.format_exception(error))
    return Failed(path, f"{type(error).__name__}: {first[:300]}", trace)


@lru_cache(maxsize=1)
def _session(settings: Settings) -> VideoQA:
    return VideoQA(settings)
