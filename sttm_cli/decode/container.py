"""Open video files with PyAV: safely, and with clear errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av

from sttm_cli.base.errors import VideoError
from sttm_cli.decode.file import NEEDED, OpenFile, open_file

FORMATS = (
    # Containers with several tracks.
    "mov mp4 m4a 3gp 3g2 mj2 matroska webm avi mpegts mpeg asf flv live_flv ogg rm mxf gxf nut wtv "
    "dv nsv ivr kux swf "
    # A single raw video stream.
    "h264 hevc vvc av1 obu evc ivf m4v mpegvideo h261 h263 vc1 vc1test dirac dnxhd cavsvideo avs2 "
    "avs3 apv mjpeg mjpeg_2000 ingenient yuv4mpegpipe "
    # Animations, videos of games and old players, single pictures.
    "gif apng webp flic film_cpk roq smk bink ea jpegxl_anim png_pipe jpeg_pipe webp_pipe bmp_pipe "
    "tiff_pipe ppm_pipe jpegxl_pipe"
).split()
"""FFmpeg's names of the formats that are read. All others are refused, among them those that refer
to further files or addresses (hls, dash, concat, imf, sdp, image2, vobsub, mlv)."""

MAX_PIXELS = 8192 * 4352
"""8K. A decoder may have to hold 17 pictures at once, of up to 3 bytes per pixel."""

# A file may name others (playlists, references): only the file itself is ever opened. max_pixels: a
# header with a false size must not allocate the memory it claims.
OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": ",".join(FORMATS),
    "max_pixels": str(MAX_PIXELS),
}
READ_BYTES = 256 << 10
"""Bytes that FFmpeg reads of a file at once."""
PATIENCE_S = (60.0, 60.0)
"""Time limits in seconds for one call that opens the file, and one that reads it."""

ATTACHED_PICTURE = 0x400
FRAME_THREADS_BYTES = 512 << 20
"""Each frame thread holds decoded frames, so large pictures get fewer threads."""


@contextmanager
def open_video(
    path: Path, version: str = "", *, threads: str = "AUTO"
) -> Iterator[tuple[Any, Any]]:
    """Open `path` and yield the container and its best video stream, ready to decode.

    `threads` as in FFmpeg: "AUTO" decodes several frames at once, "SLICE" parts of one. Raises
    VideoError for a file that is not a video, has no video stream or an unknown codec,
    DisturbedError as `open_file`.
    """
    with open_file(path, version) as file, _container(path, file) as container:
        stream = _video_stream(path, container)
        # Never call av.logging.set_level: with frame threads it can deadlock when decoding is
        # abandoned.
        stream.thread_type = threads
        yield container, stream


def _container(path: Path, file: OpenFile) -> Any:
    # FFmpeg reads the open file; it gets the name for the suffix, by which it recognises some
    # formats.
    try:
        return av.open(file, options=dict(OPTIONS), timeout=PATIENCE_S, buffer_size=READ_BYTES)
    except av.ArgumentError:
        if _is_sound(path):
            raise VideoError(f"{path} has no video stream, only audio", NEEDED) from None
        raise VideoError(f"{path} is not a video of a format that is read", NEEDED) from None
    except (av.FFmpegError, UnicodeError, ValueError) as error:
        raise VideoError(f"{path} is not a video: {reason(error)}", NEEDED) from None


def _is_sound(path: Path) -> bool:
    """Return whether a file of an unsupported format begins like audio: MP3, AAC, FLAC, WAV, AIFF
    or AMR."""
    with path.open("rb") as file:
        start = file.read(12)
    frame = len(start) > 1 and start[0] == 0xFF and start[1] & 0xE0 == 0xE0
    named = start.startswith((b"ID3", b"fLaC", b"#!AMR"))
    return frame or named or start[8:12] in (b"WAVE", b"AIFF", b"AIFC")


def reason(error: Exception) -> str:
    """Return FFmpeg's error text without its number and the path."""
    return (getattr(error, "strerror", None) or str(error)).lower()


def _video_stream(path: Path, container: Any) -> Any:
    stream = container.streams.best("video")
    if stream is None or int(stream.disposition) & ATTACHED_PICTURE:
        kinds = sorted({s.type for s in container.streams}) or ["nothing"]
        raise VideoError(f"{path} has no video stream, only {', '.join(kinds)}", NEEDED)
    if stream.codec_context is None:
        raise VideoError(f"{path} has a video codec that is not known", "convert it to H.264")
    context = stream.codec_context
    if context.width * context.height > MAX_PIXELS:
        raise VideoError(
            f"{path} has pictures of {context.width}x{context.height}, larger than 8K",
            "convert it to a smaller size",
        )
    # The actual pictures may be larger than the header says.
    context.options = {"max_pixels": str(MAX_PIXELS)}
    # Planar 10-bit 4:2:0 takes three bytes per pixel; a thread holds a frame and its references.
    room = FRAME_THREADS_BYTES // max(1, context.width * context.height * 3)
    context.thread_count = 0 if room >= 16 else max(1, min(room, 4))
    for other in container.streams:
        if other.index != stream.index and hasattr(av.stream, "Discard"):
            other.discard = av.stream.Discard.all
    return stream


def packets_of(container: Any, stream: Any) -> Iterator[Any]:
    """Yield the stream's packets, up to the end or to where the file cannot be read further."""
    try:
        yield from container.demux(stream)
    except Exception:
        # Hostile input makes the demuxer, and PyAV around it, raise all kinds of errors; the
        # packets read before them count.
        return


def decode(packet: Any) -> tuple[list[Any], bool]:
    """Return the frames that a packet yields, and whether decoding succeeded."""
    try:
        return list(packet.decode()), True
    except Exception:
        return [], False


# VP8 and VP9 packets that contain a frame which is never shown.


def hides_frames(path: Path, version: str = "") -> bool:
    """Return whether any packet of the stream shows nothing; packets are read, not decoded.

    Raises as `open_video`.
    """
    with open_video(path, version) as (container, stream):
        shows = {"vp8": _vp8_shows, "vp9": _vp9_shows}.get(
            stream.codec_context.codec.canonical_name
        )
        if shows is None:
            return False
        packets = (bytes(p) for p in packets_of(container, stream) if p.size)
        return any(not shows(data) for data in packets)


def _vp8_shows(data: bytes) -> bool:
    """Return the show_frame bit of a VP8 frame tag (RFC 6386, 9.1)."""
    return bool(data[0] & 0x10)


def _vp9_shows(data: bytes) -> bool:
    """Return whether a VP9 packet shows a frame (VP9 bitstream specification, 6.1, 6.2, annex
    B)."""
    if data[-1] & 0xE0 == 0xC0:
        # A superframe: several frames in one packet, the last of which is shown.
        return True
    bits = data[0]
    if (bits >> 4) & 0x3 == 0x3:
        # Profile 3 has one more reserved bit.
        bits = (bits << 1) & 0xFF
    existing, shown = bits & 0x08, bits & 0x02
    return bool(existing or shown)
