"""Folders of images: their images, the order of these, and the version of the folder."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sttm_cli.base.errors import VideoError
from sttm_cli.base.system import FileFacts
from sttm_cli.decode.file import OpenFile, blake3_of, changed, version_key

FORMATS = {
    ".avif": "AVIF", ".bmp": "BMP", ".jpeg": "JPEG", ".jpg": "JPEG", ".png": "PNG", ".ppm": "PPM",
    ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP",
}  # fmt: skip
VIDEO_SUFFIXES = frozenset(
    ".3gp .asf .avi .f4v .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogv .ts .vob "
    ".webm .wmv".split()
)
"""The suffixes of videos in a folder."""
NAMED = 3
"""Number of videos named in a message; the others are counted."""
HINT = "give a video file, or a folder of .jpg, .png, .webp, .bmp or .tiff images"


def videos_below(folder: Path, on_error: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    """Yield the videos in a folder, to any depth, by suffix; names that begin with a dot and links
    to folders are skipped."""
    for place, inner, names in os.walk(folder, onerror=on_error):
        inner[:] = [name for name in inner if not name.startswith(".")]
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            if suffix in VIDEO_SUFFIXES and not name.startswith("."):
                yield Path(place, name)


def check_holds_no_video(folder: Path) -> None:
    """Raise VideoError for a folder that contains videos: images beside them are covers."""
    found = sorted(videos_below(folder))
    if found:
        named = [str(video.relative_to(folder)) for video in found[:NAMED]]
        more = [f"{len(found) - NAMED} more"] if len(found) > NAMED else []
        raise VideoError(
            f"{folder} is not a folder of images: it holds {', '.join(named + more)}",
            f"name one video; 'sttm ask {folder} QUESTION --each' asks about every one, "
            f"'sttm precompute {folder}' prepares them",
        )


def images_of(folder: Path) -> list[Path]:
    """Return the images directly in a folder, 2.png before 10.png; raises VideoError without
    any."""
    try:
        found = [
            path
            for path in folder.iterdir()
            if path.suffix.lower() in FORMATS and path.name[0] != "." and path.is_file()
        ]
    except OSError as error:
        raise VideoError(f"{folder} cannot be read: {error.strerror}", "check the path") from None
    if not found:
        raise VideoError(f"{folder} is a folder without images", HINT)
    return sorted(found, key=lambda path: (_natural(path.name), path.name))


def versions_of(folder: Path) -> dict[Path, str]:
    """Return the images in order, each with its version (`version_key`)."""
    try:
        return {path: version_key(path, path.stat()) for path in images_of(folder)}
    except OSError:
        raise changed(folder) from None


def folder_version(folder: Path, versions: dict[Path, str] | None = None) -> str:
    """Return a key that differs between versions of the folder, without reading the images."""
    from blake3 import blake3

    states = "\n".join((versions or versions_of(folder)).values())
    return str(blake3(states.encode("utf-8", "surrogateescape")).hexdigest())


def checked_versions(folder: Path, version: str) -> dict[Path, str]:
    """Like `versions_of`; raises DisturbedError unless the folder has `version`."""
    versions = versions_of(folder)
    if version and folder_version(folder, versions) != version:
        raise changed(folder)
    return versions


def digest_folder(folder: Path, memo: FileFacts, version: str = "") -> str:
    """Return the hex blake3 of the images' names and bytes in order; remembered as for a file.

    Raises VideoError for an image that cannot be read, DisturbedError for a folder that changes
    meanwhile or does not have `version` (if given).
    """
    from blake3 import blake3

    versions = checked_versions(folder, version)
    key = f"digest:{folder_version(folder, versions)}"
    known = memo.get(key)
    if known is not None and isinstance(known.get("blake3"), str):
        return str(known["blake3"])
    whole, settled = blake3(), True
    for image, seen in versions.items():
        with open_image(folder, image, seen) as file:
            content = blake3_of(file)
        settled = settled and file.is_settled
        # Digests have a fixed length, so no two folders give the same bytes here.
        whole.update(blake3(image.name.encode("utf-8", "surrogateescape")).digest() + content)
    if versions_of(folder) != versions:
        raise changed(folder)
    if settled:
        memo.set(key, {"blake3": whole.hexdigest()})
    return str(whole.hexdigest())


@contextmanager
def open_image(folder: Path, image: Path, version: str) -> Iterator[OpenFile]:
    """Open an image of the folder; raises DisturbedError unless it has `version` and keeps it."""
    try:
        file = OpenFile(image)
    except FileNotFoundError:
        raise changed(folder) from None
    except OSError as error:
        raise VideoError(f"{image} cannot be read: {error.strerror}", "check it") from None
    with file:
        if file.version != version:
            raise changed(folder)
        yield file
        if not file.is_unchanged:
            raise changed(folder)


def _natural(name: str) -> list[Any]:
    """Sort key with digits as numbers: text and numbers alternate, so keys can be compared."""
    parts = re.split(r"(\d+)", name.casefold())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]
