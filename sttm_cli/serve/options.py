"""A server's options: where it listens, whom it admits, and its bounds."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from sttm_cli.base.errors import UsageError
from sttm_cli.settings.fields import size_text

MIB = 1 << 20


@dataclass(frozen=True)
class Options:
    """A server's options, in bytes and seconds; without a `port` it only has its socket.

    It works on `parallel` questions at once and lets `max_queue` more wait; up to `together`
    questions about one video are decoded together (None: if that cannot change an answer). Raises
    UsageError.
    """

    host: str = "127.0.0.1"
    port: int | None = None
    api_key: str | None = None
    allow_path: tuple[Path, ...] = ()
    allow_private: bool = False
    keep_alive: float | None = None
    parallel: int = 8
    together: int | None = None
    max_queue: int = 64
    request_timeout: float = 600.0
    max_body: int = 64 * MIB
    max_bodies: int | None = None
    max_download: int = 1024 * MIB
    download_timeout: float = 120.0
    device_bytes: int | None = None
    host_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.api_key == "":
            raise UsageError("--api-key is empty", "give a key, or leave it out")
        if self.port is not None and not is_loopback(self.host) and self.api_key is None:
            raise UsageError(
                f"--host {self.host} can be reached from elsewhere and needs a key",
                "give --api-key or STTM_API_KEY, or leave --host out",
            )
        if self.port is not None and not 0 <= self.port <= 65535:
            raise UsageError(f"--port {self.port} is not possible", "give one from 0 to 65535")
        if self.most_of_bodies < self.max_body:
            raise UsageError(
                f"--max-bodies {size_text(self.most_of_bodies)} is less than "
                f"--max-body {size_text(self.max_body)}",
                "give a larger --max-bodies, or a smaller --max-body",
            )
        for folder in self.allow_path:
            if not folder.is_dir():
                raise UsageError(
                    f"--allow-path {folder} is not a folder", "give an existing folder"
                )
        for flag, value in (
            ("--parallel", self.parallel),
            ("--max-queue", self.max_queue),
            ("--together", self.together),
        ):
            if value is not None and value < 1:
                raise UsageError(f"{flag} {value} is not possible", "it starts at 1")
        for flag, seconds in (
            ("--request-timeout", self.request_timeout),
            ("--download-timeout", self.download_timeout),
        ):
            if not 0 < seconds < float("inf"):
                raise UsageError(f"{flag} {seconds} is not possible", "give seconds above 0")

    @property
    def most_of_bodies(self) -> int:
        """Maximum bytes of the bodies of all requests together."""
        return 4 * self.max_body if self.max_bodies is None else self.max_bodies


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
