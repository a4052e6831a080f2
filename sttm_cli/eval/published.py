"""The paper's benchmarks, their settings, and their published rows.

Source of all figures: "Multi-Granular Spatio-Temporal Token Merging for Training-Free Acceleration
of Video LLMs", ICCV 2025, arXiv 2507.07990, LLaVA-Video-7B on one A100.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sttm_cli.base.errors import UsageError

SOURCE = "arXiv 2507.07990"
FPS = 1.0


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: its task in lmms-eval, the paper's maximum of frames (at one per second), and
    the differences from the paper's setting."""

    name: str
    task: str
    frames: int = 128
    note: str = ""


BENCHMARKS = (
    Benchmark("VNBench", "vnbench", frames=180),
    Benchmark("Video-MME", "videomme"),
    Benchmark("LongVideoBench", "longvideobench_val_v"),
    Benchmark(
        "MLVU",
        "mlvu_dev",
        note="counted by question, as the paper does; lmms-eval's own score is a mean over kinds",
    ),
    Benchmark(
        "EgoSchema",
        "egoschema_subset",
        note="500 questions have public answers; the published figure may be of all 5,031",
    ),
    Benchmark("NExT-QA", "nextqa_mc_test"),
)
"""In the order of the paper's table."""

# kept, method -> the benchmarks in this order, then seconds to the first token and video tokens.
_LLAVA_VIDEO_7B = {
    (1.0, ""): (77.6, 63.1, 59.6, 70.9, 58.7, 82.9, 1.687, 18522),
    (0.5, "tome"): (74.1, 61.4, 58.0, 69.7, 58.7, 82.6, 0.878, 9261),
    (0.5, "dycoke"): (73.2, 62.0, 58.2, 69.7, 58.7, 82.4, 0.824, 8873),
    (0.5, "sttm"): (77.4, 62.6, 59.6, 69.9, 58.6, 82.5, 0.815, 8522),
    (0.3, "tome"): (64.1, 59.2, 56.3, 67.0, 57.4, 81.6, 0.610, 5557),
    (0.3, "dycoke"): (63.9, 60.0, 56.5, 68.6, 58.7, 81.7, 0.590, 5797),
    (0.3, "sttm"): (76.0, 62.3, 57.0, 68.5, 58.0, 82.0, 0.555, 5179),
}
_ROWS = {"llava-video-7b": _LLAVA_VIDEO_7B, "lmms-lab/llava-video-7b-qwen2": _LLAVA_VIDEO_7B}
"""By the lower-case names of the models."""


@dataclass(frozen=True)
class Published:
    """A published figure: accuracy in %. Over all benchmarks: `first_token_s` of the decoder's
    first pass alone, and `tokens` of video."""

    accuracy: float
    first_token_s: float
    tokens: int


def published(model: str, method: str, budget: float | int, task: str) -> Published | None:
    """The published figure of this model, method, budget and task, None where there is none."""
    names = [benchmark.task for benchmark in BENCHMARKS]
    share = float(budget) if isinstance(budget, float) else None
    row = _ROWS.get(model.lower(), {}).get((share or 0.0, "" if share == 1 else method))
    if row is None or task not in names:
        return None
    return Published(row[names.index(task)], row[-2], int(row[-1]))


def benchmarks(tasks: Iterable[str], *, own: bool) -> tuple[Benchmark, ...]:
    """Return the benchmarks with the given names, their own or their tasks'; with `own`, also tasks
    of the user's own. Raises UsageError for an unknown name, and for none."""
    known = {name.lower(): b for b in BENCHMARKS for name in (b.name, b.task)}
    known |= {b.task.split("_")[0]: b for b in BENCHMARKS}
    found = []
    for name in filter(None, (task.strip() for task in tasks)):
        benchmark = known.get(name.lower())
        if benchmark is None and not own:
            raise UsageError(
                f"--tasks {name!r} is not known",
                f"give {', '.join(b.task for b in BENCHMARKS)}; "
                "tasks of your own need --include-path",
            )
        found.append(benchmark or Benchmark(name, name))
    if not found:
        raise UsageError("--tasks names no task", "give one or more, with commas between them")
    return tuple(dict.fromkeys(found))
