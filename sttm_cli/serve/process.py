"""The process of a server: its files, sockets, signals and shutdown."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import uvicorn

from sttm_cli import __version__
from sttm_cli.base.errors import SttmError
from sttm_cli.base.reports import ServerFacts
from sttm_cli.serve.app import make_app
from sttm_cli.serve.connections import BoundedConnection
from sttm_cli.serve.engine import Engine
from sttm_cli.serve.options import Options
from sttm_cli.serve.server_files import ServerFiles, files_of
from sttm_cli.serve.service import Service
from sttm_cli.serve.videos import Videos
from sttm_cli.settings.settings import Settings


def serve(settings: Settings, options: Options, say: Callable[[str], None]) -> None:
    """Serve until a signal, `--stop` or the end of `--keep-alive`.

    Raises SttmError if such a server is already running or the address is taken, and the errors of
    loading the model.
    """
    files = files_of(settings)
    with files.hold() if files else nullcontext(True) as ours:
        if not ours:
            raise SttmError(
                "a server for this model and these settings runs already, or is about to end",
                "'sttm serve --status' shows it, 'sttm serve --stop' ends it",
            )
        sockets = _sockets(files, options)
        try:
            asyncio.run(_serve(settings, options, files, sockets, say))
        finally:
            for listener in sockets.values():
                listener.close()
            if files is not None:
                files.clear()


async def _serve(
    settings: Settings,
    options: Options,
    files: ServerFiles | None,
    sockets: dict[str, socket.socket],
    say: Callable[[str], None],
) -> None:
    engine, videos = Engine(settings, options), Videos(options)
    listening = [
        asyncio.create_task(_listen(engine, videos, options, way, listener))
        for way, listener in sockets.items()
    ]
    _on_signals(lambda: engine.give_up() if engine.stop.is_set() else engine.stop.set())
    address = _address(sockets.get("tcp"))
    if files is not None:
        files.write(_facts(settings, address))
    say(f"loading {settings.model}")
    loading = asyncio.create_task(_load(engine, lambda: say(_ready(settings, address))))
    idle = asyncio.create_task(_idle(engine))
    await engine.stop.wait()
    say("stopping: running questions are finished, new ones are refused")
    if files is not None:
        files.clear()
    try:
        await asyncio.gather(*listening)
        await loading
    finally:
        idle.cancel()
        engine.close()
        videos.close()


async def _load(engine: Engine, on_ready: Callable[[], None]) -> None:
    """Load the model; stop the server if that fails."""
    try:
        await engine.start()
        on_ready()
    except BaseException:
        engine.stop.set()
        raise


async def _listen(
    engine: Engine, videos: Videos, options: Options, way: str, listener: socket.socket
) -> None:
    """Serve one socket until `engine.stop`, then finish its running requests."""
    config = uvicorn.Config(
        make_app(Service(engine, videos, options, trusted=way == "unix")),
        http=BoundedConnection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(options.request_timeout) + 1,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await engine.stop.wait()
    server.should_exit = True
    await serving


class _Server(uvicorn.Server):
    """Leaves signals to the process, which may run two of these servers."""

    def capture_signals(self) -> Any:
        return nullcontext()


async def _idle(engine: Engine) -> None:
    """Stop the engine `keep_alive` seconds after the last question."""
    while engine.keep_alive is not None:
        left = engine.last_used + engine.keep_alive - time.monotonic()
        if left <= 0 and not engine.busy and engine.ready:
            engine.stop.set()
            return
        await asyncio.sleep(max(0.05, min(left, 1.0)))


# ---- sockets and files


def _sockets(files: ServerFiles | None, options: Options) -> dict[str, socket.socket]:
    sockets: dict[str, socket.socket] = {}
    if files is not None:
        sockets["unix"] = _unix_socket(files)
    if options.port is not None:
        sockets["tcp"] = _tcp_socket(options.host, options.port)
    if not sockets:
        raise SttmError("there is nothing to listen on", "give a --port")
    return sockets


def _unix_socket(files: ServerFiles) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(files.socket))
    finally:
        os.umask(before)
    # Clients that connect before the loop runs wait in the backlog.
    listener.listen()
    return listener


def _tcp_socket(host: str, port: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SttmError(
            f"--host {host} --port {port} cannot be listened on: {reason}",
            "give another --port; 0 takes a free one",
        ) from error
    return listener


def _address(listener: socket.socket | None) -> str | None:
    if listener is None:
        return None
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _facts(settings: Settings, address: str | None) -> ServerFacts:
    return {
        "pid": os.getpid(),
        "version": __version__,
        "model": settings.model,
        "address": address,
        "started": time.time(),
    }


def _ready(settings: Settings, address: str | None) -> str:
    where = f"; OpenAI clients: {address}/v1" if address else ""
    return f"serving {settings.model}: 'sttm ask' finds it by itself{where}"


def _on_signals(stop: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        try:
            loop.add_signal_handler(number, stop)
        except NotImplementedError:
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop))
