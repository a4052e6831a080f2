"""A folder of images: which ones, in which order, and what tells one state of it from another."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sttm_cli.base.errors import VideoError
from sttm_cli.base.filefacts import FileFacts, is_settled
from sttm_cli.decode.file import version_key

FORMATS = {
    ".avif": "AVIF", ".bmp": "BMP", ".jpeg": "JPEG", ".jpg": "JPEG", ".png": "PNG", ".ppm": "PPM",
    ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP",
}  # fmt: skip
HINT = "give a video file, or a folder of .jpg, .png, .webp, .bmp or .tiff images"


def images_of(folder: Path) -> list[Path]:
    """The images directly in a folder, 2.png before 10.png; raises VideoError if there is none."""
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


def folder_version(folder: Path) -> str:
    """What tells one state of the folder from another without reading the images."""
    from blake3 import blake3

    try:
        states = "\n".join(version_key(path, path.stat()) for path in images_of(folder))
    except OSError:
        raise VideoError(f"{folder} changed while it was read", "wait until it is done") from None
    return str(blake3(states.encode("utf-8", "surrogateescape")).hexdigest())


def digest_folder(folder: Path, memo: FileFacts) -> str:
    """The blake3 of the images' names and bytes in order, in hex; remembered as for a file.

    Raises VideoError for an image that cannot be read or a folder that changes meanwhile.
    """
    from blake3 import blake3

    version = folder_version(folder)
    key = f"digest:{version}"
    known = memo.get(key)
    if known is not None and isinstance(known.get("blake3"), str):
        return str(known["blake3"])
    whole, images = blake3(), images_of(folder)
    for image in images:
        try:
            content = blake3(max_threads=blake3.AUTO).update_mmap(image).digest()
        except OSError as error:
            raise VideoError(f"{image} cannot be read: {error.strerror}", "check it") from None
        # Digests have one length: no two folders give the same bytes here.
        whole.update(blake3(image.name.encode("utf-8", "surrogateescape")).digest() + content)
    if folder_version(folder) != version:
        raise VideoError(f"{folder} changed while it was read", "wait until it is complete")
    if is_settled(*(path.stat() for path in images)):
        memo.set(key, {"blake3": whole.hexdigest()})
    return str(whole.hexdigest())


def _natural(name: str) -> list[Any]:
    """Digits count as numbers: text and numbers alternate, so that keys can be compared."""
    parts = re.split(r"(\d+)", name.casefold())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]
