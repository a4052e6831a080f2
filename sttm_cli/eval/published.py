"""The paper's benchmarks, their settings, and their published rows.

Source of all figures: "Multi-Granular Spatio-Temporal Token Merging for Training-Free Acceleration
of Video LLMs", ICCV 2025, arXiv 2507.07990, LLaVA-Video-7B on one A100.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from sttm_cli.base.errors import UsageError
from sttm_cli.base.types import Json
from sttm_cli.settings.fields import Thresholds
from sttm_cli.settings.settings import Settings

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


# share kept -> the thresholds that the paper set by hand for it, each between two bounds.
_BY_HAND = {0.5: ((0.85, 0.85), (0.55, 0.65)), 0.3: ((0.8, 0.8), (0.5, 0.65))}
Amount = float | int | Thresholds
"""How much is merged: a budget, or thresholds in its place."""


@dataclass(frozen=True)
class Published:
    """A published figure: accuracy in % at a `share` of the tokens. Over all benchmarks:
    `first_token_s` of the decoder's first pass alone, and `tokens` of video."""

    share: float
    accuracy: float
    first_token_s: float
    tokens: int


def has_rows(model: str) -> bool:
    """Whether anything is published of a model."""
    return model.lower() in _ROWS


def published(model: str, method: str, amount: Amount, task: str) -> Published | None:
    """The published figure of this model, method, amount and task, None where there is none."""
    names = [benchmark.task for benchmark in BENCHMARKS]
    share = _by_hand(amount) if isinstance(amount, Thresholds) else amount
    share = share if isinstance(share, float) else 0.0
    row = _ROWS.get(model.lower(), {}).get((share, "" if share == 1 else method))
    if row is None or task not in names:
        return None
    return Published(share, row[names.index(task)], row[-2], int(row[-1]))


def _by_hand(given: Thresholds) -> float:
    """The share for which the paper has such thresholds, 0 where it has none such."""
    for share, (spatial, temporal) in _BY_HAND.items():
        if (
            spatial[0] <= given.spatial <= spatial[1]
            and temporal[0] <= given.temporal <= temporal[1]
        ):
            return share
    return 0.0


def at(settings: Settings, amount: Amount) -> Settings:
    """The settings with which a video is merged so much."""
    if isinstance(amount, Thresholds):
        return replace(settings, budget=1.0, method=amount.method)
    return replace(settings, budget=amount)


def stated(amount: Amount) -> Json:
    """An amount as rows of JSON state it."""
    if isinstance(amount, Thresholds):
        return {"budget": None, "thresholds": [amount.spatial, amount.temporal]}
    return {"budget": amount, "thresholds": None}


def in_words(row: Json) -> str:
    """The amount of a row of JSON: 0.3, or 0.85/0.6."""
    pair = row.get("thresholds")
    return f"{Thresholds(*pair)}" if pair else f"{row['budget']:g}"


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
