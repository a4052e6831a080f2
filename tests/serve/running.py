"""A server process of the test's own, and the ways to it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

START_S = 120.0
ENDLESS = """
from sttm_cli.answer.generate import Sampler
choose = Sampler.__call__
Sampler.__call__ = lambda self, logits: choose(self, logits) if self.seed is None else 20
"""
"""Makes a server whose drawn answers go on for as long as they may."""


@dataclass
class Running:
    """A server process; `env` leads clients to it, `url` is its address for others."""

    process: subprocess.Popen[bytes]
    env: dict[str, str]
    log: Path
    url: str = ""
    key: str | None = None

    @property
    def files(self) -> Path:
        """The folder of its socket."""
        return Path(self.env["XDG_RUNTIME_DIR"]) / "sttm"

    def openai(self) -> Any:
        """The real client."""
        import openai

        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=self.key or "none", max_retries=0, timeout=120
        )

    def http(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=120)

    def metric(self, line: str) -> float:
        """One value of /metrics; 0 where it was never counted."""
        with self.http() as http:
            found = re.search(rf"^{re.escape(line)} (\S+)$", http.get("/metrics").text, re.M)
        return float(found[1]) if found else 0.0


def place(folder: Path) -> dict[str, str]:
    """Environment of processes that share a cache and a runtime folder of their own."""
    run = folder / "run"
    run.mkdir(mode=0o700, parents=True, exist_ok=True)
    return {"STTM_CACHE_DIR": str(folder / "cache"), "XDG_RUNTIME_DIR": str(run)}


@contextmanager
def serving(
    folder: Path, *arguments: object, key: str | None = None, code: str = ""
) -> Iterator[Running]:
    """`sttm serve` until the block ends; `code` runs before the command does."""
    env, log = place(folder), folder / "log"
    program = f"{code}\nfrom sttm_cli.cli import main; main()"
    command = [sys.executable, "-c", program, "serve", "--port", "0", *map(str, arguments)]
    with log.open("wb") as file:
        secret = {"STTM_API_KEY": key} if key else {}
        process = subprocess.Popen(command, stderr=file, env={**os.environ, **env, **secret})
    running = Running(process, env, log, key=key)
    try:
        running.url = _wait_for_address(running)
        yield running
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for_address(running: Running) -> str:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        found = re.search(r"serving .*(http://\S+)/v1", running.log.read_text())
        if found:
            return found[1]
        if running.process.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError(f"the server did not start: {running.log.read_text()}")
