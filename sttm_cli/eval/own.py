"""Questions of one's own with known answers, asked at several budgets.

An answer is kept under all that shaped it: run again, only what is new or was changed is asked.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sttm_cli import __version__
from sttm_cli.base.errors import UsageError, VideoError
from sttm_cli.base.results import Answer, Choice
from sttm_cli.base.types import Json
from sttm_cli.bench.intervals import Bootstrap
from sttm_cli.eval.rows import in_percent
from sttm_cli.runtime.prepared import Prepared
from sttm_cli.runtime.request import Request
from sttm_cli.runtime.session import VideoQA
from sttm_cli.settings.fields import check_question

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
ALL = "all"
"""The name of all categories together."""
_MOST_NAMED = 6
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NOT_WORDS = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Item:
    """A question in line `line` of its file; `answers` are the texts that are right. With
    `options`, the likeliest of them is the answer."""

    line: int
    video: str
    question: str
    answers: tuple[str, ...]
    options: tuple[str, ...] = ()
    category: str | None = None

    def is_right(self, answer: str) -> bool:
        """Whether an answer is right: equal but for case, punctuation and articles."""
        if self.options:
            return answer in self.answers
        return plain(answer) in map(plain, self.answers)


def plain(text: str) -> str:
    """A text without case, punctuation and articles."""
    words = _NOT_WORDS.sub(" ", text.casefold())
    return " ".join(_ARTICLES.sub(" ", words).split())


# ---- the file


def read_items(file: Path) -> tuple[Item, ...]:
    """The questions in a file of JSON lines. Raises UsageError that names the first bad line."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{file} cannot be read: {reason}", "give a file of JSON lines") from error
    items, bad = [], []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                items.append(_item(number, json.loads(line)))
            except (UsageError, ValueError, RecursionError) as error:
                bad.append((number, getattr(error, "message", f"not valid JSON: {error}")))
    if bad:
        number, message = bad[0]
        others = ", ".join(str(other) for other, _ in bad[1:_MOST_NAMED])
        more = f" (also bad: {others}{', …' if len(bad) > _MOST_NAMED else ''})" if others else ""
        raise UsageError(
            f"{file}, line {number}: {message}{more}",
            'a line is {"video": ..., "question": ..., "answer": ...}',
        )
    if not items:
        raise UsageError(f"{file} has no question", "give a JSON object a line")
    return tuple(items)


def _item(line: int, value: object) -> Item:
    if not isinstance(value, dict):
        raise UsageError("it is not a JSON object")
    video, question = (_text(value, name) for name in ("video", "question"))
    check_question(question)
    options = _texts(value, "options") if value.get("options") is not None else ()
    if value.get("options") is not None and len(set(options)) < max(2, len(options)):
        raise UsageError("'options' has fewer than two, or one of them twice")
    category = None if value.get("category") is None else _text(value, "category")
    if category == ALL:
        raise UsageError(f"a category cannot be called {ALL!r}")
    answers = _answers(value, options)
    return Item(line, video, question, answers, options, category)


def _text(value: Json, name: str) -> str:
    text = value.get(name)
    if not isinstance(text, str) or not text.strip():
        raise UsageError(f"'{name}' is missing, or not a text")
    return text


def _texts(value: Json, name: str) -> tuple[str, ...]:
    texts = value.get(name)
    if not isinstance(texts, list) or not all(isinstance(t, str) and t.strip() for t in texts):
        raise UsageError(f"'{name}' is not a list of texts")
    return tuple(texts)


def _answers(value: Json, options: Sequence[str]) -> tuple[str, ...]:
    """The right answers: of options one, by its text, its letter or its place from 0 on."""
    given = value.get("answer")
    if not options:
        answers = _texts(value, "answer") if isinstance(given, list) else (_text(value, "answer"),)
        if not all(map(plain, answers)):
            raise UsageError("'answer' has no word to compare with")
        return answers
    if isinstance(given, str) and given in options:
        return (given,)
    letters = LETTERS[: len(options)]
    if isinstance(given, str) and len(given) == 1 and given.upper() in letters:
        return (options[letters.index(given.upper())],)
    if type(given) is int and 0 <= given < len(options):
        return (options[given],)
    raise UsageError("'answer' is not one of the options, a letter or a place of one of them")


# ---- asking


@dataclass(frozen=True)
class Asked:
    """An item at a budget: the answer, and the video's tokens; `error`: why there is none. `new`:
    asked now, not kept from before."""

    item: Item
    budget: float | int
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
    """Answers by all that shaped them, in a file of JSON lines; None keeps nothing."""

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
        """Keep an answer; a line that a kill has cut off ends before it."""
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
    budgets: Sequence[float | int],
    kept: Kept,
    progress: Callable[[int], None] = lambda done: None,
) -> Iterator[Asked]:
    """Every item at every budget, a video at a time; a video or a question that fails ends itself
    only. Raises the errors of the model and of the memory."""
    done = 0
    sessions = [qa.with_settings(replace(qa.settings, budget=budget)) for budget in budgets]
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
    qa: VideoQA, video: Path, items: Sequence[Item], budget: float | int, kept: Kept
) -> Iterator[Asked]:
    """The items about one video at one budget; it is prepared only for an answer that is new."""
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
            # Of this question alone: too long for the model's context, options alike to it.
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
    """The answer, as it is kept; `sooner`: what the cache saved for the video counts here, with
    the first question about it."""
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


def report(asked: Sequence[Asked], budgets: Sequence[float | int]) -> Json:
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
            {"line": a.item.line, "video": a.item.video, "budget": a.budget, "error": a.error}
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
    """Items by line, in the file's order, with their answers in the order of the budgets; without
    those that lack one, so that all budgets are compared on the same questions."""
    cells: dict[int, list[Asked]] = {}
    for one in sorted(asked, key=lambda one: one.item.line):
        cells.setdefault(one.item.line, []).append(one)
    return {line: row for line, row in cells.items() if not any(one.error for one in row)}


def _rows(
    answered: dict[int, list[Asked]], budgets: Sequence[float | int], categories: Sequence[str]
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
                "budget": budget,
                "category": name,
                "items": int(among.sum()),
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
            {"budget": one.budget, "answer": one.answer, "right": one.right} for one in cells
        ],
    }
