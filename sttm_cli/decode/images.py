"""A folder of images as a video: in natural order of their names, at a rate that the user gives."""

from __future__ import annotations

import io
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from sttm_cli.base.errors import DisturbedError, VideoError
from sttm_cli.base.system import FileFacts
from sttm_cli.base.types import DecodeReport, FramePlan, VideoInfo
from sttm_cli.decode.file import OpenFile, blake3_of, changed, version_key
from sttm_cli.decode.lost import ENDED, Lost, Reading
from sttm_cli.decode.pixels import RGB

# A folder of images: which ones, in which order, and what tells one state of it from another.


FORMATS = {
    ".avif": "AVIF", ".bmp": "BMP", ".jpeg": "JPEG", ".jpg": "JPEG", ".png": "PNG", ".ppm": "PPM",
    ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP",
}  # fmt: skip
VIDEO_SUFFIXES = frozenset(
    ".3gp .asf .avi .f4v .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogv .ts .vob "
    ".webm .wmv".split()
)
"""How files end that are taken for videos in a folder."""
NAMED = 3
"""Videos that a message names; the others are counted."""
HINT = "give a video file, or a folder of .jpg, .png, .webp, .bmp or .tiff images"


def videos_below(folder: Path, on_error: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    """The videos in a folder, to any depth, by how their names end; names that begin with a dot
    and links to folders are left out."""
    for place, inner, names in os.walk(folder, onerror=on_error):
        inner[:] = [name for name in inner if not name.startswith(".")]
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            if suffix in VIDEO_SUFFIXES and not name.startswith("."):
                yield Path(place, name)


def check_holds_no_video(folder: Path) -> None:
    """Raise VideoError for a folder with videos in it: pictures beside them are covers."""
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


def versions_of(folder: Path) -> dict[Path, str]:
    """The images in their order, each with its version (`version_key`)."""
    try:
        return {path: version_key(path, path.stat()) for path in images_of(folder)}
    except OSError:
        raise changed(folder) from None


def folder_version(folder: Path, versions: dict[Path, str] | None = None) -> str:
    """What tells one state of the folder from another without reading the images."""
    from blake3 import blake3

    states = "\n".join((versions or versions_of(folder)).values())
    return str(blake3(states.encode("utf-8", "surrogateescape")).hexdigest())


def checked_versions(folder: Path, version: str) -> dict[Path, str]:
    """As `versions_of`; raises DisturbedError where the folder is not in the state `version`."""
    versions = versions_of(folder)
    if version and folder_version(folder, versions) != version:
        raise changed(folder)
    return versions


def digest_folder(folder: Path, memo: FileFacts, version: str = "") -> str:
    """The blake3 of the images' names and bytes in order, in hex; remembered as for a file.

    Raises VideoError for an image that cannot be read, DisturbedError for a folder that changes
    meanwhile or is not in the state `version` (if given).
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
        # Digests have one length: no two folders give the same bytes here.
        whole.update(blake3(image.name.encode("utf-8", "surrogateescape")).digest() + content)
    if versions_of(folder) != versions:
        raise changed(folder)
    if settled:
        memo.set(key, {"blake3": whole.hexdigest()})
    return str(whole.hexdigest())


@contextmanager
def open_image(folder: Path, image: Path, version: str) -> Iterator[OpenFile]:
    """Open an image of the folder; raises DisturbedError where it is not, or no longer, the one of
    `version`."""
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
    """Digits count as numbers: text and numbers alternate, so that keys can be compared."""
    parts = re.split(r"(\d+)", name.casefold())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]


def probe_images(folder: Path, fps: float, version: str = "") -> VideoInfo:
    """The folder as a video of `fps` images a second, of the first readable one's size.

    Raises VideoError where no image can be read, DisturbedError where the folder changes or is not
    in the state `version` (of `folder_version`, if given).
    """
    images = checked_versions(folder, version)
    pictures = (_opened(folder, path, seen) for path, seen in images.items())
    first = next((picture for picture in pictures if picture is not None), None)
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
    )


def read_images(
    folder: Path, plan: FramePlan, report: DecodeReport, version: str = ""
) -> Iterator[Reading]:
    """For each of the plan's times the image on show then, or why it is lost.

    Images of another size are fitted into the plan's, with black beside them, and counted in a
    warning. Raises as `probe_images`.
    """
    images, other = list(checked_versions(folder, version).items()), 0
    for time in plan.times_s:
        # Asked times are rounded to microseconds.
        index = math.floor(round(time * plan.image_fps, 2))
        if index >= len(images):
            yield Lost(ENDED)
            continue
        image, seen = images[index]
        found = _opened(folder, image, seen)
        if found is None:
            yield Lost(f"{image.name} cannot be read")
            continue
        other += found.size != plan.size
        yield round(index / plan.image_fps, 6), _fitted(found, plan.size)
    if other:
        report.warnings.append(
            f"{other} of {len(plan.times_s)} images have another size: "
            f"they are fitted into {plan.size[0]}x{plan.size[1]}, with black beside them"
        )


def _opened(folder: Path, path: Path, version: str) -> Image.Image | None:
    """The decoded image, upright RGB, or None where it is damaged, too large or not an image."""
    try:
        with warnings.catch_warnings(), open_image(folder, path, version) as file:
            # Pillow refuses decompression bombs, and warns of images half as large.
            warnings.simplefilter("ignore")
            # Named, so that it lives, and leaves the file open, until the file is checked.
            buffered = io.BufferedReader(file)
            picture: Image.Image = Image.open(buffered, formats=_formats())
            upright = ImageOps.exif_transpose(picture)
            return _eight_bit(upright).convert("RGB")
    except DisturbedError:
        raise
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
