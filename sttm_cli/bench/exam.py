"""The held-out exam of the embedded model: scenes as MP4 files, with questions about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np

from sttm_cli.base.errors import UsageError
from sttm_cli.tiny.questions import Question, ask_about
from sttm_cli.tiny.scenes import make_scene
from sttm_cli.tiny.textures import Backdrop, filmed, textured
from sttm_cli.tiny.video import FPS, SIDE, film_frames, write_video

FIRST_SEED = {"test": 500_000_000, "dev": 600_000_000}
"""Seeds of held-out scenes; training seeds start at batches.FIRST_TRAINING_SEED."""
LONG = 16
"""Scenes of at least this many seconds are written at 2 frames per second, which suffices for
sampling one frame per second."""
_FILM_SUFFIXES = (".mp4", ".webm", ".mkv", ".mov", ".gif", ".3gp")
_LARGEST_FILM = 1920 * 1920


@dataclass(frozen=True)
class Sheet:
    """A video with one question of each kind that has a clear answer."""

    seed: int
    path: Path
    background: str
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Exam:
    """Scenes of `seconds` over textures, or over `films` (frames by file name) in turn."""

    split: str
    seconds: int
    films: dict[str, np.ndarray] | None = None

    def sheets(self, folder: Path) -> Iterator[Sheet]:
        """Yield sheets without end; write each video to `folder` unless the file exists."""
        for seed in count(FIRST_SEED[self.split]):
            yield self.sheet(seed, folder)

    def sheet(self, seed: int, folder: Path) -> Sheet:
        """Make the scene of one seed, with its questions."""
        scene = make_scene(seed, seconds=self.seconds)
        rng = np.random.default_rng((seed, 7))
        backdrop: Backdrop = textured(rng, side=SIDE)
        name = "texture"
        if self.films:
            name = list(self.films)[seed % len(self.films)]
            backdrop = filmed(self.films[name], fps=FPS)
        path = folder / f"{Path(name).stem}-{self.seconds}s-{seed}.mp4"
        if not path.exists():
            unfinished = path.with_suffix(".part.mp4")
            write_video(unfinished, scene, backdrop, fps=2 if self.seconds >= LONG else FPS)
            unfinished.rename(path)
        questions = ask_about(scene, range(scene.seconds), rng)
        return Sheet(seed=seed, path=path, background=name, questions=_one_of_each(questions))


def films(folder: Path, *, seconds: float = 8) -> dict[str, np.ndarray]:
    """Read background frames, by file name, of every film in the folder with two decodable seconds.

    Raises UsageError if there is none.
    """
    import av

    readable = {}
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    for path in (p for p in paths if p.suffix.lower() in _FILM_SUFFIXES):
        try:
            with av.open(str(path)) as container:
                video = container.streams.best("video")
                if video is None or video.width * video.height > _LARGEST_FILM:
                    continue
            frames = film_frames(path, seconds=seconds)
        except (av.FFmpegError, ValueError):
            continue
        if len(frames) >= 2 * FPS:
            readable[path.name] = frames
    if not readable:
        raise UsageError(f"--films {folder} contains no readable film", "give another folder")
    return readable


def _one_of_each(questions: Sequence[Question]) -> tuple[Question, ...]:
    first: dict[str, Question] = {}
    for question in questions:
        first.setdefault(question.kind, question)
    return tuple(first.values())
