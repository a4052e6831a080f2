"""The exam of `sttm bench accuracy` for variants of the default method.

    python -m sttm_cli.bench.studies.variants --split dev --questions 1000 --budgets 0.5,0.3,0.15

Prints the rows that `sttm bench accuracy --json` prints.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sttm_cli.base.types import Merged
from sttm_cli.bench.accuracy import Shorten, find_entrants, report, take_exam
from sttm_cli.bench.exam import Exam, films
from sttm_cli.merge import MergedTokens, merge_tokens
from sttm_cli.merge.groups import cosines, grouped, shared_out
from sttm_cli.merge.methods.spatial import spatial_only
from sttm_cli.runtime.session import VideoQA


def _merged(features: torch.Tensor, budget: float, kept: int, **options: Any) -> Merged:
    return merge_tokens(features, budget=budget, **options)


def _contrast(features: torch.Tensor, budget: float, kept: int, **options: Any) -> MergedTokens:
    """Merge by the similarity of the features minus their mean over the video."""
    centred = features - features.mean((0, 1, 2), keepdim=True)
    merged = merge_tokens(centred, budget=budget, **options)
    return replace(merged, features=merged.sources(features))


def _by_change(features: torch.Tensor, budget: float, kept: int) -> Merged:
    """Divide the budget among the frames by their change, and merge each by its quadtree."""
    frames, cells = features.shape[0], features.shape[1] * features.shape[2]
    change = 1 - cosines(features[1:], features[:-1]).mean((1, 2))
    # The first frame is entirely new; the others are weighted by their change.
    weights = torch.cat([change.new_ones(1), change.clamp(min=0) / change.max().clamp(min=1e-6)])
    counts = shared_out(weights + 1e-3, kept, cells).tolist()
    names = torch.full((frames, cells), -1, device=features.device)
    for t, count in enumerate(counts):
        if count > 0:
            part = spatial_only(features[t : t + 1], count)
            names[t] = cells * t + part.roots[part.sources.index.flatten()]
    return grouped(features, names.flatten())


VARIANTS: dict[str, Shorten] = {
    "sttm-root0": partial(_merged, root_level=0),
    "sttm-root2": partial(_merged, root_level=2),
    "sttm-weighted": partial(_merged, weighted=True),
    "sttm-nearest": partial(_merged, link="most_similar"),
    "sttm-contrast": _contrast,
    "sttm-contrast-weighted": partial(_contrast, weighted=True),
    "sttm-change": _by_change,
}


def main() -> None:
    options = _options()
    with VideoQA(model=options.model, frames=options.frames, no_cache=True) as qa:
        results = take_exam(
            qa,
            Exam(options.split, options.frames, films(options.films) if options.films else None),
            entrants=find_entrants(
                options.methods, layers=qa.model_plan.checkpoint.layers, variants=VARIANTS
            ),
            budgets=[float(budget) for budget in options.budgets.split(",")],
            questions=options.questions,
            scenes=options.scenes,
        )
    print(json.dumps(report(results), indent=2))


def _options() -> argparse.Namespace:
    about = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser("python -m sttm_cli.bench.studies.variants", description=about)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--split", default="test", choices=("test", "dev"))
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--films", type=Path, help="a folder to take backgrounds from")
    parser.add_argument("--scenes", type=Path, help="a folder that keeps the scenes' videos")
    parser.add_argument("--budgets", default="0.5,0.3,0.15")
    parser.add_argument("--methods", default=",".join(VARIANTS))
    return parser.parse_args()


if __name__ == "__main__":
    main()
