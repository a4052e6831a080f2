"""VP8 and VP9 packets that hold a frame which is never shown."""

from __future__ import annotations

from pathlib import Path

from sttm_cli.decode.container import open_video, packets_of


def hides_frames(path: Path, version: str = "") -> bool:
    """Whether a packet of the stream shows nothing; packets are read, not decoded.

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
    """The show_frame bit of a VP8 frame tag (RFC 6386, 9.1)."""
    return bool(data[0] & 0x10)


def _vp9_shows(data: bytes) -> bool:
    """Whether a VP9 packet shows a frame (VP9 bitstream specification, 6.1, 6.2 and annex B)."""
    if data[-1] & 0xE0 == 0xC0:
        # A superframe: several frames in one packet, of which the last one is shown.
        return True
    bits = data[0]
    if (bits >> 4) & 0x3 == 0x3:
        # Profile 3 has one reserved bit more.
        bits = (bits << 1) & 0xFF
    existing, shown = bits & 0x08, bits & 0x02
    return bool(existing or shown)
