"""The code that runs in a Ray cluster: the workers that prepare videos, and their shared ledger.

Videos go in as rows of a table, outcomes come out as rows of another.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import socket
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sttm_cli import __version__
from sttm_cli.base.errors import CacheError, SttmError
from sttm_cli.base.system import hold, try_hold
from sttm_cli.decode.source import is_address
from sttm_cli.library.outcome import Computed, Failed, Job, Outcome, Skipped, Stopped, Video
from sttm_cli.library.prepare import failed, prepare_with
from sttm_cli.library.space import Room, bound_reached
from sttm_cli.runtime.session import VideoQA
from sttm_cli.settings.settings import Settings

if TYPE_CHECKING:
    import pyarrow

ATTEMPTS = 3
"""How many workers may die while working on the same video."""
NEW_S = 60.0
"""Folders younger than this are skipped: their lock may not be taken yet."""
SCRATCH = "sttm-worker-"
"""Prefix of the folders in which workers keep copies of videos."""


@dataclass(frozen=True)
class Order:
    """The instructions for a worker: all settings, the environment variables that matter, and the
    sign by which it recognises the cache of the submitting machine. `scratch`: the folder for
    copies of videos, "" for a folder of the node's own."""

    settings: Settings
    environment: dict[str, str]
    version: str
    sign: str
    scratch: str = ""


class Ledger:
    """The state shared by the workers of a run, in an actor of its own: the attempts at each video,
    and the bytes left below the cache's bound."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._begun: dict[int, int] = {}
        self._bytes: dict[int, int] = {}
        self._rows: dict[int, dict[str, Any]] = {}

    def begin(self, number: int) -> tuple[int, dict[str, Any] | None]:
        """Count an attempt at a video; return the attempts so far, and its row if finished."""
        if number not in self._rows:
            self._begun[number] = self._begun.get(number, 0) + 1
        return self._begun[number], self._rows.get(number)

    def reserve(self, number: int, need: int) -> bool:
        """Reserve space for a video; return False if there is not enough."""
        self._bytes[number] = 0
        if sum(self._bytes.values()) + need > self._bound:
            return False
        self._bytes[number] = need
        return True

    def end(self, number: int, row: dict[str, Any]) -> None:
        """Record a finished video's row, in case its worker dies before the row is read."""
        self._bytes[number] = row["bytes"]
        self._rows[number] = row


class Worker:
    """Prepares videos in a worker of the cluster; the model stays loaded between videos.

    Called with a table of videos, it returns a table with one row per video. It never raises.
    """

    def __init__(self, order: Order, ledger: Any) -> None:
        self._order, self._ledger = order, ledger
        self._node = socket.gethostname()
        self._warnings: list[str] = []
        self._qa: VideoQA | None = None
        self._versions = ""
        os.environ.update(order.environment)
        self._scratch = _own_scratch(order.scratch)

    def __call__(self, batch: pyarrow.Table) -> pyarrow.Table:
        import pyarrow as pa

        rows = [self._row(given) for given in batch.to_pylist()]
        return pa.Table.from_pylist(rows, schema=schema())

    def _row(self, given: dict[str, Any]) -> dict[str, Any]:
        number, name = given["number"], os.fsdecode(given["video"])
        begun, row = self._agree("begin", number)
        if row is not None:
            return dict(row)
        row = {"number": number, "node": self._node, **_BLANK}
        row["path"] = os.fsencode(name).decode(errors="backslashreplace")
        if begun > ATTEMPTS:
            lost = f"{ATTEMPTS} workers ended while they worked on it, as for lack of memory"
            return {**row, "outcome": "failed", "error": lost}
        row |= self._done(number, name if is_address(name) else Path(name))
        row |= {"versions": self._versions, "warnings": [*row["warnings"], *self._warnings]}
        self._warnings.clear()
        self._versions = ""
        if row["outcome"] in ("computed", "skipped", "failed"):
            self._agree("end", number, row)
        return row

    def _done(self, number: int, video: Video) -> dict[str, Any]:
        """Prepare a video and return the outcome as parts of its row."""
        try:
            qa = self._opened()
            return _parts(prepare_with(qa, video, lambda job: self._admitted(number, job)))
        except SttmError as error:
            parts = {"error": error.message, "traceback": error.hint, "reason": error.kind}
            return {"outcome": "unable", **parts}
        except Exception as error:
            return _parts(failed(video, error))

    def _opened(self) -> VideoQA:
        if self._qa is None:
            if self._order.version != __version__:
                raise SttmError(
                    f"it has sttm {__version__}, the machine that asks {self._order.version}",
                    "install the same version on all nodes",
                )
            qa = VideoQA(self._order.settings, warn=self._warnings.append)
            self._check_cache(qa)
            # Resolved first, so that a missing model is not reported as the video's failure.
            qa.model_plan  # noqa: B018
            self._versions = json.dumps(versions())
            self._qa = qa
        return self._qa

    def _check_cache(self, qa: VideoQA) -> None:
        store = qa.store
        if not store.sees(self._order.sign):
            raise CacheError(
                f"{store.location} is not the cache of the machine that asks",
                "give a --cache-dir that all nodes share: a network folder, or a bucket",
            )
        if not store.writable:
            raise CacheError(f"nothing can be stored in {store.location}", store.refusal)

    def _agree(self, what: str, *given: object) -> Any:
        """Call the ledger, whichever process it lives in."""
        if isinstance(self._ledger, Ledger):
            return getattr(self._ledger, what)(*given)
        import ray

        return ray.get(getattr(self._ledger, what).remote(*given))

    def _admitted(self, number: int, job: Job) -> Outcome | None:
        # Checked here for the disk, which may fill up; the ledger enforces the bound.
        if (refused := Room(self._opened().store).admit(job)) is not None:
            return refused
        if self._agree("reserve", number, job.need or 0):
            return None
        return Stopped(job.path, bound_reached(self._opened().store.max_bytes))


