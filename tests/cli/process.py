"""Running the command as a user does: in a process of its own, or in this one when that is all
the same to what is tested."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any
from unittest import mock


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        found: dict[str, Any] = json.loads(self.out)
        return found


def sttm(*arguments: object, stdin: str | bytes = "", timeout: float = 240, **env: str) -> Ended:
    """Run `sttm ARGUMENTS` in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-m", "sttm_cli", *map(str, arguments)],
        input=stdin if isinstance(stdin, bytes) else stdin.encode(),
        capture_output=True,
        timeout=timeout,
        env={**os.environ, **env},
    )
    return Ended(done.returncode, done.stdout.decode(), done.stderr.decode())


def sttm_here(*arguments: object, stdin: str | bytes = "") -> Ended:
    """Run `sttm ARGUMENTS` in this process: the same code without the imports' seconds."""
    from sttm_cli.cli import main

    out, err = io.StringIO(), io.StringIO()
    given = io.BytesIO(stdin if isinstance(stdin, bytes) else stdin.encode())
    with (
        mock.patch.object(sys, "argv", ["sttm", *map(str, arguments)]),
        mock.patch.object(sys, "stdin", io.TextIOWrapper(given, encoding="utf-8")),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(bool(end.code))
    return Ended(code, out.getvalue(), err.getvalue())
