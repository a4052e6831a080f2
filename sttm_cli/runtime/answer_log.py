"""The log of answered questions: an SQLite file in the user's state folder."""

from __future__ import annotations

import json
import os
import sqlite3
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path

from sttm_cli.base.errors import SttmError
from sttm_cli.base.names import absolute_path
from sttm_cli.base.reports import LogEntry
from sttm_cli.base.types import Json
from sttm_cli.settings.settings import SETTINGS, Settings

_PATIENCE_S = 2.0
"""How long a process waits for another one's write."""
_VERSION = 1
_TABLES = """
CREATE TABLE IF NOT EXISTS conversations (
    id TEXT PRIMARY KEY, video TEXT NOT NULL, settings TEXT NOT NULL, before TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS answers (
    id INTEGER PRIMARY KEY AUTOINCREMENT, conversation TEXT NOT NULL, time REAL NOT NULL,
    video TEXT NOT NULL, model TEXT NOT NULL, budget TEXT NOT NULL,
    question TEXT NOT NULL, answer TEXT NOT NULL, seconds REAL
);
CREATE INDEX IF NOT EXISTS by_video ON answers (video);
"""
_UNKEPT = "CREATE TABLE IF NOT EXISTS unkept (time REAL NOT NULL)"
"""When the last answer was given that is not kept: one row at most, and nothing else of it."""
_NOT_KEPT = ("no_cache", "refresh", "max_bytes", "max_download", "seed")
"""Settings of a single call, not inherited by later questions."""


@dataclass(frozen=True)
class Talk:
    """A conversation: its video, the settings of its questions, the text between the video and the
    first question, and its turns so far."""

    video: str
    settings: Json
    before: str = ""
    turns: Sequence[tuple[str, str]] = ()
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    time: float = 0.0
    """Of its last answer, in seconds since the epoch."""


def log_path() -> Path:
    """Return the path of the log, which may not exist yet."""
    from platformdirs import user_state_path

    return user_state_path("sttm") / "log.sqlite"


def new_talk(video: str, settings: Settings, before: str = "") -> Talk:
    """Start a conversation; a path is recorded as absolute."""
    return Talk(known_as(video), _kept(settings), before)


def known_as(video: str) -> str:
    """Return a video's name in the log: an address as it is, a path as absolute."""
    named = video if video == "-" or "://" in video else str(absolute_path(Path(video)))
    return os.fsencode(named).decode(errors="backslashreplace")


def add(talk: Talk, answers: Sequence[tuple[str, str, float | None]], budget: float | int) -> None:
    """Record answered questions (question, answer, seconds) of a conversation.

    Raises sqlite3.Error or OSError if they cannot be written.
    """
    now = time.time()
    rows = [
        (
            talk.id,
            now,
            talk.video,
            talk.settings["model"],
            json.dumps(budget),
            question,
            answer,
            seconds,
        )
        for question, answer, seconds in answers
    ]
    with _opened(create=True) as database, database:
        database.execute(
            "INSERT OR IGNORE INTO conversations VALUES (?, ?, ?, ?)",
            (talk.id, talk.video, json.dumps(talk.settings), talk.before),
        )
        database.executemany(
            "INSERT INTO answers (conversation, time, video, model, budget, question, answer, "
            "seconds) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            rows,
        )


def note_unkept() -> None:
    """Note that an answer was given which is not kept, so that no older conversation is taken for
    the last one. Where nothing is kept at all, nothing is noted. Raises as `add`."""
    if not log_path().exists():
        return
    with _opened(create=True) as database, database:
        database.execute(_UNKEPT)
        database.execute("DELETE FROM unkept")
        database.execute("INSERT INTO unkept VALUES (?)", (time.time(),))


