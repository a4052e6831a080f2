"""A generated video for speed measurements: a scene of the embedded model over a texture."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sttm_cli.tiny.scenes import make_scene
from sttm_cli.tiny.textures import textured
from sttm_cli.tiny.video import write_video

SIDE, FPS = 384, 2


def write_footage(path: Path, *, seconds: int) -> None:
    """Write `seconds` of video at 384 x 384 pixels, 14 x 14 tokens per frame in most families."""
    scene = make_scene(1, seconds=seconds, crowded=True)
    write_video(path, scene, textured(np.random.default_rng(1), side=SIDE), fps=FPS)
