"""A process on a pseudo-terminal of its own, driven as a person would."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import sys
import time

CTRL_C, CTRL_D, ENTER, TAB, UP = "\x03", "\x04", "\r", "\t", "\x1b[A"
_CODES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]|\x1b\][^\x07]*\x07|[\r\x07]")


class Terminal:
    """`sttm ARGUMENTS` on a terminal; `screen` is all that it has shown, without codes, and
    `raw` with them."""

    def __init__(self, *arguments: object, module: str = "sttm_cli", **env: str) -> None:
        command = [sys.executable, "-m", module, *map(str, arguments)]
        self.screen, self._seen = "", 0
        self.raw = b""
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            plain = {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "COLUMNS": "100", "LINES": "40"}
            os.execve(command[0], command, {**os.environ, **plain, **env})

    def send(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def expect(self, text: str, timeout: float = 60) -> str:
        """Wait until `text` appears after what was waited for before; what came up to it."""
        until = time.monotonic() + timeout
        while text not in self.screen[self._seen :]:
            if time.monotonic() > until or not self._read(1.0):
                raise AssertionError(f"{text!r} did not appear; the screen:\n{self.screen}")
        end = self.screen.index(text, self._seen) + len(text)
        before, self._seen = self.screen[self._seen : end], end
        return before

    def ended(self, timeout: float = 60) -> int:
        """Wait for the end and return the exit code."""
        until = time.monotonic() + timeout
        while self._read(1.0):
            if time.monotonic() > until:
                os.kill(self._pid, signal.SIGKILL)
        _, status = os.waitpid(self._pid, 0)
        os.close(self._fd)
        return os.waitstatus_to_exitcode(status)

    def _read(self, wait: float) -> bool:
        """Read what there is; False at the end."""
        if not select.select([self._fd], [], [], wait)[0]:
            return True
        try:
            block = os.read(self._fd, 1 << 16)
        except OSError:
            return False
        self.raw += block
        self.screen = _CODES.sub("", self.raw.decode(errors="replace"))
        return bool(block)
