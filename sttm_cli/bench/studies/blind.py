"""What the embedded model answers right without the right frames, at budget 1.

    python -m sttm_cli.bench.studies.blind --questions 2000

Asks the exam's questions of its video, of black frames, of another scene's video, of its first
frame in the place of all, and of its frames reversed. Prints one JSON object: the share right by
what is shown, with 95 % intervals, overall and by kind.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from sttm_cli.base.results import Clock
from sttm_cli.base.types import FrameChunk, Json, VisualTokens
from sttm_cli.bench.exam import Exam, Sheet, films
from sttm_cli.bench.intervals import Bootstrap
from sttm_cli.bench.scoring import alone, mark
from sttm_cli.runtime.session import VideoQA
from sttm_cli.tiny.video import SIDE


def shown_instead(
    tokens: VisualTokens, other: VisualTokens, black: VisualTokens
) -> dict[str, VisualTokens]:
    """The tokens that stand for each way of showing; frames are encoded one by one, so that frames
    in another order are their tokens in that order."""
    features = tokens.features
    return {
        "its video": tokens,
        "black frames": replace(tokens, features=black.features.expand_as(features)),
        "another video": replace(tokens, features=other.features),
        "its first frame": replace(tokens, features=features[:1].expand_as(features)),
        "reversed": replace(tokens, features=features.flip(0)),
    }


def take(qa: VideoQA, exam: Exam, questions: int, folder: Path) -> Json:
    """Ask at least `questions` questions of everything shown, and report."""
    model = qa.model()
    black = model.encode(FrameChunk(np.zeros((1, SIDE, SIDE, 3), np.uint8), (0.0,)), exam.seconds)
    right: dict[str, list[bool]] = defaultdict(list)
    video: list[int] = []
    kinds: list[str] = []
    for number, (sheet, tokens, other) in enumerate(_beside_the_next(qa, exam, folder)):
        asked = [alone(model, question) for question in sheet.questions]
        for name, seen in shown_instead(tokens, other, black).items():
            kv = qa.compute.prefill(seen, Clock(), budget=1.0, sizes=False)
            right[name] += [answers[0] for answers in mark(model, kv, asked)]
        video += [number] * len(asked)
        kinds += [question.kind for question in sheet.questions]
        if len(video) >= questions:
            break
    kind, boot = np.array(kinds), Bootstrap(np.array(video))
    every = np.ones(len(kind), dtype=bool)
    rows = {
        name: {"all": boot.accuracy(np.array(marks), every).to_json()}
        | {k: float(np.array(marks)[kind == k].mean()) for k in sorted(set(kinds))}
        for name, marks in right.items()
    }
    return {"questions": len(video), "videos": video[-1] + 1, "rows": rows}


def _beside_the_next(
    qa: VideoQA, exam: Exam, folder: Path
) -> Iterator[tuple[Sheet, VisualTokens, VisualTokens]]:
    """Each sheet, its visual tokens, and those of the sheet after it."""
    sheets = exam.sheets(folder)
    sheet = next(sheets)
    tokens, _ = qa.compute.visual_tokens(qa.request(sheet.path), Clock())
    for following in sheets:
        other, _ = qa.compute.visual_tokens(qa.request(following.path), Clock())
        yield sheet, tokens, other
        sheet, tokens = following, other


def main() -> None:
    parser = argparse.ArgumentParser("python -m sttm_cli.bench.studies.blind")
    parser.add_argument("--split", default="test", choices=("test", "dev"))
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--films", type=Path, help="a folder to take backgrounds from")
    parser.add_argument("--scenes", type=Path, help="a folder that keeps the scenes' videos")
    options = parser.parse_args()
    torch.set_num_threads(1)
    exam = Exam(options.split, options.frames, films(options.films) if options.films else None)
    with (
        VideoQA(model="tiny", frames=options.frames, no_cache=True) as qa,
        TemporaryDirectory(prefix="sttm-") as own,
    ):
        print(json.dumps(take(qa, exam, options.questions, options.scenes or Path(own)), indent=2))


if __name__ == "__main__":
    main()
