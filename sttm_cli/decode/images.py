"""A folder of images as a video: in natural order of the names, at a rate that the user gives."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from sttm_cli.base.errors import DisturbedError, VideoError
from sttm_cli.base.types import DecodeReport, FramePlan, VideoInfo
from sttm_cli.decode.image_folder import FORMATS, HINT, checked_versions, open_image
from sttm_cli.decode.lost import ENDED, Lost, Reading
from sttm_cli.decode.pixels import RGB


def probe_images(folder: Path, fps: float, version: str = "") -> VideoInfo:
    """Describe the folder as a video of `fps` images per second, in the size of the first readable
    one.

    Raises VideoError if no image can be read, DisturbedError if the folder changes or does not have
    `version` (of `folder_version`, if given).
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
    """Yield the image on show at each of the plan's times, or its loss.

    Images of another size are fitted into the plan's size with black bars, and counted in a
    warning. Raises as `probe_images`.
    """
    images, other = list(checked_versions(folder, version).items()), 0
    for time in plan.times_s:
        # Requested times are rounded to microseconds.
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
    """Return the decoded image, upright RGB; None if it is damaged, too large or not an image."""
    try:
        with warnings.catch_warnings(), open_image(folder, path, version) as file:
            # Pillow refuses decompression bombs, and warns of images half as large.
            warnings.simplefilter("ignore")
            # Bound to a name, so that the file stays open until it is checked.
            buffered = io.BufferedReader(file)
            picture: Image.Image = Image.open(buffered, formats=_formats())
            upright = ImageOps.exif_transpose(picture)
            return _eight_bit(upright).convert("RGB")
    except DisturbedError:
        raise
    except Exception:
        # Hostile images make Pillow raise all kinds of errors.
        return None


def _formats() -> list[str]:
    """Return the formats above that this Pillow reads."""
    Image.init()
    return sorted(set(FORMATS.values()) & set(Image.OPEN))


def _eight_bit(picture: Image.Image) -> Image.Image:
    """Scale 16-bit greys to 8 bits, which Pillow would clip."""
    if not picture.mode.startswith("I"):
        return picture
    return Image.fromarray((np.asarray(picture).clip(0, 65535) // 257).astype(np.uint8))


def _fitted(picture: Image.Image, size: tuple[int, int]) -> RGB:
    if picture.size != size:
        picture = ImageOps.pad(picture, size, Image.Resampling.BICUBIC)
    return np.asarray(picture)
