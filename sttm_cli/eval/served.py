"""A private server for one budget of an evaluation; no other process finds it."""

from __future__ import annotations

import re
import secrets
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sttm_cli.base.errors import SttmError
from sttm_cli.base.system import environment, tied_command
from sttm_cli.serve.client import KEY
from sttm_cli.serve.server_files import served_name
from sttm_cli.settings.fields import Scope
from sttm_cli.settings.settings import SETTINGS, Settings, in_scope

_READY = re.compile(r"serving .*(http://\S+)/v1")
_END_S = 30.0
_NOT_SERVED = ("start", "end", "max_download", *in_scope(Scope.PROCESS))
"""Settings without a flag of `sttm serve`, or with another meaning there."""


@dataclass(frozen=True)
class Served:
    """A server's address, its key, and the model's name there."""

    url: str
    key: str
    model: str


@contextmanager
def serving(
    settings: Settings, *, allow: Sequence[Path], wait: Callable[[], None]
) -> Iterator[Served]:
    """Run a server with `settings` within the context; clients may name files below `allow`. `wait`
    is called repeatedly until it is ready. Raises SttmError if it does not start."""
    key = secrets.token_urlsafe(24)
    command = [*tied_command("sttm_cli"), "serve", "--port", "0", "--request-timeout", "1h"]
    command += [part for folder in allow for part in ("--allow-path", str(folder))]
    command += [part for name in SETTINGS for part in _flag(settings, name)]
    # A runtime folder of its own, so that it neither conflicts with the user's server nor is
    # mistaken for it.
    with ExitStack() as stack:
        run = stack.enter_context(tempfile.TemporaryDirectory(prefix="sttm-"))
        nothing, log = Path(run) / "config.toml", Path(run) / "log"
        file = stack.enter_context(log.open("wb"))
        nothing.touch()
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=file,
            env={**_plain(), "XDG_RUNTIME_DIR": run, "STTM_CONFIG": str(nothing), KEY: key},
            start_new_session=True,
        )
        try:
            yield Served(_address(process, log, wait), key, served_name(settings))
        finally:
            ended(process)


def ended(process: subprocess.Popen[bytes]) -> None:
    """End a process that was started with a pipe on its stdin, and wait for it."""
    if process.stdin is not None:
        process.stdin.close()
    process.terminate()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _plain() -> dict[str, str]:
    """Return the environment without defaults of flags: the server only has the given settings,
    except for a cache folder, which may only be named there."""
    defaults = {declared.env for name, declared in SETTINGS.items() if name != "cache_dir"}
    return {name: value for name, value in environment().items() if name not in defaults}


def _flag(settings: Settings, name: str) -> Iterator[str]:
    if name not in _NOT_SERVED:
        yield from SETTINGS[name].typed(getattr(settings, name))


def _address(process: subprocess.Popen[bytes], log: Path, wait: Callable[[], None]) -> str:
    while process.poll() is None:
        if found := _READY.search(log.read_text(encoding="utf-8", errors="replace")):
            return found[1]
        wait()
        time.sleep(0.1)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = next((line for line in reversed(lines) if line.startswith("sttm: ")), "")
    reason = said.removeprefix("sttm: ") or f"it ended with exit code {process.returncode}"
    raise SttmError(
        f"the server for this budget did not start: {reason}",
        "run 'sttm serve' with the same flags to see more",
    )
