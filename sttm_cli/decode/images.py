"""A folder of images as a video: in natural order of their names, at a rate that the user gives."""

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