def last_unkept() -> float:
    """When that was last, in seconds since the epoch; 0 for never."""
    with _reading() as database:
        if database is None:
            return 0.0
        tables = "SELECT name FROM sqlite_master WHERE name = 'unkept'"
        if database.execute(tables).fetchone() is None:
            return 0.0
        found = database.execute("SELECT max(time) FROM unkept").fetchone()[0]
    return float(found or 0.0)


def entries(video: str | None = None, last: int | None = None) -> list[LogEntry]:
    """Return the answered questions, the oldest first: all, those of one video, or the last ones.

    Raises SttmError for a file that is not a log.
    """
    where, values = ("", []) if video is None else ("WHERE video = ?", [known_as(video)])
    with _reading() as database:
        if database is None:
            return []
        rows = database.execute(
            "SELECT time, video, model, budget, question, answer, seconds, conversation "
            f"FROM answers {where} ORDER BY id DESC LIMIT ?",
            [*values, -1 if last is None else last],
        ).fetchall()
        return [_entry(row) for row in reversed(rows)]


def last_talk(video: str | None = None) -> Talk | None:
    """Return the conversation of the last answer, or of the last one about a video.

    Raises SttmError for a file that is not a log.
    """
    where, values = ("", []) if video is None else ("WHERE video = ?", [known_as(video)])
    with _reading() as database:
        if database is None:
            return None
        found = database.execute(
            f"SELECT conversation, time FROM answers {where} ORDER BY id DESC LIMIT 1", values
        ).fetchone()
        if found is None:
            return None
        named, settings, before = database.execute(
            "SELECT video, settings, before FROM conversations WHERE id = ?", found[:1]
        ).fetchone()
        turns = database.execute(
            "SELECT question, answer FROM answers WHERE conversation = ? ORDER BY id", found[:1]
        ).fetchall()
        known = {name: value for name, value in json.loads(settings).items() if name in SETTINGS}
        said = [(question, answer) for question, answer in turns]
        return Talk(named, known, before, said, id=found[0], time=found[1])


def _kept(settings: Settings) -> Json:
    """Convert all settings to JSON: later questions use them even if the defaults change."""
    values = {known.name: getattr(settings, known.name) for known in fields(settings)}
    kept = {name: value for name, value in values.items() if name not in _NOT_KEPT}
    kept["options"] = list(settings.options)
    for name in ("cache_dir", "cache_tier"):
        if isinstance(place := getattr(settings, name), Path):
            kept[name] = str(place.absolute())
    if Path(settings.model).expanduser().is_dir():
        kept["model"] = str(Path(settings.model).expanduser().absolute())
    return kept


def _entry(row: tuple[float, str, str, str, str, str, float | None, str]) -> LogEntry:
    at, video, model, budget, question, answer, seconds, conversation = row
    return {
        "time": at,
        "video": video,
        "model": model,
        "budget": json.loads(budget),
        "question": question,
        "answer": answer,
        "seconds": seconds,
        "conversation": conversation,
    }


@contextmanager
def _opened(*, create: bool) -> Iterator[sqlite3.Connection]:
    path = log_path()
    if create:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # SQLite creates its additional files with the same mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    with closing(sqlite3.connect(path, timeout=_PATIENCE_S)) as database:
        if create and not database.execute("PRAGMA user_version").fetchone()[0]:
            database.executescript(
                f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version={_VERSION}; COMMIT"
            )
        yield database


@contextmanager
def _reading() -> Iterator[sqlite3.Connection | None]:
    """Open the log for reading; None if nothing was logged yet. Raises SttmError if invalid."""
    path = log_path()
    if not path.exists():
        yield None
        return
    try:
        with _opened(create=False) as database:
            # A newly created file has no tables yet.
            empty = not database.execute("PRAGMA user_version").fetchone()[0]
            yield None if empty else database
    except (sqlite3.Error, OSError, ValueError, TypeError, AttributeError) as error:
        # Rows may be damaged as well as the file.
        raise SttmError(f"the log {path} cannot be read: {error}", "move it away") from error
