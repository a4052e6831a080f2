"""Probe a video file: the facts in its header and its first frame."""

from __future__ import annotations

import math
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

from sttm_cli.base.errors import VideoError
from sttm_cli.base.system import FileFacts
from sttm_cli.base.types import VideoInfo
from sttm_cli.decode.file import NEEDED, changed, open_file

NO_SOUND = "the video's sound is ignored: a model sees its frames only"

FIRST_PACKETS = 300
"""Maximum packets before the first frame; broken starts are longer than good ones."""

TRANSFERS = {16: "pq", 18: "hlg"}
"""FFmpeg's numbers of the HDR transfer functions (AVCOL_TRC_SMPTE2084, AVCOL_TRC_ARIB_STD_B67)."""

LEAST_THERE = 0.9
"""A file with less than this share of the duration in its header counts as truncated."""

REVISION = 3
"""Changes whenever remembered probes become invalid."""


def remembered_probe(
    path: Path, memo: FileFacts, *, image_fps: float = 1.0, version: str = ""
) -> VideoInfo:
    """Like `probe`, but looked up if this version of the file was probed before.

    A folder counts as a video of its images, `image_fps` per second. Raises DisturbedError if the
    file does not have `version` (of `video_version`, if given).
    """
    if path.is_dir():
        from sttm_cli.decode.image_folder import folder_version

        seen, settled = folder_version(path), True
        key = f"probe:{REVISION}:{seen}|{image_fps}"
    else:
        with open_file(path, version) as file:
            seen, settled = file.version, file.is_settled
        key = f"probe:{REVISION}:{seen}"
    if version and seen != version:
        raise changed(path)
    known = memo.get(key)
    if known is not None:
        try:
            return VideoInfo(**{**known, "notes": tuple(known["notes"])})
        except (KeyError, TypeError):
            pass
    from sttm_cli.decode.isolated import probe_isolated

    info = probe_isolated(path, image_fps=image_fps, version=seen)
    if settled:
        memo.set(key, {**asdict(info), "notes": list(info.notes)})
    return info


def probe(path: Path, version: str = "") -> VideoInfo:
    """Read the header of the best video stream, and its first frame for facts outside of headers.

    Raises VideoError for a file that is not a readable video, DisturbedError as `open_file`.
    """
    from sttm_cli.decode.container import open_video

    with open_video(path, version) as (container, stream):
        # Everything is read before the file is closed, which frees its streams.
        first = _first_frame(container, stream)
        start = _start_s(stream, first)
        duration = _duration_s(container, stream, start)
        facts = _facts(path, container, stream) | _picture_facts(stream, first)
        missing = _missing(container, stream, duration)
    if duration is None:
        with open_video(path, version) as (container, stream):
            duration = _scanned_s(container, stream, start)
    if not duration:
        raise VideoError(f"{path} has no duration: it holds no video data", NEEDED)
    if not (facts["width"] and facts["height"]):
        raise VideoError(f"{path} does not give the size of its picture", NEEDED)
    return VideoInfo(
        **{**facts, "notes": (*missing, *facts["notes"])}, duration_s=duration, start_s=start
    )


def _facts(path: Path, container: Any, stream: Any) -> dict[str, Any]:
    names = container.format.name.split(",")
    suffix = path.suffix.lower().lstrip(".")
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    return {
        "container": suffix if suffix in names else names[0],
        "codec": stream.codec_context.codec.canonical_name,
        "fps": rate if math.isfinite(rate) else 0.0,
        "has_audio": _has_audio(container),
        "notes": _notes(container),
    }


def _notes(container: Any) -> tuple[str, ...]:
    """Return notes for the user; never metadata, which can reveal where a video was taken."""
    videos = sum(1 for s in container.streams if s.type == "video")
    streams = [f"of {videos} video streams the best one is read"] if videos > 1 else []
    return (*streams, *([NO_SOUND] if _has_audio(container) else []))


def _missing(container: Any, stream: Any, duration: float | None) -> tuple[str, ...]:
    """Return a note if an AVI ends earlier than its header says.

    FFmpeg shortens the duration of a truncated AVI to the data that exist: no lost frame would be
    requested, and nothing else would report the loss.
    """
    rate = stream.average_rate
    if "avi" not in container.format.name.split(",") or not (duration and rate and stream.frames):
        return ()
    declared = float(stream.frames / rate)
    if duration >= LEAST_THERE * declared:
        return ()
    return (
        f"the file is cut off: its header promises {declared:.1f} s of video, "
        f"its data end after {duration:.1f} s",
    )


def _has_audio(container: Any) -> bool:
    return any(stream.type == "audio" for stream in container.streams)


def _first_frame(container: Any, stream: Any) -> Any | None:
    """Return the first frame that decodes, or None; reading then reports the loss."""
    from sttm_cli.decode.container import decode, packets_of

    for number, packet in enumerate(packets_of(container, stream)):
        frames, _ = decode(packet)
        if frames:
            return frames[0]
        if number >= FIRST_PACKETS:
            break
    return None


def _start_s(stream: Any, first: Any | None) -> float:
    pts = first.pts if first is not None and first.pts is not None else stream.start_time
    return float(pts * stream.time_base) if pts is not None else 0.0


def _duration_s(container: Any, stream: Any, start: float) -> float | None:
    """Return the seconds from the first frame to the end by the header; None if not stated."""
    if stream.duration:
        return _positive(float(stream.duration * stream.time_base))
    if container.duration is None:
        return None
    # The container's duration counts from its own start, which other streams may set; in Matroska
    # and WebM it counts from 0.
    from_zero = "matroska" in container.format.name
    offset = start if from_zero else start - (container.start_time or 0) / 1e6
    return _positive(container.duration / 1e6 - max(0.0, offset))


def _positive(seconds: float) -> float | None:
    return seconds if 0 < seconds < math.inf else None


def _scanned_s(container: Any, stream: Any, start: float) -> float | None:
    """Return the duration by the packets' times, for recordings cut off without a header."""
    from sttm_cli.decode.container import packets_of

    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    end, count = 0.0, 0
    for packet in packets_of(container, stream):
        if packet.size:
            count += 1
            if packet.pts is not None:
                length = (packet.duration or 0) * stream.time_base or 1 / rate
                end = max(end, float(packet.pts * stream.time_base + length))
    return _positive(end - start) if end > start else _positive(float(count / rate))


def _picture_facts(stream: Any, first: Any | None) -> dict[str, Any]:
    """Return width, height (with square pixels), clockwise rotation and transfer function."""
    from sttm_cli.decode.pixels import Orientation, orientation

    context = stream.codec_context
    source = first if first is not None else context
    turned = orientation(first) if first is not None else Orientation()
    width, height = source.width, source.height
    aspect = stream.sample_aspect_ratio or context.sample_aspect_ratio or Fraction(1)
    # A difference within 1 % is invisible, and resampling would blur.
    if 0.1 < aspect < 10 and abs(aspect - 1) > 0.01:
        width = max(1, round(width * aspect))
    if turned.transpose:
        width, height = height, width
    return {
        "width": width,
        "height": height,
        "rotation": turned.rotation,
        "transfer": TRANSFERS.get(int(source.color_trc or 0), "sdr"),
    }
