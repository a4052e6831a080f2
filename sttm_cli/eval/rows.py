"""Results of the benchmarks beside the published figures: rows with 95 % intervals."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median

import numpy as np

from sttm_cli.base.types import Json
from sttm_cli.bench.intervals import Bootstrap, Estimate
from sttm_cli.eval.paper import Measured
from sttm_cli.eval.published import BENCHMARKS, SOURCE, has_rows, published, stated


def report(model: str, method: str, measured: Sequence[Measured]) -> Json:
    """Return `sttm.eval/1` of the paper's benchmarks; accuracies in %, differences in points."""
    full = {m.benchmark.task: m.result for m in measured if m.budget == 1.0 and not m.error}
    rows = [_row(model, method, m, full.get(m.benchmark.task)) for m in measured]
    return {
        "schema": "sttm.eval/1",
        "kind": "paper",
        "model": model,
        "method": method,
        "source": SOURCE,
        "published": has_rows(model),
        "rows": rows,
        "averages": list(_averages(rows)),
    }


def _row(model: str, method: str, measured: Measured, full: Json | None) -> Json:
    benchmark, result = measured.benchmark, measured.result
    known = published(model, method, measured.budget, benchmark.task)
    row: Json = {
        "benchmark": benchmark.name,
        "task": benchmark.task,
        **stated(measured.budget),
        "frames": benchmark.frames,
        "note": benchmark.note or None,
        "error": measured.error or None,
        "kept": measured.kept,
        "published": known and known.accuracy,
        "published_share": known and known.share,
        "published_tokens": known and known.tokens,
        "published_first_token_s": known and known.first_token_s,
    }
    if result is None:
        return row
    answered = [item for item in result["items"] if not item["failed"]]
    failed = len(result["items"]) - len(answered)
    if failed:
        # lmms-eval's own score takes what failed as wrong.
        result = {**result, "items": answered, "score": None}
        if _right(result) is None:
            return row
    return row | {
        "items": len(answered),
        "failed": failed,
        "videos": len({item["video"] for item in result["items"]}),
        "accuracy": _accuracy(result),
        "lmms_eval": {name: result[name] for name in ("metric", "score")},
        "difference": known and _accuracy(result, less=known.accuracy),
        "against_full": _against_full(result, full),
        **_served([item["served"] for item in result["items"] if item["served"]]),
    }


def _accuracy(result: Json, *, less: float = 0.0) -> Json | None:
    """Return the share of right items in %, minus a figure; None if the task does not say which are
    right."""
    right, boot = _right(result), _draws(result)
    if right is None:
        return None
    every = np.ones(len(right), bool)
    return in_percent(boot.accuracy(right, every), known=boot.tells(every), less=less)


def _right(result: Json) -> np.ndarray | None:
    marks = [item["right"] for item in result["items"]]
    return None if not marks or None in marks else np.array(marks, dtype=float)


def _draws(result: Json) -> Bootstrap:
    numbers: dict[str, int] = {}
    video = [numbers.setdefault(item["video"], len(numbers)) for item in result["items"]]
    return Bootstrap(np.array(video))


def _against_full(result: Json, full: Json | None) -> Json | None:
    """Return how many points more are right than at budget 1, on the same items and draws."""
    if full is None or result is full:
        return None
    ours, theirs = _right(result), _right(full)
    if ours is None or theirs is None:
        return None
    if [item["item"] for item in result["items"]] != [item["item"] for item in full["items"]]:
        return None
    every, boot = np.ones(len(ours), bool), _draws(result)
    return in_percent(boot.ahead(ours, theirs, every), known=boot.tells(every))


def in_percent(estimate: Estimate, *, known: bool, less: float = 0.0) -> Json:
    """Return an estimate in %, minus a figure; its interval is None unless it is `known`."""
    values = {name: 100 * value - less for name, value in estimate.to_json().items()}
    return values if known else {**values, "low": None, "high": None}


def _served(replies: Sequence[Json]) -> Json:
    """Return tokens (means over the questions), seconds to the first token (medians) and the
    cache's savings, as the server reports them."""
    hits = [reply for reply in replies if reply["cache"]["hit"]]
    computed = [reply for reply in replies if not reply["cache"]["hit"]]
    saved = (
        max(0.0, reply["cache"]["cold_seconds"] - (reply["seconds"]["restore"] or 0.0))
        for reply in hits
    )
    return {
        "tokens": {
            "full": _mean([reply["tokens"]["video_full"] for reply in replies]),
            "kept": _mean([reply["tokens"]["video_kept"] for reply in replies]),
        },
        "first_token_s": {"computed": _first_token(computed), "cached": _first_token(hits)},
        "prefill_s": _median([reply["seconds"]["prefill"] for reply in computed]),
        "cache": {"questions": len(replies), "hits": len(hits), "saved_s": sum(saved)},
    }


def _first_token(replies: Sequence[Json]) -> float | None:
    return _median([reply["seconds"]["first_token"] for reply in replies])


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _averages(rows: Sequence[Json]) -> list[Json]:
    """Return the paper's average over its six benchmarks, at the budgets that have all of them."""
    found = []
    amounts = [{name: row[name] for name in ("budget", "thresholds")} for row in rows]
    for place, amount in enumerate(amounts):
        if amount in amounts[:place]:
            continue
        names = {b.task for b in BENCHMARKS}
        of = [
            row
            for row, its in zip(rows, amounts, strict=True)
            if its == amount and row["task"] in names and row.get("accuracy") and not row["error"]
        ]
        if len(of) == len(BENCHMARKS):
            theirs = [row["published"] for row in of if row["published"] is not None]
            found.append(
                {
                    **amount,
                    "accuracy": fmean(row["accuracy"]["value"] for row in of),
                    "published": fmean(theirs) if len(theirs) == len(of) else None,
                }
            )
    return found
