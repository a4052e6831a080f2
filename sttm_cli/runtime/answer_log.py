"""The log of answered questions: one SQLite file of the user, in the user's state folder."""

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
from sttm_cli.base.reports import LogEntry
from sttm_cli.base.types import Json
from sttm_cli.settings.settings import SETTINGS, Settings

_PATIENCE_S = 2.0
"""How long a process waits for another one that writes."""
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
"""Settings of one call, which no later question goes on with."""


@dataclass(frozen=True)
class Talk:
    """A conversation: its video, the settings that it was asked with, the text between video and
    first question, and its turns so far."""

    video: str
    settings: Json
    before: str = ""
    turns: Sequence[tuple[str, str]] = ()
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    time: float = 0.0
    """Of its last answer, in seconds since the epoch."""


def log_path() -> Path:
    """The log's file; it need not be there."""
    from platformdirs import user_state_path

    return user_state_path("sttm") / "log.sqlite"


def new_talk(video: str, settings: Settings, before: str = "") -> Talk:
    """A conversation that begins; a path is kept as an absolute one."""
    return Talk(known_as(video), _kept(settings), before)


def known_as(video: str) -> str:
    """What a video is known by in the log: an address as it is, a path as an absolute one."""
    named = video if video == "-" or "://" in video else str(Path(video).absolute())
    return os.fsencode(named).decode(errors="backslashreplace")


def add(talk: Talk, answers: Sequence[tuple[str, str, float | None]], budget: float | int) -> None:
    """Keep answered questions (question, answer, seconds) of a conversation.

    Raises sqlite3.Error or OSError where they cannot be written.
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
    """What was asked and answered, the oldest first; of one video, or the last ones only.

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
    """The conversation of the last answer, or of the last one about a video.

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
    return Talk(named, known, before, [(q, a) for q, a in turns], id=found[0], time=found[1])


def _kept(settings: Settings) -> Json:
    """The settings as JSON: a later question goes on with them, whatever the defaults are then."""
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
        # SQLite makes the files beside it with the same mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    with closing(sqlite3.connect(path, timeout=_PATIENCE_S)) as database:
        if create and not database.execute("PRAGMA user_version").fetchone()[0]:
            database.executescript(
                f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version={_VERSION}; COMMIT"
            )
        yield database


@contextmanager
def _reading() -> Iterator[sqlite3.Connection | None]:
    """The log, None where nothing was logged yet; raises SttmError for what is not a log."""
    path = log_path()
    if not path.exists():
        yield None
        return
    try:
        with _opened(create=False) as database:
            # A file that was only just made holds no tables yet.
            empty = not database.execute("PRAGMA user_version").fetchone()[0]
            yield None if empty else database
    except (sqlite3.Error, OSError) as error:
        raise SttmError(f"the log {path} cannot be read: {error}", "move it away") from error
