"""The small rows beside the artifacts: remembered digests, and what each entry is.

Nothing depends on them: a lost or damaged index costs time, never an answer.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diskcache
from diskcache.core import MODE_RAW

from sttm_cli.types import Json


class _TextOnly(diskcache.Disk):  # type: ignore[misc]
    """Keys and values are text, in the row itself; whatever else a row holds is not there.

    diskcache's own Disk unpickles what a row tells it to (CVE-2025-69872): code execution for
    whoever can write the folder. This one has no way to read or write a pickle or a file.
    """

    def put(self, key: Any) -> tuple[str, bool]:
        if not isinstance(key, str):
            raise TypeError("the index has text keys only")
        return key, True

    def get(self, key: Any, raw: bool) -> str:
        return key if raw and isinstance(key, str) else ""

    def store(self, value: Any, read: bool, key: Any = None) -> tuple[int, int, None, str]:
        if read or not isinstance(value, str):
            raise TypeError("the index has text values only")
        return 0, MODE_RAW, None, value

    def fetch(self, mode: int, filename: str | None, value: Any, read: bool) -> str | None:
        text = mode == MODE_RAW and filename is None and isinstance(value, str)
        return value if text else None

    def filename(self, key: Any = None, value: Any = None) -> Any:
        raise TypeError("the index writes no files")

    def remove(self, file_path: str) -> None:
        # A tampered row could name any file.
        return


class Index:
    """str -> JSON object, shared by processes; every failure reads as "not there"."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._cache: Any = None
        self._broken = False

    def get(self, key: str) -> Json | None:
        text = self._try(lambda cache: cache.get(key, retry=True))
        if not isinstance(text, str):
            return None
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None

    def set(self, key: str, value: Json) -> None:
        self._try(lambda cache: cache.set(key, json.dumps(value), retry=True), write=True)

    def delete(self, key: str) -> None:
        self._try(lambda cache: cache.delete(key, retry=True), write=True)

    def close(self) -> None:
        if self._cache is not None:
            self._cache.close()
            self._cache = None

    def _try(self, action: Callable[[Any], Any], *, write: bool = False) -> Any:
        if self._broken or not (write or self._folder.is_dir()):
            return None
        for attempt in range(2):
            try:
                return action(self._open())
            except Exception as error:  # diskcache passes on whatever SQLite makes of a bad file
                self.close()
                if attempt or not _is_no_database(error):
                    # A read-only or full disk: go on without memory rather than fail.
                    self._broken = True
                    return None
                shutil.rmtree(self._folder, ignore_errors=True)
        return None

    def _open(self) -> Any:
        if self._cache is None:
            self._cache = diskcache.Cache(
                str(self._folder),
                disk=_TextOnly,
                timeout=10,
                cull_limit=0,
                eviction_policy="none",
                statistics=0,
                tag_index=0,
            )
        return self._cache


def _is_no_database(error: Exception) -> bool:
    return "malformed" in str(error) or "not a database" in str(error)
