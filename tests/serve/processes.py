"""Whole `sttm ask` processes side by side: cold, on a disk hit, and through a server.

`python -m tests.serve.processes` prints a table: wall and CPU seconds of the process, medians.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from tests.serve.running import place, serving

SAMPLE = Path(__file__).parents[2] / "docs" / "sample.mp4"
QUESTION = "how many shapes are there?"


def timed(env: dict[str, str], *flags: str) -> tuple[float, float]:
    """Wall and CPU seconds of one `sttm ask`."""
    command = [sys.executable, "-m", "sttm_cli", "ask", str(SAMPLE), QUESTION, "--quiet", *flags]
    before, started = os.times(), time.perf_counter()
    done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True)
    wall, after = time.perf_counter() - started, os.times()
    if done.returncode or done.stdout != "three\n":
        raise SystemExit(f"sttm ask failed: {done.stdout}{done.stderr}")
    cpu = after.children_user + after.children_system
    return wall, cpu - before.children_user - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    repeat = parser.parse_args().repeat
    with tempfile.TemporaryDirectory() as name:
        env = place(Path(name))

        def cold() -> tuple[float, float]:
            shutil.rmtree(env["STTM_CACHE_DIR"], ignore_errors=True)
            return timed(env, "--no-server")

        rows: dict[str, Callable[[], tuple[float, float]]] = {
            "cold": cold,
            "disk hit": lambda: timed(env, "--no-server"),
            "through a server": lambda: timed(env),
        }
        with serving(Path(name)):
            timed(env)
            print("| `sttm ask`, whole process | wall | CPU |\n|---|---|---|")
            for what, run in rows.items():
                walls, cpus = zip(*(run() for _ in range(repeat)), strict=True)
                print(f"| {what} | {median(walls):.2f} s | {median(cpus):.2f} s |")


if __name__ == "__main__":
    main()
