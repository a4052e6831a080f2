"""The user's own questions with right answers, and their file of JSON lines."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sttm_cli.base.errors import UsageError
from sttm_cli.base.types import Json
from sttm_cli.settings.fields import check_question

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
ALL = "all"
"""The name of all categories together."""
_MOST_NAMED = 6
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NOT_WORDS = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Item:
    """A question in line `line` of its file; `answers` are the right texts. With `options`, the
    likeliest of them is the answer."""

    line: int
    video: str
    question: str
    answers: tuple[str, ...]
    options: tuple[str, ...] = ()
    category: str | None = None

    def is_right(self, answer: str) -> bool:
        """Return whether an answer is right: equal except for case, punctuation and articles."""
        if self.options:
            return answer in self.answers
        return plain(answer) in map(plain, self.answers)


def plain(text: str) -> str:
    """Return a text without case, punctuation and articles."""
    words = _NOT_WORDS.sub(" ", text.casefold())
    return " ".join(_ARTICLES.sub(" ", words).split())


def read_items(file: Path) -> tuple[Item, ...]:
    """Read the questions in a file of JSON lines; raises UsageError, naming the first bad line."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"{file} cannot be read: {reason}", "give a file of JSON lines, or 'paper'"
        ) from error
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
    """Return the right answers; of options one, by its text, its letter or its index from 0."""
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
