"""Time and memory of merging, compared with reading the input twice.

The videos are synthetic: static scenes in which a share of the cells changes in each frame.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch

from sttm_cli.base.device import wait_for
from sttm_cli.bench.peak_memory import watch_memory
from sttm_cli.merge import merge_tokens

Shape = tuple[int, int, int, int]

SHAPES: tuple[Shape, ...] = (
    (16, 14, 14, 3584),
    (64, 14, 14, 3584),
    (128, 14, 14, 3584),
    (512, 14, 14, 3584),
    (64, 24, 42, 3584),
)
DTYPES = (torch.float32, torch.bfloat16)
BUDGETS = (None, 0.3)
"""None: the default thresholds 0.8 and 0.6."""


@dataclass(frozen=True)
class Row:
    """One measurement.

    Seconds: `best` and `median` of the repeats; `cpu`: processor time of all threads, minimum of
    the repeats; `floor`: reading the input twice. `extra`: peak memory beyond the input, as a
    multiple of the input; None if it cannot be measured.
    """

    shape: Shape
    dtype: str
    device: str
    budget: float | None
    kept: float
    best: float
    median: float
    cpu: float
    floor: float
    extra: float | None


def measure_merging(
    shapes: Sequence[Shape] = SHAPES,
    *,
    dtypes: Sequence[torch.dtype] = DTYPES,
    device: str = "cpu",
    repeat: int = 5,
) -> Iterator[Row]:
    """Measure every shape, dtype and budget; yield the rows."""
    for shape in shapes:
        for dtype in dtypes:
            video = made_up_tokens(shape, dtype, device)
            floor = 2 * min(_times(partial(_read, video), repeat, device)[0])
            for budget in BUDGETS:
                yield _measure(video, budget, floor, repeat)


def made_up_tokens(shape: Shape, dtype: torch.dtype, device: str) -> torch.Tensor:
    """Make tokens [T, H, W, C] in which a twentieth of the cells changes in every frame."""
    _, height, width, channels = shape
    random = torch.Generator().manual_seed(0)
    rank = 64
    mixing = torch.randn(rank, channels, generator=random) / math.sqrt(rank)
    scene = torch.randn(1, rank, 5, 5, generator=random)
    scene = torch.nn.functional.interpolate(scene, (height, width), mode="bilinear")
    scene = scene[0].permute(1, 2, 0).reshape(-1, rank)
    video = torch.empty(shape, dtype=dtype, device=device)
    for frame in video:
        changed = torch.rand(len(scene), 1, generator=random) < 0.05
        scene = torch.where(changed, torch.randn(scene.shape, generator=random), scene)
        noisy = scene + 0.5 * torch.randn(scene.shape, generator=random)
        frame.copy_((noisy @ mixing).view(frame.shape))
    return video


def _measure(video: torch.Tensor, budget: float | None, floor: float, repeat: int) -> Row:
    def merge() -> float:
        return len(merge_tokens(video, budget=budget)) / video.shape[:3].numel()

    kept, device = merge(), video.device.type
    with watch_memory(device) as peak:
        merge()
    times, cpu = _times(merge, repeat, device)
    return Row(
        shape=(video.shape[0], video.shape[1], video.shape[2], video.shape[3]),
        dtype=str(video.dtype).removeprefix("torch."),
        device=device,
        budget=budget,
        kept=kept,
        best=min(times),
        median=median(times),
        cpu=min(cpu),
        floor=floor,
        extra=None if peak.extra is None else peak.extra / video.nbytes,
    )


def _read(video: torch.Tensor) -> torch.Tensor:
    # Read as float32 for any dtype; summing bfloat16 would measure arithmetic.
    return video.flatten().view(torch.float32).sum()


def _times(run: Callable[[], object], repeat: int, device: str) -> tuple[list[float], list[float]]:
    """Return the wall-clock and processor seconds of each run after a warm-up run."""
    run()
    times, cpu = [], []
    for _ in range(repeat):
        wait_for(device)
        start, busy = time.perf_counter(), time.process_time()
        run()
        wait_for(device)
        times.append(time.perf_counter() - start)
        cpu.append(time.process_time() - busy)
    return times, cpu


def growth(rows: Sequence[Row]) -> float | None:
    """Fit the exponent of time as a power of T by least squares; 1 is linear.

    Uses processor time on a CPU, which hardly depends on the load of the machine.
    """
    points = [
        (math.log(row.shape[0]), math.log(row.cpu if row.device == "cpu" else row.best))
        for row in rows
    ]
    if len({x for x, _ in points}) < 2:
        return None
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points, strict=True))
    above = math.fsum((x - mean_x) * (y - mean_y) for x, y in points)
    return above / math.fsum((x - mean_x) ** 2 for x, _ in points)


HEAD = (
    "T x H x W x C", "dtype", "budget", "kept", "best ms", "median ms", "processor ms", "floor ms",
    "best / floor", "extra memory",
)  # fmt: skip
"""The columns of `cells`; floor: reading the tokens twice."""


def cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The rows as text, for a table with the columns `HEAD`."""
    return [
        (
            " x ".join(map(str, row.shape)),
            row.dtype,
            "0.8, 0.6" if row.budget is None else f"{row.budget}",
            f"{row.kept:.1%}",
            f"{row.best * 1e3:.1f}",
            f"{row.median * 1e3:.1f}",
            f"{row.cpu * 1e3:.1f}",
            f"{row.floor * 1e3:.1f}",
            f"{row.best / row.floor:.1f}",
            "not measured" if row.extra is None else f"{row.extra:.2f} x input",
        )
        for row in rows
    ]


def markdown(rows: Sequence[Row]) -> str:
    """The same as a Markdown table, for a file."""
    lines = [HEAD, ("---",) * 3 + ("---:",) * (len(HEAD) - 3), *cells(rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def growths(rows: Sequence[Row]) -> Iterator[str]:
    """Yield a line for each dtype and budget with the growth of time with the number of frames."""
    small = [row for row in rows if row.shape[1:3] == rows[0].shape[1:3]]
    for dtype, budget in dict.fromkeys((row.dtype, row.budget) for row in small):
        same = [row for row in small if (row.dtype, row.budget) == (dtype, budget)]
        exponent = growth(same)
        if exponent is not None:
            what = "thresholds" if budget is None else f"budget {budget}"
            yield f"{dtype}, {what}: time grows with T to the power of {exponent:.2f}"
