"""A store's warnings, which may go elsewhere for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_redirected: ContextVar[Callable[[str], None] | None] = ContextVar("redirected", default=None)


class Warnings:
    """Called with a line, passes it on to `warn`, or to where it is redirected."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn

    def __call__(self, line: str) -> None:
        (_redirected.get() or self._warn)(line)

    @contextmanager
    def redirected(self, warn: Callable[[str], None]) -> Iterator[None]:
        """Within this context, and this thread, lines go to `warn`."""
        token = _redirected.set(warn)
        try:
            yield
        finally:
            _redirected.reset(token)
