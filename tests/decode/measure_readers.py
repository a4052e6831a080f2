"""How long each reader takes: python -m tests.decode.measure_readers VIDEO..."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from sttm_cli.base.errors import SttmError
from sttm_cli.base.types import DecodeReport
from sttm_cli.decode import plan_frames, probe, read_frames

SAMPLINGS = {
    "8 frames": {"frames": 8},
    "1 frame a second": {"fps": 1.0},
    "8 frames a second": {"fps": 8.0},
}


def measure(path: Path, reader: str, sampling: str) -> tuple[int, float, float]:
    """Frames read, seconds and processor seconds (children included) in a fresh process."""
    command = [sys.executable, "-m", __spec__.name, "--one", reader, sampling, str(path)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return int(done.stdout.strip() or 0), wall, used


def one(reader: str, sampling: str, path: Path) -> None:
    options = {"decoder": reader, "max_frames": 1000, "input_side": 384, **SAMPLINGS[sampling]}
    try:
        plan = plan_frames(probe(path), **options)
        chunks = read_frames(path, plan, report=DecodeReport())
        print(sum(len(chunk.frames) for chunk in chunks))
    except SttmError as error:
        print(error, file=sys.stderr)


def main(paths: list[Path]) -> None:
    print("| video | sampling | frames | av s (CPU s) | decord s (CPU s) |\n|---|---|---|---|---|")
    for path in paths:
        for sampling in SAMPLINGS:
            cells, frames = [], 0
            for reader in ("av", "decord"):
                runs = [measure(path, reader, sampling) for _ in range(3)]
                frames = max(frames, runs[0][0])
                wall, used = (median(run[i] for run in runs) for i in (1, 2))
                cells.append(f"{wall:.2f} ({used:.2f})" if runs[0][0] else "refused")
            print(f"| {path.name} | {sampling} | {frames} | {cells[0]} | {cells[1]} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], sys.argv[3], Path(sys.argv[4]))
    else:
        main([Path(name) for name in sys.argv[1:]])
