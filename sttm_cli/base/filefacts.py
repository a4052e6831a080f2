"""Facts about files (digests, headers, fingerprints), remembered between processes."""

from __future__ import annotations

import os
import time
from typing import Protocol

from sttm_cli.base.types import Json

STEP_S = 2.0
"""The longest steps in which file systems count times: a second change within one does not show."""


class FileFacts(Protocol):
    """A small persistent table: str -> JSON object."""

    def get(self, key: str) -> Json | None: ...
    def set(self, key: str, value: Json) -> None: ...


def is_settled(*files: os.stat_result) -> bool:
    """Whether any further change of these files must show in their times."""
    now = time.time()
    return all(abs(now - t) > STEP_S for f in files for t in (f.st_mtime, f.st_ctime))
