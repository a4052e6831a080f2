"""The user's own questions, asked at several budgets.

An answer is kept under everything that shaped it: a second run only asks new or changed questions.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sttm_cli import __version__
from sttm_cli.base.errors import UsageError, VideoError
from sttm_cli.base.results import Answer, Choice
from sttm_cli.base.types import Json
from sttm_cli.bench.intervals import Bootstrap
from sttm_cli.eval.published import Amount, at, stated
from sttm_cli.eval.questions import ALL, Item
from sttm_cli.eval.rows import in_percent
from sttm_cli.runtime.prepared import Prepared
from sttm_cli.runtime.request import Request
from sttm_cli.runtime.session import VideoQA


@dataclass(frozen=True)
class Asked:
    """An item at a budget: the answer and the video's tokens, or `error`. `new`: asked in this run,
    not kept from an earlier one."""

    item: Item
    budget: Amount
    answer: str | None = None
    kept: int = 0
    full: int = 0
    first_token_s: float | None = None
    hit: bool = False
    saved_s: float = 0.0
    error: str = ""
    new: bool = True

    @property
    def right(self) -> bool:
        return self.answer is not None and self.item.is_right(self.answer)


class Kept:
    """Answers by everything that shaped them, in a file of JSON lines; None keeps nothing."""

    def __init__(self, path: Path | None, *, again: bool = False) -> None:
        self._path = path
        self._known: dict[str, Json] = {}
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if again:
            path.unlink(missing_ok=True)
        for line in path.read_bytes().splitlines() if path.exists() else ():
            try:
                value = json.loads(line)
                self._known[value["key"]] = value["answer"]
            except (ValueError, KeyError, TypeError):
                continue

    def get(self, key: str) -> Json | None:
        return self._known.get(key)

    def add(self, key: str, answer: Json) -> None:
        """Keep an answer on a new line, even if a kill truncated the last one."""
        self._known[key] = answer
        if self._path is not None:
            line = json.dumps({"key": key, "answer": answer})
            with self._path.open("ab") as file:
                file.write(b"\n" + line.encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())


def ask_all(
    qa: VideoQA,
    items: Sequence[Item],
    *,
    folder: Path,
    budgets: Sequence[Amount],
    kept: Kept,
    progress: Callable[[int], None] = lambda done: None,
) -> Iterator[Asked]:
    """Every item at every budget, a video at a time; a video or a question that fails ends itself
    only. Raises the errors of the model and of the memory."""
    done = 0
    sessions = [qa.with_settings(at(qa.settings, budget)) for budget in budgets]
    try:
        for video in dict.fromkeys(item.video for item in items):
            about = [item for item in items if item.video == video]
            for session, budget in zip(sessions, budgets, strict=True):
                for asked in _about(session, folder / video, about, budget, kept):
                    done += 1
                    progress(done)
                    yield asked
    finally:
        for session in sessions:
            session.close()


def _about(
    qa: VideoQA, video: Path, items: Sequence[Item], budget: Amount, kept: Kept
) -> Iterator[Asked]:
    """Yield the items about one video at one budget; it is only prepared if an answer is new."""
    prepared: Prepared | None = None
    fault = ""
    for item in items:
        known, new = None, False
        try:
            if not fault:
                request = qa.request(video)
                key = _key(request, item, qa.settings.max_new_tokens)
                known = kept.get(key)
                if known is None:
                    new, sooner = True, prepared is None
                    prepared = prepared or qa.prepare(request)
                    known = _answer(qa, prepared, item, sooner=sooner)
                    kept.add(key, known)
        except VideoError as error:
            fault = str(error)
        except UsageError as error:
            # Concerns this question only: too long for the model's context, or indistinguishable
            # options.
            yield Asked(item, budget, error=str(error))
            continue
        if known is None:
            yield Asked(item, budget, error=fault)
        else:
            yield Asked(item, budget, **known, new=new)


def _key(request: Request, item: Item, max_new_tokens: int) -> str:
    shaped = [__version__, request.key, item.question, item.options, max_new_tokens]
    return hashlib.sha256(json.dumps(shaped).encode()).hexdigest()


def _answer(qa: VideoQA, prepared: Prepared, item: Item, *, sooner: bool) -> Json:
    """Answer an item, in the form that is kept; `sooner`: count the seconds that the cache saved
    for the video here, with the first question about it."""
    given: Answer | Choice
    if item.options:
        given = qa.choose(prepared, item.question, item.options)
    else:
        given = qa.answer(prepared, item.question)
    saved = prepared.cold_seconds - (given.seconds["restore"] or 0.0)
    return {
        "answer": given.best.text if isinstance(given, Choice) else given.text,
        "kept": given.tokens.video_kept,
        "full": given.tokens.video_full,
        "first_token_s": given.seconds["first_token"],
        "hit": given.cache_hit,
        "saved_s": max(0.0, saved) if given.cache_hit and sooner else 0.0,
    }


# ---- the report


def report(asked: Sequence[Asked], budgets: Sequence[Amount]) -> Json:
    """`sttm.eval/1` of one's own questions: a row for each budget and category, the items whose
    answers differ between budgets, and those without an answer."""
    answered = _answered_everywhere(asked)
    lines = list(answered)
    categories = [ALL, *dict.fromkeys(cells[0].item.category for cells in answered.values())]
    names = [name for name in categories if name is not None]
    return {
        "schema": "sttm.eval/1",
        "kind": "questions",
        "items": len({a.item.line for a in asked}),
        "answered": len(lines),
        "rows": list(_rows(answered, budgets, names if len(names) > 1 else [ALL])),
        "changed": [_changed(cells) for cells in answered.values() if _differs(cells)],
        "failed": [
            {"line": a.item.line, "video": a.item.video, **stated(a.budget), "error": a.error}
            for a in asked
            if a.error
        ],
        "cache": {
            "asked": sum(a.new for a in asked if not a.error),
            "kept_answers": sum(not a.new for a in asked if not a.error),
            "hits": sum(a.new and a.hit for a in asked),
            "saved_s": sum(a.saved_s for a in asked if a.new),
        },
    }


def _answered_everywhere(asked: Sequence[Asked]) -> dict[int, list[Asked]]:
    """Return the items by line, in the file's order, with their answers in the order of the
    budgets; without those that lack an answer, so that all budgets are compared on the same
    questions."""
    cells: dict[int, list[Asked]] = {}
    for one in sorted(asked, key=lambda one: one.item.line):
        cells.setdefault(one.item.line, []).append(one)
    return {line: row for line, row in cells.items() if not any(one.error for one in row)}


def _rows(
    answered: dict[int, list[Asked]], budgets: Sequence[Amount], categories: Sequence[str]
) -> Iterator[Json]:
    table = list(answered.values())
    if not table:
        return
    videos = {name: number for number, name in enumerate({row[0].item.video: 0 for row in table})}
    boot = Bootstrap(np.array([videos[row[0].item.video] for row in table]))
    first = np.array([row[0].right for row in table])
    for place, budget in enumerate(budgets):
        column = [row[place] for row in table]
        right = np.array([one.right for one in column])
        for name in categories:
            among = np.array([name in (ALL, one.item.category) for one in column])
            yield {
                **stated(budget),
                "category": name,
                "items": int(among.sum()),
                "videos": boot.videos(among),
                "accuracy": in_percent(boot.accuracy(right, among), known=boot.tells(among)),
                "difference": in_percent(boot.ahead(right, first, among), known=boot.tells(among))
                if place
                else None,
                "tokens": {
                    "full": float(np.mean([one.full for one in column])),
                    "kept": float(np.mean([one.kept for one in column])),
                },
            }


def _differs(cells: Sequence[Asked]) -> bool:
    return len({one.right for one in cells}) > 1 or len({one.answer for one in cells}) > 1


def _changed(cells: Sequence[Asked]) -> Json:
    item = cells[0].item
    return {
        "line": item.line,
        "video": item.video,
        "question": item.question,
        "category": item.category,
        "answers": [
            {**stated(one.budget), "answer": one.answer, "right": one.right} for one in cells
        ],
    }