_BLANK: dict[str, Any] = {
    "path": "",
    "outcome": "",
    "digest": "",
    "key": "",
    "bytes": 0,
    "seconds": "{}",
    "tokens": [],
    "video_s": 0.0,
    "error": "",
    "reason": "",
    "traceback": "",
    "warnings": [],
    "versions": "",
}


def schema() -> pyarrow.Schema:
    """Return the columns of a row, the same for every outcome."""
    import pyarrow as pa

    kinds = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    lists = {"tokens": pa.list_(pa.int64()), "warnings": pa.list_(pa.string())}
    first = [("number", pa.int64()), ("node", pa.string())]
    return pa.schema(first + [(n, lists.get(n) or kinds[type(v)]) for n, v in _BLANK.items()])


def _parts(outcome: Outcome) -> dict[str, Any]:
    """Convert an outcome into parts of a row."""
    if isinstance(outcome, Computed):
        return {
            "outcome": "computed",
            "key": outcome.key,
            "digest": outcome.digest,
            "bytes": outcome.bytes,
            "tokens": list(asdict(outcome.tokens).values()),
            "video_s": outcome.video_s,
            "seconds": json.dumps(outcome.seconds),
            "warnings": list(outcome.warnings),
        }
    if isinstance(outcome, Skipped):
        return {
            "outcome": "skipped",
            "key": outcome.key,
            "digest": outcome.digest,
            "bytes": outcome.bytes,
            "reason": outcome.reason,
        }
    if isinstance(outcome, Failed):
        return {"outcome": "failed", "error": outcome.error, "traceback": outcome.traceback}
    assert isinstance(outcome, Stopped)
    return {"outcome": "stopped", "reason": outcome.reason}


def versions() -> dict[str, str]:
    """Return the versions of the libraries that are part of every identity."""
    return {name: version(name) for name in ("tokenizers", "torch", "torchvision", "transformers")}


def _own_scratch(given: str) -> int | None:
    """Keep copies of videos in the given folder, which another process removes, or in one of this
    process. For the latter, remove the folders of dead processes and return the descriptor that
    marks the new one as in use."""
    if given:
        tempfile.tempdir = given
        return None
    root = Path(tempfile.gettempdir())
    for folder in root.glob(f"{SCRATCH}*"):
        with suppress(OSError):
            if folder.lstat().st_uid == os.getuid() and not _is_used(folder):
                shutil.rmtree(folder, ignore_errors=True)
    own = Path(tempfile.mkdtemp(prefix=SCRATCH))
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    tempfile.tempdir = str(own)
    descriptor = os.open(own / "used", os.O_CREAT | os.O_RDWR, 0o600)
    hold(descriptor)
    return descriptor


def _is_used(folder: Path) -> bool:
    """Return whether a live process uses the folder; a new folder counts as in use."""
    if time.time() - folder.stat().st_mtime < NEW_S:
        return True
    descriptor = os.open(folder / "used", os.O_RDWR | os.O_NOFOLLOW)
    try:
        return not try_hold(descriptor, patience_s=0)
    finally:
        os.close(descriptor)
