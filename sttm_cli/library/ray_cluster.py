"""Connections to Ray clusters: an existing one, or one started for the run and stopped after it."""

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
"""Object store memory of our own cluster; its processes exchange only rows."""
CONNECT_S = 10.0
LONGEST_FOLDER = 40
"""Maximum length of a temporary folder's path: those of Ray's sockets in it are bounded."""


@dataclass(frozen=True)
class Cluster:
    """A cluster's whole CPUs and GPUs, and its nodes. `folder`: of our own cluster only."""

    cpus: int
    gpus: int
    nodes: int
    folder: Path | None = None

    @property
    def usual(self) -> int:
        """The default number of workers: one per GPU, or one per two CPUs."""
        return self.gpus or max(1, self.cpus // 2)

    @property
    def words(self) -> str:
        """A short description, such as '2 nodes with 8 CPUs'."""
        has = f"{self.gpus} GPU" if self.gpus else f"{self.cpus} CPU"
        plural = "s" if (self.gpus or self.cpus) != 1 else ""
        return f"{self.nodes} {'node' if self.nodes == 1 else 'nodes'} with {has}{plural}"


@contextmanager
def connected(address: str, *, workers: int | None, debug: bool) -> Iterator[Cluster]:
    """Connect to the cluster at HOST:PORT, or for "" start one here that ends with the context.

    Raises SttmError if the cluster cannot be reached or fails within the context.
    """
    with _folder(address) as folder, _nothing_on_stdout(debug):
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            with _silent(debug):
                ray = _ray(address, folder, workers, debug)
            # Ray replaces the signal handlers.
            for number, handler in handlers.items():
                # Python sets handlers in the main thread only; elsewhere Ray replaces none.
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
    """Create a private folder for our own cluster; None for an existing one."""
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
    """Connect and return the `ray` module; raises SttmError."""
    where = _host_and_port(address) if address else "local"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not debug:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        warnings.filterwarnings("ignore", module=r"ray\.")
    if folder is not None and "RAY_AUTH_MODE" not in os.environ:
        # Only this run may submit work to the cluster; the token stays out of the user's home.
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
    # A long video must not be mistaken for a stalled one.
    context.execution_no_progress_timeout_s = -1
    logging.getLogger("ray.data").setLevel(level)
    return ray


def _host_and_port(address: str) -> str:
    """Return the address in Ray's form; raises SttmError if nothing listens there."""
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
        # Checked first, since Ray would retry for minutes.
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
    """Translate Ray's exceptions in the body into one-line errors."""
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
    """Keep Ray's messages about dead workers, which no setting disables, off stdout."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(sys.stderr if debug else nowhere):
        yield


@contextmanager
def _silent(debug: bool) -> Iterator[None]:
    """Silence the startup output of Ray's processes, which no setting disables."""
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
