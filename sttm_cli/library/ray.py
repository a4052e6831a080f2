"""Runner for a Ray cluster: workers probe, fetch, compute and store; this process collects the
outcomes.

Ray Data hands out one video at a time; a worker that dies is restarted wherever there is room, and
another one takes over its video. Workers look up stored videos in the cache themselves, so the
cache alone decides which are missing.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sttm_cli import __version__
from sttm_cli.base.errors import CacheError, ModelError, OutOfMemoryError, SttmError, UsageError
from sttm_cli.base.names import absolute
from sttm_cli.base.types import TokenCounts
from sttm_cli.decode.source import is_address
from sttm_cli.library.outcome import Computed, Failed, Outcome, Skipped, Stopped, Video
from sttm_cli.library.ray_cluster import Cluster, connected
from sttm_cli.library.ray_worker import Ledger, Order, Worker, versions
from sttm_cli.runtime.session import VideoQA
from sttm_cli.settings.settings import cache_dir

MOST_BLOCKS = 2000
"""Bound on Ray Data's blocks, each of which costs about a millisecond: longer lists have several
videos in a block, done one after the other and reported together."""
AHEAD = 2
"""Blocks sent to a worker: the current one and the next."""
_ERRORS = {e.kind: e for e in (UsageError, ModelError, OutOfMemoryError, CacheError)}
_PASSED = re.compile(r"(STTM|HF|AWS|GOOGLE|AZURE)_|(OMP_NUM_THREADS|XDG_CACHE_HOME)$")
_SECRET = re.compile("KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL|SAS")


class RayRunner:
    """Has the workers of a Ray cluster prepare the videos.

    `on` is "ray", for the cluster of RAY_ADDRESS or else one started on this machine for the run,
    or "ray://HOST:PORT", for a cluster of which this machine is a node. `workers`: "N" or
    "MIN-MAX".
    """

    def __init__(
        self,
        on: str,
        qa: VideoQA,
        *,
        workers: str | None = None,
        note: Callable[[str], None] = lambda line: None,
        debug: bool = False,
    ) -> None:
        self._qa, self._note, self._debug = qa, note, debug
        self._address = on.partition("://")[2] or os.environ.get("RAY_ADDRESS", "")
        self._least, self._most = parse_workers(workers)
        _check_device(qa.settings.device)

    def run_unseen(self, videos: Sequence[Video]) -> Iterator[Outcome]:
        left, compared = dict(enumerate(videos)), set[str]()
        with (
            self._qa.store.sign() as sign,
            connected(self._address, workers=self._most, debug=self._debug) as cluster,
        ):
            # A killed worker's leftovers are removed together with the cluster's folder.
            order = replace(_order(self._qa, sign), scratch=str(cluster.folder or ""))
            for row in self._rows(cluster, order, videos):
                if row["outcome"] == "unable":
                    raise _unable(row)
                if row["versions"] and row["node"] not in compared:
                    compared.add(row["node"])
                    self._compare(row["node"], json.loads(row["versions"]))
                for line in row["warnings"] if row["outcome"] != "computed" else ():
                    self._qa.warn(line)
                yield _outcome(row, left.pop(row["number"]))
            for video in left.values():
                yield Failed(video, "the cluster gave no result for it")

    def _rows(
        self, cluster: Cluster, order: Order, videos: Sequence[Video]
    ) -> Iterator[dict[str, Any]]:
        """Yield a row for each video as it completes."""
        import ray.data

        given = [{"number": n, "video": os.fsencode(_absolute(v))} for n, v in enumerate(videos)]
        # Shuffled, so that two clusters with the same list seldom work on the same video.
        random.shuffle(given)
        most = min(self._most or cluster.usual, max(1, len(given)))
        least = min(self._least, most)
        gpus = 1 if cluster.gpus and self._qa.settings.device in ("auto", "cuda") else 0
        first = max(least, min(most, cluster.gpus if gpus else cluster.cpus))
        self._note(f"Ray: {first} {'worker' if first == 1 else 'workers'} on {cluster.words}")
        actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Ledger)
        done = ray.data.from_items(
            given, override_num_blocks=min(len(given), MOST_BLOCKS)
        ).map_batches(
            Worker,
            fn_constructor_args=(order, actor.remote(self._qa.store.max_bytes)),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(
                min_size=least,
                max_size=most,
                initial_size=first,
                max_tasks_in_flight_per_actor=AHEAD,
            ),
            num_cpus=1,
            num_gpus=gpus,
        )
        yield from done.iter_rows()

    def _compare(self, node: str, theirs: dict[str, str]) -> None:
        """Warn if a node's library versions differ: its entries are of no use to this machine."""
        here = versions()
        others = [f"{name} {theirs.get(name)}" for name in here if theirs.get(name) != here[name]]
        if others:
            self._qa.warn(
                f"node {node} has {', '.join(others)}, this machine another version: what is "
                "stored with one is not used with the other"
            )


def parse_workers(text: str | None) -> tuple[int, int | None]:
    """Parse "N" or "MIN-MAX" into the minimum and maximum; None: as many workers as fit."""
    if text is None:
        return 1, None
    match = re.fullmatch(r"(?:([1-9]\d{0,5})-)?([1-9]\d{0,5})", text.strip(), re.ASCII)
    if match is None or (match[1] and int(match[1]) > int(match[2])):
        raise UsageError(f"--workers {text!r} is not possible", "give N or MIN-MAX, from 1 on")
    return int(match[1] or 1), int(match[2])


def _check_device(device: str) -> None:
    if ":" in device:
        raise UsageError(
            f"--device {device} and --on ray cannot be combined",
            "Ray gives each worker a GPU of its own: leave --device out",
        )


def _absolute(video: Video) -> str:
    return str(video) if is_address(str(video)) else str(Path(video).absolute())


def _order(qa: VideoQA, sign: str) -> Order:
    """Return the order for the workers of a run, which recognise the cache by `sign`."""
    settings = qa.settings
    model = Path(settings.model)
    settings = replace(
        settings,
        cache_dir=absolute(cache_dir(settings.cache_dir)),
        cache_tier=None if settings.cache_tier is None else absolute(settings.cache_tier),
        model=str(model.absolute()) if model.is_dir() else settings.model,
    )
    passed = {
        name: value
        for name, value in os.environ.items()
        # Never pass on credentials: Ray's dashboard shows these variables, and each node has its
        # own.
        if _PASSED.match(name) and not _SECRET.search(name)
    }
    return Order(settings, passed, __version__, sign)


def _unable(row: dict[str, Any]) -> SttmError:
    """Return the error for a node that cannot prepare any video."""
    error = _ERRORS.get(row["reason"], SttmError)
    return error(f"node {row['node']}: {row['error']}", row["traceback"])


def _outcome(row: dict[str, Any], video: Video) -> Outcome:
    """Convert a worker's row into an outcome."""
    node, kind = row["node"], row["outcome"]
    if kind == "computed":
        return Computed(
            path=video,
            bytes=row["bytes"],
            tokens=TokenCounts(*row["tokens"]),
            video_s=row["video_s"],
            seconds=json.loads(row["seconds"]),
            warnings=tuple(row["warnings"]),
            key=row["key"],
            digest=row["digest"],
            node=node,
        )
    if kind == "skipped":
        return Skipped(
            video,
            row["reason"],
            bytes=row["bytes"],
            key=row["key"],
            digest=row["digest"],
            node=node,
        )
    if kind == "failed":
        # Name the video as the user did, not by its absolute path.
        error = row["error"].replace(_absolute(video), str(video))
        return Failed(video, error, row["traceback"], node=node)
    return Stopped(video, row["reason"])
