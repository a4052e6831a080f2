"""Writing scenes as H.264 files, and reading backgrounds from films."""

from __future__ import annotations

import argparse
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from sttm_cli.tiny.drawing import draw
from sttm_cli.tiny.questions import ask_about
from sttm_cli.tiny.scenes import Scene, make_scene
from sttm_cli.tiny.textures import Backdrop, filmed, textured

FPS = 8
SIDE = 224


def write_video(
    path: Path, scene: Scene, backdrop: Backdrop, *, quality: int = 23, fps: int = FPS
) -> None:
    """Write the scene over `backdrop` (frames of any square, even size) as MP4, H.264.

    Frames have the times 0, 1/`fps`, ..., so that sampling at whole seconds hits the flashes of
    cards. `quality`: x264's constant rate factor.
    """
    first = backdrop(0.0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height = first.shape[1], first.shape[0]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": str(quality), "preset": "veryfast", "threads": "1"}
        for number in range(scene.seconds * fps):
            t = number / fps
            picture = av.VideoFrame.from_ndarray(draw(scene, t, backdrop(t)), format="rgb24")
            picture.pts, picture.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def film_frames(path: Path, *, seconds: float, skip: float = 0.0) -> np.ndarray:
    """Read frames [T, SIDE, SIDE, 3] uint8 of a film's middle square, FPS per second.

    Starts `skip` seconds into the film; may be shorter than `seconds`. Raises ValueError if no
    frame can be decoded.
    """
    taken: list[np.ndarray] = []
    with av.open(str(path)) as container:
        for frame in container.decode(container.streams.best("video")):
            since = float(frame.time or 0.0) - skip
            if since * FPS >= len(taken):
                taken.append(_square(frame.to_image()))
            if len(taken) >= seconds * FPS:
                break
    if not taken:
        raise ValueError(f"no frame of {path} can be decoded")
    return np.stack(taken)


def _square(picture: Image.Image) -> np.ndarray:
    edge = min(picture.size)
    left, top = (picture.width - edge) / 2, (picture.height - edge) / 2
    box = (left, top, left + edge, top + edge)
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box))


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the scene of a seed as a video.")
    parser.add_argument("seed", type=int)
    parser.add_argument("path", type=Path)
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--film", type=Path, help="a film for the background")
    parser.add_argument("--quality", type=int, default=23)
    options = parser.parse_args()
    scene = make_scene(options.seed, seconds=options.seconds)
    backdrop = textured(np.random.default_rng((options.seed, 7)), side=SIDE)
    if options.film is not None:
        backdrop = filmed(film_frames(options.film, seconds=options.seconds), fps=FPS)
    write_video(options.path, scene, backdrop, quality=options.quality)
    for question in ask_about(scene, range(scene.seconds), np.random.default_rng(options.seed)):
        print(f"{question.text}  {question.answer}")


if __name__ == "__main__":
    main()
