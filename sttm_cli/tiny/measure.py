"""Measures the embedded model on held-out scenes, written to MP4 and asked through the package.

`python -m sttm_cli.tiny.measure [--films FOLDER] [--budget 1.0]` prints accuracy by kind, with a
95 % interval and, beside it, what always giving the most frequent answer would reach.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sttm_cli.tiny.questions import KINDS, Question, ask_about
from sttm_cli.tiny.scenes import make_scene
from sttm_cli.tiny.textures import Backdrop, filmed, textured
from sttm_cli.tiny.video import FPS, SIDE, film_frames, write_video

# Held out: training draws its seeds from far above (batches.FIRST_TRAINING_SEED).
FIRST_SEED = 500_000_000
_FILM_SUFFIXES = (".mp4", ".webm", ".mkv", ".mov", ".gif", ".3gp")
_LARGEST_FILM = 1920 * 1920


@dataclass(frozen=True)
class Outcome:
    """What was asked about the scene of a seed, and what came back."""

    seed: int
    seconds: int
    background: str
    kind: str
    question: str
    truth: str
    answer: str

    @property
    def right(self) -> bool:
        return self.answer.strip().lower() == self.truth


def films(folder: Path, *, seconds: float = 8) -> dict[str, np.ndarray]:
    """Background frames by file name: every film in the folder of which two seconds decode."""
    import av

    found = {}
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in _FILM_SUFFIXES):
        try:
            with av.open(str(path)) as container:
                video = container.streams.best("video")
                if video is None or video.width * video.height > _LARGEST_FILM:
                    continue
            frames = film_frames(path, seconds=seconds)
        except (av.FFmpegError, ValueError):
            continue
        if len(frames) >= 2 * FPS:
            found[path.name] = frames
    return found


def ask_scenes(
    qa: Any, count: int, *, backgrounds: dict[str, np.ndarray] | None = None, seconds: int = 0
) -> Iterator[Outcome]:
    """Write `count` held-out scenes, ask one question of each kind about each, and compare.

    `backgrounds`: films by name, in turn; textures where there are none. `seconds`: length of
    every scene, or 0 for 1 to 8.
    """
    names = list(backgrounds or {})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scene.mp4"
        for seed in range(FIRST_SEED, FIRST_SEED + count):
            scene = make_scene(seed, seconds=seconds or None)
            rng = np.random.default_rng((seed, 7))
            backdrop: Backdrop = textured(rng, side=SIDE)
            name = "texture"
            if backgrounds:
                name = names[seed % len(names)]
                backdrop = filmed(backgrounds[name], fps=FPS)
            write_video(path, scene, backdrop)
            for q in _one_of_each(ask_about(scene, range(scene.seconds), rng)):
                answer = qa.ask(path, q.text).text
                yield Outcome(seed, scene.seconds, name, q.kind, q.text, q.answer, answer)


def _one_of_each(questions: list[Question]) -> list[Question]:
    first: dict[str, Question] = {}
    for question in questions:
        first.setdefault(question.kind, question)
    return list(first.values())


def table(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """A row for every kind and for all: accuracy, half width of its 95 % interval, chance, n."""
    by_kind: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_kind[outcome.kind].append(outcome)
    rows = [_row(kind, by_kind[kind]) for kind in KINDS if by_kind[kind]]
    chance = sum(row["chance"] * row["n"] for row in rows) / max(1, len(outcomes))
    return [*rows, {**_row("all", outcomes), "chance": chance}]


def _row(name: str, outcomes: list[Outcome]) -> dict[str, Any]:
    n = len(outcomes)
    share = sum(o.right for o in outcomes) / n
    most = Counter(o.truth for o in outcomes).most_common(1)[0][1]
    half = 1.96 * math.sqrt(share * (1 - share) / n)
    return {"kind": name, "accuracy": share, "interval": half, "chance": most / n, "n": n}


def main() -> None:
    import sttm_cli

    parser = argparse.ArgumentParser(description="Measure the embedded model.")
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--seconds", type=int, default=0, help="of every scene; 0: 1 to 8")
    parser.add_argument("--films", type=Path, help="folder of films for the backgrounds")
    parser.add_argument("--budget", type=float, default=1.0)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--outcomes", type=Path, help="write every answer here, a JSON line each")
    options = parser.parse_args()
    backgrounds = films(options.films) if options.films else None
    with sttm_cli.VideoQA(model=options.model, budget=options.budget, no_cache=True) as qa:
        outcomes = list(
            ask_scenes(qa, options.scenes, backgrounds=backgrounds, seconds=options.seconds)
        )
    if options.outcomes:
        options.outcomes.write_text("".join(json.dumps(asdict(o)) + "\n" for o in outcomes))
    print(f"{'kind':<10} accuracy         chance    n")
    for row in table(outcomes):
        print(
            f"{row['kind']:<10} {row['accuracy']:.3f} ± {row['interval']:.3f}"
            f"    {row['chance']:.3f} {row['n']:4d}"
        )


if __name__ == "__main__":
    main()
