"""A connection to a Ray cluster, or one started for a run and ended with it."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sttm_cli.base.errors import SttmError, UsageError

OBJECTS_BYTES = 100 << 20
"""Memory of a cluster of our own for what goes between its processes, which is rows only."""
CONNECT_S = 10.0
LONGEST_FOLDER = 40
"""Letters of a temporary folder; Ray's sockets are below it, and their paths are bounded."""


@dataclass(frozen=True)
class Cluster:
    """What a cluster has: whole CPUs and GPUs, and nodes. `folder`: of one of our own."""

    cpus: int
    gpus: int
    nodes: int
    folder: Path | None = None

    @property
    def usual(self) -> int:
        """How many workers it gets where nobody says: one for each GPU, or for two CPUs."""
        return self.gpus or max(1, self.cpus // 2)

    @property
    def words(self) -> str:
        """It in a few words."""
        has = f"{self.gpus} GPU" if self.gpus else f"{self.cpus} CPU"
        plural = "s" if (self.gpus or self.cpus) != 1 else ""
        return f"{self.nodes} {'node' if self.nodes == 1 else 'nodes'} with {has}{plural}"


@contextmanager
def connected(address: str, *, workers: int | None, debug: bool) -> Iterator[Cluster]:
    """A connection to the cluster at HOST:PORT; for "" one is started here, and ended.

    Raises SttmError where it cannot be reached, and where it breaks off in the body.
    """
    with _folder(address) as folder, _nothing_on_stdout(debug):
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            with _silent(debug):
                ray = _ray(address, folder, workers, debug)
            # Ray takes the signals for itself.
            for number, handler in handlers.items():
                # Anywhere but in the main thread Python takes no handlers, and Ray sets none.
                with suppress(ValueError):
                    signal.signal(number, handler)
            with _naming_ray(ray):
                found = ray.cluster_resources()
                nodes = sum(1 for node in ray.nodes() if node["Alive"])
                yield Cluster(int(found.get("CPU", 1)), int(found.get("GPU", 0)), nodes, folder)
        finally:
            if "ray" in sys.modules:
                sys.modules["ray"].shutdown(wait_for_processes=not address)


@contextmanager
def _folder(address: str) -> Iterator[Path | None]:
    """A private folder for a cluster of our own; None for another's."""
    if address:
        yield None
        return
    where = tempfile.gettempdir()
    folder = Path(
        tempfile.mkdtemp(prefix="sttm-ray-", dir="/tmp" if len(where) > LONGEST_FOLDER else where)
    )
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _ray(address: str, folder: Path | None, workers: int | None, debug: bool) -> Any:
    """Ray, connected. Raises SttmError."""
    where = _host_and_port(address) if address else "local"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not debug:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        warnings.filterwarnings("ignore", module=r"ray\.")
    if folder is not None and "RAY_AUTH_MODE" not in os.environ:
        # Nobody else may give this cluster work; the key is not left in the user's home.
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    import ray
    import ray.data

    level = logging.INFO if debug else logging.CRITICAL
    own = {
        "num_cpus": max(os.cpu_count() or 1, workers or 1),
        "object_store_memory": OBJECTS_BYTES,
        "include_dashboard": False,
        "_temp_dir": str(folder),
    }
    try:
        ray.init(
            address=where,
            log_to_driver=debug,
            logging_level=level,
            **(own if folder is not None else {}),
        )
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise _unreachable(address, error) from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    # A long video is not a stuck one.
    context.execution_no_progress_timeout_s = -1
    logging.getLogger("ray.data").setLevel(level)
    return ray


def _host_and_port(address: str) -> str:
    """An address as Ray takes it; raises SttmError where nobody listens there."""
    if "://" in address:
        raise UsageError(
            f"RAY_ADDRESS {address} cannot be used",
            "Ray Data does not work through Ray's client: run this on a node, or with 'ray job "
            "submit'",
        )
    if address == "auto":
        return address
    host, colon, port = address.rpartition(":")
    host, port = (host, port) if colon else (address, "6379")
    try:
        # Ray would try for minutes.
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise _unreachable(address, error) from None
    return f"{host}:{port}"


def _unreachable(address: str, error: Exception) -> SttmError:
    if not address:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return SttmError(f"no Ray cluster could be started here: {first[:200]}", "try --debug")
    if "token" in str(error).lower():
        return SttmError(
            f"the Ray cluster at {address} needs a token",
            "set RAY_AUTH_MODE=token, as on its nodes",
        )
    return SttmError(
        f"the Ray cluster at {address} cannot be reached",
        "this machine must be one of its nodes, and the port that of 'ray start --head' (6379), "
        "not its client's (10001)",
    )


@contextmanager
def _naming_ray(ray: Any) -> Iterator[None]:
    """What Ray raises in the body, in a line."""
    try:
        yield
    except ray.exceptions.RayError as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SttmError(
            f"the Ray cluster broke off: {first[:200]}",
            "run the command again: what was stored stays",
        ) from error


@contextmanager
def _nothing_on_stdout(debug: bool) -> Iterator[None]:
    """Ray says on stdout that a worker has ended, in a thread that no setting turns off."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(sys.stderr if debug else nowhere):
        yield


@contextmanager
def _silent(debug: bool) -> Iterator[None]:
    """Ray's processes say at their start what no setting turns off, on the descriptor itself."""
    if debug:
        yield
        return
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
