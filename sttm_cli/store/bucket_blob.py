"""The bytes of an object: the first range from one request, the rest in large concurrent ranges,
copied to the local disk as they arrive."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

from sttm_cli.store.artifact import FIRST_READ, Damaged
from sttm_cli.store.bucket import Bucket, Changed, Got, Listed

FIRST = 1 << 20
"""Bytes of the first request of a restore: a small artifact as a whole, a large one's header."""
RANGE = 8 << 20
"""Bytes of each later request."""
AHEAD = 12
"""Concurrent requests: one connection seldom saturates a network."""


class BucketBlob:
    """The bytes of an object; every range belongs to the version that was opened, or raises an
    error.

    Raises BucketError, FileNotFoundError, and Unchanged if the object's ETag is still `known`.
    `whole`: all bytes are going to be read, so ranges are prefetched.
    """

    def __init__(self, bucket: Bucket, path: str, *, whole: bool = False, known: str = "") -> None:
        self._bucket, self._path = bucket, path
        first = bucket.read(path, 0, FIRST if whole else FIRST_READ, known=known)
        self.first: memoryview = first.data
        self.object: Listed = first.object
        self._whole = whole and len(first.data) < first.object.size
        self._pool: ThreadPoolExecutor | None = None
        self._lock = Lock()
        self._ranges: dict[int, Future[memoryview]] = {}
        self._left: dict[int, int] = {}
        self._next = 0
        self._copy: Callable[[int, memoryview], None] | None = None

    @property
    def size(self) -> int:
        return self.object.size

    def copy_to(self, write: Callable[[int, memoryview], None]) -> None:
        """Pass each range to `write(offset, data)` as it arrives; called from several threads."""
        write(0, self.first)
        self._copy = write

    def read_into(self, target: memoryview, offset: int) -> int:
        if offset < len(self.first):
            part = self.first[offset : offset + len(target)]
        elif offset >= self.size:
            return 0
        elif self._whole:
            number, place = divmod(offset - len(self.first), RANGE)
            part = self._range(number)[place : place + len(target)]
            self._consumed(number, len(part))
        else:
            part = self._fetch(offset, min(self.size, offset + len(target)))
        target[: len(part)] = part
        return len(part)

    def close(self) -> None:
        with self._lock:
            pool, self._pool, self._whole = self._pool, None, False
            self._ranges.clear()
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)

    def _range(self, number: int) -> memoryview:
        """Return a range, and request the ranges after it."""
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(AHEAD, thread_name_prefix="range")
            for ahead in range(self._next, number + AHEAD):
                begin, end = self._bounds(ahead)
                if begin < end:
                    self._ranges[ahead] = self._pool.submit(self._arriving, begin, end)
                    self._left[ahead] = end - begin
            self._next = max(self._next, number + AHEAD)
            future = self._ranges.get(number)
        if future is None:
            raise Damaged("a part of it was read twice")
        return future.result()

    def _bounds(self, number: int) -> tuple[int, int]:
        begin = len(self.first) + number * RANGE
        return begin, min(self.size, begin + RANGE)

    def _consumed(self, number: int, count: int) -> None:
        """Release a range once all of its bytes were consumed."""
        with self._lock:
            self._left[number] -= count
            if self._left[number] <= 0:
                self._ranges.pop(number, None)

    def _arriving(self, begin: int, end: int) -> memoryview:
        data = self._fetch(begin, end)
        if self._copy is not None:
            self._copy(begin, data)
        return data

    def _fetch(self, begin: int, end: int) -> memoryview:
        try:
            got: Got = self._bucket.read(self._path, begin, end, same=self.object.version)
        except Changed:
            raise Damaged("it was replaced while it was read") from None
        except FileNotFoundError:
            raise Damaged("it was removed while it was read") from None
        if len(got.data) != end - begin or got.object.size != self.size:
            raise Damaged("it ends before its tensors do")
        return got.data


class MemoryBlob:
    """A blob in memory."""

    def __init__(self, data: memoryview) -> None:
        self._data, self.size = data, len(data)

    def read_into(self, target: memoryview, offset: int) -> int:
        part = self._data[offset : offset + len(target)]
        target[: len(part)] = part
        return len(part)

    def close(self) -> None:
        self._data = memoryview(b"")
