"""A folder of images as a video: in natural order of their names, at a rate that the user gives."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from sttm_cli.decode.digest import Memo, version_key
from sttm_cli.decode.lost import ENDED, Lost, Reading
from sttm_cli.decode.pixels import RGB
from sttm_cli.errors import VideoError
from sttm_cli.types import DecodeReport, FramePlan, VideoInfo

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


def probe_images(folder: Path, fps: float) -> VideoInfo:
    """What the folder is as a video of `fps` images a second, of the first readable one's size."""
    images = images_of(folder)
    first = next((picture for path in images if (picture := _opened(path)) is not None), None)
    if first is None:
        raise VideoError(f"none of the {len(images)} images in {folder} can be read", HINT)
    return VideoInfo(
        container="folder",
        codec="images",
        width=first.width,
        height=first.height,
        duration_s=len(images) / fps,
        fps=fps,
        rotation=0,
        frame_count=len(images),
    )


def digest_images(folder: Path, memo: Memo) -> str:
    """The blake3 of the images' names and bytes in order, in hex; remembered as for a file.

    Raises VideoError for an image that cannot be read or a folder that changes meanwhile.
    """
    from blake3 import blake3

    key = _version(folder)
    known = memo.get(key)
    if known is not None and isinstance(known.get("blake3"), str):
        return str(known["blake3"])
    whole = blake3()
    for image in images_of(folder):
        try:
            content = blake3(max_threads=blake3.AUTO).update_mmap(image).digest()
        except OSError as error:
            raise VideoError(f"{image} cannot be read: {error.strerror}", "check it") from None
        # Digests have one length: no two folders give the same bytes here.
        whole.update(blake3(image.name.encode("utf-8", "surrogateescape")).digest() + content)
    if _version(folder) != key:
        raise VideoError(f"{folder} changed while it was read", "wait until it is complete")
    memo.set(key, {"blake3": whole.hexdigest()})
    return str(whole.hexdigest())


def read_images(folder: Path, plan: FramePlan, report: DecodeReport) -> Iterator[Reading]:
    """For each of the plan's times the image on show then, or why it is lost.

    Images of another size are fitted into the plan's, with black beside them, and counted in a
    warning.
    """
    images, other = images_of(folder), 0
    for time in plan.times_s:
        # Asked times are rounded to microseconds.
        index = math.floor(round(time * plan.image_fps, 2))
        if index >= len(images):
            yield Lost(ENDED)
            continue
        found = _opened(images[index])
        if found is None:
            yield Lost(f"{images[index].name} cannot be read")
            continue
        other += found.size != plan.size
        yield round(index / plan.image_fps, 6), _fitted(found, plan.size)
    if other:
        report.warnings.append(
            f"{other} of {len(plan.times_s)} images have another size: "
            f"they are fitted into {plan.size[0]}x{plan.size[1]}, with black beside them"
        )


def _natural(name: str) -> list[Any]:
    """Digits count as numbers: text and numbers alternate, so that keys can be compared."""
    parts = re.split(r"(\d+)", name.casefold())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]


def _version(folder: Path) -> str:
    """What tells one state of the folder from another without reading the images."""
    from blake3 import blake3

    try:
        states = "\n".join(version_key(path, path.stat()) for path in images_of(folder))
    except OSError:
        raise VideoError(f"{folder} changed while it was read", "wait until it is done") from None
    return "digest:" + str(blake3(states.encode("utf-8", "surrogateescape")).hexdigest())


def _opened(path: Path) -> Image.Image | None:
    """The decoded image, upright RGB, or None where it is damaged, too large or no image."""
    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            # Pillow refuses decompression bombs, and warns of images half as large.
            warnings.simplefilter("ignore")
            picture: Image.Image = Image.open(file, formats=_formats())
            upright = ImageOps.exif_transpose(picture)
            return _eight_bit(upright).convert("RGB")
    except Exception:
        # Hostile images make Pillow raise all sorts of errors.
        return None


def _formats() -> list[str]:
    """Of the formats above those that this Pillow reads."""
    Image.init()
    return sorted(set(FORMATS.values()) & set(Image.OPEN))


def _eight_bit(picture: Image.Image) -> Image.Image:
    """Pillow clips 16-bit greys instead of scaling them."""
    if not picture.mode.startswith("I"):
        return picture
    return Image.fromarray((np.asarray(picture).clip(0, 65535) // 257).astype(np.uint8))


def _fitted(picture: Image.Image, size: tuple[int, int]) -> RGB:
    if picture.size != size:
        picture = ImageOps.pad(picture, size, Image.Resampling.BICUBIC)
    return np.asarray(picture)
