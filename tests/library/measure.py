"""The same run with and without reading ahead, in turns: `python -m tests.library.measure FOLDER`.

`--idle SECONDS` waits in each prefill, as the processor does for a GPU. Both runs compute every
video of the folder into a cache of their own; the model is loaded before.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from sttm_cli.library import in_process
from sttm_cli.library.loop import prepare_library
from sttm_cli.library.outcome import Computed
from sttm_cli.library.paths import find_videos
from sttm_cli.runtime.compute import Compute
from sttm_cli.runtime.session import VideoQA


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--idle", type=float, default=0.0)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    videos = find_videos([given.folder]).videos
    ways = {"one after the other": lambda items, depth: items, "reading ahead": in_process.ahead}
    spent: dict[str, list[float]] = {name: [] for name in ways}
    prefill = Compute.prefill

    def waits(*arguments: Any, **options: Any) -> Any:
        time.sleep(given.idle)
        return prefill(*arguments, **options)

    with mock.patch.object(Compute, "prefill", waits):
        # The first run pays for lazy initialisation and is not counted.
        for turn in range(given.repeat + 1):
            for name, way in ways.items():
                seconds = run(videos, way, given.frames)
                if turn:
                    spent[name].append(seconds)
    alone, ahead = (median(spent[name]) for name in ways)
    for name, seconds in spent.items():
        print(f"{name}: {', '.join(f'{s:.2f}' for s in seconds)} s")
    print(f"{len(videos)} videos, medians: {alone:.2f} s, {ahead:.2f} s, {alone / ahead:.2f} times")


def run(videos: list[Path], way: Callable[..., Any], frames: int) -> float:
    """Seconds for all videos; says what each stage took."""
    with TemporaryDirectory() as folder, mock.patch.object(in_process, "ahead", way):
        qa = VideoQA(frames=frames, cache_dir=Path(folder) / "cache")
        with qa:
            qa.model()
            started = time.perf_counter()
            outcomes = prepare_library(qa, videos, in_process.LocalRunner(qa))
            done = [found for found in outcomes if isinstance(found, Computed)]
            seconds = time.perf_counter() - started
    stages = ("decode", "encode", "merge", "prefill")
    sums = {name: sum(found.seconds[name] or 0.0 for found in done) for name in stages}
    print(f"{seconds:.2f} s:", ", ".join(f"{name} {sums[name]:.2f}" for name in stages))
    return seconds


if __name__ == "__main__":
    main()
