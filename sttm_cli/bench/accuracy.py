"""Accuracy by budget and method: one exam, with every method on the same visual tokens.

Each video is written, decoded and encoded once, with the package's own stages; then the KV of every
method at every budget answers all questions.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from sttm_cli.base.errors import UsageError
from sttm_cli.base.results import Clock
from sttm_cli.base.types import Json, Merged, PrefixKV, VisualTokens
from sttm_cli.bench.exam import Exam
from sttm_cli.bench.intervals import Bootstrap
from sttm_cli.bench.scoring import alone, in_conversation, mark
from sttm_cli.merge.method import find_method
from sttm_cli.runtime.session import VideoQA
from sttm_cli.settings.fields import check_no_thresholds
from sttm_cli.settings.settings import PAPER_METHOD as OURS
from sttm_cli.tiny.questions import KINDS

# Entrants: the methods to compare, and the layers before which they merge.


Shorten = Callable[[torch.Tensor, float, int], Merged]
"""Merges features [T, H, W, C], given the budget as a share and the token count of `sttm`."""


@dataclass(frozen=True)
class Entrant:
    """A method under test, merging before decoder layer `layer` (None: the model's default).

    `sizes`: whether merged tokens count by their size in attention.
    """

    name: str
    shorten: Shorten
    layer: int | None = None
    sizes: bool = False


def find_entrants(
    names: str, *, layers: int = 0, variants: Mapping[str, Shorten] | None = None
) -> list[Entrant]:
    """Parse `names`, separated by commas; `sttm` is always included, and first.

    `NAME@L` merges before decoder layer L of `layers` instead of the model's default; `NAME+sizes`
    weighs merged tokens by their size in attention, `NAME-sizes` does not; without either it is as
    the method needs it. Names may be methods or `variants`. Raises UsageError.
    """
    wanted = [OURS, *(name.strip() for name in names.split(","))]
    return [_find(name, layers, variants or {}) for name in dict.fromkeys(wanted)]


def _find(name: str, layers: int, variants: Mapping[str, Shorten]) -> Entrant:
    plain = name.removesuffix("+sizes").removesuffix("-sizes")
    if "+" in plain or plain.endswith("-sizes"):
        raise UsageError(
            f"--methods {name!r} is not known", "only +sizes or -sizes can follow a method"
        )
    check_no_thresholds(plain, "--methods")
    method, sign, layer = plain.partition("@")
    if sign and not layer.isdigit():
        raise UsageError(f"--methods {name!r} is not known", "a layer is a number, as in sttm@2")
    if layer and layers and int(layer) >= layers:
        raise UsageError(f"--methods {name!r}: the model has {layers} layers")
    shorten = variants.get(method) or _by_method(method)
    sizes = method not in variants and find_method(method, "--methods").sizes
    if plain != name:
        sizes = name.endswith("+sizes")
    entrant = Entrant(name, shorten, sizes=sizes)
    return replace(entrant, layer=int(layer)) if sign else entrant


def _by_method(name: str) -> Shorten:
    merge = find_method(name, "--methods").merge
    if name == OURS:
        return lambda features, budget, kept: merge(features, budget)
    return lambda features, budget, kept: merge(features, kept)


FOLLOW_UP = "follow-up"
"""The kind of the second and later questions in a conversation."""
Cell = tuple[str, float]
"""A method and a budget."""


@dataclass
class Results:
    """All questions with their videos, kinds, forms and bets, and whether each cell was right.

    `form`, `bet`: as in `Question`. `kept`: by cell, the share of each video's tokens kept.
    """

    video: list[int] = field(default_factory=list)
    kind: list[str] = field(default_factory=list)
    form: list[str] = field(default_factory=list)
    bet: list[str] = field(default_factory=list)
    right: dict[Cell, list[bool]] = field(default_factory=dict)
    kept: dict[Cell, list[float]] = field(default_factory=dict)

    @property
    def asked(self) -> int:
        """The number of questions without the follow-ups."""
        return sum(kind != FOLLOW_UP for kind in self.kind)


def take_exam(
    qa: VideoQA,
    exam: Exam,
    *,
    entrants: Sequence[Entrant],
    budgets: Sequence[float],
    questions: int,
    scenes: Path | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Results:
    """Ask every entrant, at every budget, at least `questions` questions and their follow-ups.

    The first entrant must be `sttm`. Budget 1, where all methods are equal, is always measured,
    with that entrant only. `scenes`: a folder that keeps the videos for later exams.
    """
    results, model = Results(), qa.model()
    cells = [(entrants[0], 1.0), *((e, b) for b in budgets if b != 1.0 for e in entrants)]
    with ExitStack() as stack:
        own = scenes or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sttm-")))
        for number, sheet in enumerate(exam.sheets(own)):
            tokens, _ = qa.compute.visual_tokens(qa.request(sheet.path), Clock())
            singles = [alone(model, question) for question in sheet.questions]
            turns = in_conversation(model, sheet.questions)
            results.video += [number] * (2 * len(sheet.questions) - 1)
            results.kind += [q.kind for q in sheet.questions]
            results.kind += [FOLLOW_UP] * (len(sheet.questions) - 1)
            every = (*sheet.questions, *sheet.questions[1:])
            results.form += [q.form for q in every]
            results.bet += [q.bet for q in every]
            for cell, kv in _shortened(qa, tokens, cells):
                # Separate calls: in one, all rows would be padded to the length of `turns`.
                first, (later,) = mark(model, kv, singles), mark(model, kv, [turns])
                right = [answers[0] for answers in first] + list(later[1:])
                results.right.setdefault(cell, []).extend(right)
                share = kv.tokens.video_kept / kv.tokens.video_full
                results.kept.setdefault(cell, []).append(share)
            progress(results.asked)
            if results.asked >= questions:
                return results
    raise RuntimeError("the exam ran out of videos")


def _shortened(
    qa: VideoQA, tokens: VisualTokens, cells: Sequence[tuple[Entrant, float]]
) -> Iterator[tuple[Cell, PrefixKV]]:
    """Yield the video's KV by every method at every budget; `sttm` sets the token count."""
    kept = 0
    for entrant, budget in cells:
        merge = _bound(entrant, budget, kept)
        kv = qa.compute.prefill(
            tokens, Clock(), budget=budget, merge=merge, layer=entrant.layer, sizes=entrant.sizes
        )
        if entrant.name == OURS:
            kept = kv.tokens.video_kept
        yield (entrant.name, budget), kv


def _bound(entrant: Entrant, budget: float, kept: int) -> Callable[[torch.Tensor], Merged]:
    return lambda features: entrant.shorten(features, budget, kept)


def report(results: Results) -> Json:
    """Build the rows by method and budget, with 95 % intervals, and the accuracy by chance: what a
    rule reaches that knows the question alone, and gives the most frequent answer of its form."""
    video, kind = np.array(results.video), np.array(results.kind)
    form, bet = np.array(results.form), np.array(results.bet)
    boot, first = Bootstrap(video), kind != FOLLOW_UP
    right = {cell: np.array(marks) for cell, marks in results.right.items()}
    full = right[OURS, 1.0]
    kinds = [k for k in (*KINDS, FOLLOW_UP) if (kind == k).any()]
    rows = []
    for (name, budget), marks in right.items():
        rows.append(
            {
                "method": name,
                "budget": budget,
                "kept": float(np.mean(results.kept[name, budget])),
                "accuracy": boot.accuracy(marks, first).to_json(),
                "of_full": boot.kept(marks, full, first).to_json(),
                "ours_ahead": None
                if name == OURS
                else boot.ahead(right[OURS, budget], marks, first).to_json(),
                "follow_up_of_full": boot.kept(marks, full, ~first).to_json(),
                "kinds": {k: boot.accuracy(marks, kind == k).to_json() for k in kinds},
            }
        )
    chance = {k: _chance(form[kind == k], bet[kind == k]) for k in kinds}
    counts = Counter(results.kind)
    by_chance = sum(chance[k] * counts[k] for k in kinds if k != FOLLOW_UP) / results.asked
    return {
        "videos": int(video.max()) + 1,
        "questions": {"all": results.asked, **{k: counts[k] for k in kinds}},
        "chance": {"all": by_chance, **chance},
        "rows": rows,
    }


def _chance(forms: np.ndarray, bets: np.ndarray) -> float:
    right = (Counter(bets[forms == form].tolist()).most_common(1)[0][1] for form in set(forms))
    return sum(right) / len(forms)
