"""Many questions about many videos at once, each beside the answer computed alone.

`python -m tests.serve.many --requests 500 --videos 20` starts a server and prints what came of it.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sttm_cli import VideoQA
from sttm_cli.tiny.questions import ask_about
from sttm_cli.tiny.scenes import make_scene
from sttm_cli.tiny.textures import textured
from sttm_cli.tiny.video import SIDE, write_video
from tests.serve.running import Running, serving

SECONDS = 4


@dataclass(frozen=True)
class Case:
    """A question about a video, a budget, and the answer computed alone."""

    video: Path
    question: str
    budget: float
    answer: str


def make_videos(folder: Path, count: int) -> list[tuple[Path, list[str]]]:
    """Generated scenes, and questions about each."""
    made = []
    for seed in range(count):
        path = folder / f"{seed}.mp4"
        scene = make_scene(seed, seconds=SECONDS)
        write_video(path, scene, textured(np.random.default_rng(seed), side=SIDE), fps=2)
        asked = ask_about(scene, range(SECONDS), np.random.default_rng(seed))
        made.append((path, [question.text for question in asked[:4]]))
    return made


def alone(videos: Sequence[tuple[Path, list[str]]]) -> list[Case]:
    """Every question at two budgets, answered one after another in this process."""
    cases = []
    for budget in (0.5, 0.25):
        with VideoQA(budget=budget, no_cache=True) as qa:
            for path, questions in videos:
                prepared = qa.prepare(path)
                cases += [Case(path, q, budget, qa.answer(prepared, q).text) for q in questions]
    return cases


def ask(client: Any, case: Case, *, stream: bool = False) -> str:
    """The server's answer."""
    video = {"type": "video_url", "video_url": {"url": case.video.as_uri()}}
    made = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": [video, {"type": "text", "text": case.question}]}],
        extra_body={"sttm": {"budget": case.budget}},
        stream=stream,
    )
    if stream:
        return "".join(chunk.choices[0].delta.content or "" for chunk in made)
    return str(made.choices[0].message.content)


def ask_all(server: Running, cases: Sequence[Case], *, at_once: int) -> list[tuple[Case, str]]:
    """Every case with what the server answered, every other one streamed."""
    with server.openai() as client, ThreadPoolExecutor(at_once) as pool:
        numbered = enumerate(cases)
        answers = pool.map(lambda each: ask(client, each[1], stream=each[0] % 2 == 0), numbered)
        return list(zip(cases, answers, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--videos", type=int, default=20)
    parser.add_argument("--at-once", type=int, default=16)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        known = alone(make_videos(folder, given.videos))
        asked = random.Random(0).choices(known, k=given.requests)
        bounds = ("--device-bytes", "12M", "--host-bytes", "4M", "--max-bytes", "12M")
        with serving(folder / "server", "--allow-path", folder, *bounds) as server:
            started = time.perf_counter()
            answered = ask_all(server, asked, at_once=given.at_once)
            seconds = time.perf_counter() - started
            wrong = [case for case, text in answered if text != case.answer]
            print(f"{len(answered)} requests, {given.videos} videos, {given.at_once} at once")
            print(f"{len(wrong)} answers differ from those computed alone; {seconds:.1f} s")
            for tier in ("device", "host", "disk", "computed"):
                hits = server.metric(f'sttm_videos_total{{tier="{tier}"}}')
                held = server.metric(f'sttm_held_bytes{{tier="{tier}"}}')
                print(f"{tier}: {hits:.0f} prefixes, {held:,.0f} bytes held at the end")


if __name__ == "__main__":
    main()
