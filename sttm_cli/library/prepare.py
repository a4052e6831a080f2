"""Probe and prepare one video of a library."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from functools import lru_cache

from sttm_cli.base.errors import SttmError
from sttm_cli.base.results import Clock
from sttm_cli.base.types import Frames
from sttm_cli.library.outcome import (
    STORED,
    Computed,
    Failed,
    Job,
    Outcome,
    Skipped,
    Stopped,
    Video,
)
from sttm_cli.library.space import needed_bytes
from sttm_cli.runtime.session import VideoQA
from sttm_cli.settings.settings import Settings

NOT_STORED = "its KV could not be stored"


def prepare_one(settings: Settings, video: Video) -> Outcome:
    """Prepare one video in the current process: the entry point for remote workers.

    Arguments and outcome can be pickled. The model stays loaded in the process for the next video
    with the same settings.
    """
    return prepare_with(_session(settings), video)


def prepare_with(
    qa: VideoQA, video: Video, admit: Callable[[Job], Outcome | None] = lambda job: None
) -> Outcome:
    """Prepare one video with a session, unless `admit` refuses it; keeps no fetched copy."""
    try:
        found = look(qa, video)
        if not isinstance(found, Job):
            return found
        return admit(found) or prepare(qa, found)
    finally:
        qa.forget(video)


def look(qa: VideoQA, video: Video) -> Job | Skipped | Failed:
    """Probe a video: read its header and digest its bytes, without decoding.

    A remote video is fetched unless it is known to be stored; a job's copy exists until it is
    forgotten.
    """
    try:
        known = None if qa.settings.refresh else qa.known(video)
        if known is not None:
            digest = (known.identity or {}).get("video", {}).get("digest", "")
            return Skipped(video, STORED, bytes=known.bytes, key=known.key, digest=digest)
        request = qa.request(video)
        entry = qa.store.stored(request.identity)
        if entry is None or qa.settings.refresh:
            return Job(request, needed_bytes(qa, request.plan))
    except Exception as error:
        qa.forget(video)
        return failed(video, error)
    qa.forget(video)
    return Skipped(video, STORED, bytes=entry.bytes, key=request.key, digest=request.digest)


def prepare(
    qa: VideoQA, job: Job, *, clock: Clock | None = None, frames: Frames | None = None
) -> Outcome:
    """Compute and store a video's KV, from `frames` if they are decoded elsewhere.

    Raises ModelError or OutOfMemoryError if the model cannot be loaded; any other error becomes the
    outcome `Failed`.
    """
    # Outside the `try`: failing to load the model is not the video's fault.
    qa.model()
    clock = clock or Clock()
    frames = frames or qa.compute.frames(job.request, clock)
    try:
        made = qa.add(job.request, clock, frames)
    except Exception as error:
        return failed(job.path, error)
    if made is None:
        return Skipped(
            job.path, STORED, bytes=job.need or 0, key=job.key, digest=job.request.digest
        )
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
        key=job.key,
        digest=job.request.digest,
    )


def failed(path: Video, error: Exception) -> Failed:
    """Return the outcome for a video whose preparation raised `error`."""
    if isinstance(error, SttmError):
        return Failed(path, error.message)
    first = (str(error).strip().splitlines() or [""])[0]
    trace = "".join(traceback.format_exception(error))
    return Failed(path, f"{type(error).__name__}: {first[:300]}", trace)


@lru_cache(maxsize=1)
def _session(settings: Settings) -> VideoQA:
    return VideoQA(settings)
