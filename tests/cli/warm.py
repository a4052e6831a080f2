"""Runs the command in forks of a process that has imported everything, and kills it when told.

A fresh process imports for seconds before anything happens that a kill could disturb; a fork is
the same process image without that. `python -m tests.cli.warm` reads an order a line (JSON) on
stdin, of runs at once, and answers each with how those ended.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from tests.cli.process import Ended


@dataclass(frozen=True)
class Warm:
    """The side of the tests: `with Warm.start() as warm:`."""

    process: subprocess.Popen[str]

    @classmethod
    def start(cls) -> Warm:
        # One thread: a fork has only the thread that forked.
        env = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.cli.warm"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
            cwd=Path(__file__).parents[2],
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "warm\n"
        return cls(process)

    def run(self, *arguments: object, **order: Any) -> tuple[Ended, float]:
        """Run `sttm ARGUMENTS` and return how it ended and after how many seconds.

        `kill_after`: seconds until SIGKILL, counted from the start, or from the moment at which
        `kill_from` (a glob in the cache folder) matches. `file_bytes`: no file grows beyond.
        `cache`: the cache folder.
        """
        (ended,) = self.run_at_once([arguments], **order)
        return ended

    def run_at_once(
        self, runs: Sequence[Sequence[object]], **order: Any
    ) -> list[tuple[Ended, float]]:
        """Start `sttm ARGUMENTS` for each of `runs`, then wait for all of them."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        orders = [{"arguments": [*map(str, arguments)], **order} for arguments in runs]
        self.process.stdin.write(json.dumps(orders, default=str) + "\n")
        self.process.stdin.flush()
        report = json.loads(self.process.stdout.readline())
        return [(Ended(t["code"], t["out"], t["err"]), t["seconds"]) for t in report]

    def __enter__(self) -> Warm:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.communicate()


def main() -> None:
    import torch

    from sttm_cli.runtime.session import VideoQA

    torch.set_num_threads(1)
    # Its threads would not be there in a fork, which would wait for them for ever.
    with mock.patch("sttm_cli.models.checkpoint.fingerprint", return_value="warm"):
        VideoQA(no_cache=True).model()
    print("warm", flush=True)
    for line in sys.stdin:
        runs = [_Run(order) for order in json.loads(line)]
        print(json.dumps([run.end() for run in runs]), flush=True)


class _Run:
    """A fork that becomes the command, and what it says."""

    def __init__(self, order: dict[str, Any]) -> None:
        self._order = order
        self._said = {name: tempfile.TemporaryFile("w+") for name in ("out", "err")}  # noqa: SIM115
        self._started = time.perf_counter()
        self._pid = os.fork()
        if self._pid == 0:
            _child(order, *(file.fileno() for file in self._said.values()))

    def end(self) -> dict[str, Any]:
        """Wait for its end, or bring it about, and tell how it ended."""
        code = os.waitstatus_to_exitcode(_wait(self._pid, self._order))
        report = {"code": code, "seconds": time.perf_counter() - self._started}
        for name, file in self._said.items():
            with file:
                file.seek(0)
                report[name] = file.read()
        return report


def _child(order: dict[str, Any], out: int, err: int) -> None:
    """Become `sttm ARGUMENTS`; never returns."""
    import torch

    code = 99
    try:
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.environ["STTM_CACHE_DIR"] = order["cache"]
        sys.argv = ["sttm", *order["arguments"]]
        # torch replaces the threads that a fork lacks at their first use: not safe from several.
        torch.set_num_threads(1)
        sys.stdin = open(os.devnull)  # noqa: SIM115
        if "file_bytes" in order:
            import resource

            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_bytes"],) * 2)
        from sttm_cli.cli import main as command

        command()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(pid: int, order: dict[str, Any]) -> int:
    """Wait for the child's end, or bring it about."""
    begin = None if "kill_from" in order else time.perf_counter()
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status
        if begin is None and any(Path(order["cache"]).glob(order["kill_from"])):
            begin = time.perf_counter()
        if "kill_after" in order and begin and time.perf_counter() - begin > order["kill_after"]:
            os.kill(pid, signal.SIGKILL)
            return os.waitpid(pid, 0)[1]
        time.sleep(0.0002)


if __name__ == "__main__":
    main()
