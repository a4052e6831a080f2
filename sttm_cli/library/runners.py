"""Runners by the name given to --on."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

from sttm_cli.base.errors import SttmError, UsageError
from sttm_cli.base.names import RUNNERS, did_you_mean

if TYPE_CHECKING:
    from sttm_cli.library.loop import FarRunner, Runner
    from sttm_cli.runtime.session import VideoQA
    from sttm_cli.serve.client import Server

LOCAL, RAY = "local", "ray"


def check_runner(on: str) -> None:
    """Raise UsageError if no runner has this name."""
    name, known = _name(on), runner_names()
    if name not in known:
        raise UsageError(
            f"--on {on!r} is not known", did_you_mean(name, known) or f"known: {', '.join(known)}"
        )
    if name == LOCAL and on != LOCAL:
        raise UsageError(f"--on {on!r} has an address", "give local alone")
    if name == RAY and any(find_spec(module) is None for module in ("ray", "pyarrow", "pandas")):
        raise SttmError(
            "--on ray needs what is not installed: ray", "python -m pip install 'ray[data]'"
        )


def runner_names() -> list[str]:
    """Return the names that --on accepts; imports none of the runners."""
    return [LOCAL, RAY, *RUNNERS.names()]


def open_runner(
    on: str,
    qa: VideoQA,
    server: Server | None = None,
    *,
    workers: str | None = None,
    note: Callable[[str], None] = lambda line: None,
    debug: bool = False,
) -> Runner | FarRunner:
    """Open the runner of a checked name; for "local", the server's if there is one.

    `workers`, `note` (called with lines for the user) and `debug` are for clusters.
    """
    if _name(on) == RAY:
        from sttm_cli.library.ray import RayRunner

        return RayRunner(on, qa, workers=workers, note=note, debug=debug)
    if _name(on) != LOCAL:
        runner: Runner | FarRunner = RUNNERS.load(_name(on))(on, qa)
        return runner
    from sttm_cli.library.in_process import LocalRunner
    from sttm_cli.library.server import ServerRunner

    return LocalRunner(qa) if server is None else ServerRunner(qa, server)


def _name(on: str) -> str:
    return on.partition("://")[0]
