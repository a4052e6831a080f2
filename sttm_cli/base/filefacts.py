"""What is remembered of files between processes, so that no byte is read twice for nothing."""

from __future__ import annotations

import os
import time
from typing import Protocol

from sttm_cli.base.types import Json

STEP_S = 2.0
"""The longest steps in which file systems count times: a second change within one does not show."""


class Memo(Protocol):
    """A small persistent memory: str -> JSON object."""

    def get(self, key: str) -> Json | None: ...
    def set(self, key: str, value: Json) -> None: ...


def is_settled(*files: os.stat_result) -> bool:
    """Whether any further change of these files must show in their times."""
    now = time.time()
    return all(abs(now - t) > STEP_S for f in files for t in (f.st_mtime, f.st_ctime))
