"""A fingerprint of a checkpoint's files: equal only for equal contents, remembered by stat."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from sttm_cli.base.filefacts import FileFacts, is_settled

_CONTENT_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def fingerprint(folder: Path, files: Sequence[Path], memo: FileFacts, *, hub: str = "") -> str:
    """A hash over the names and contents of `files` of `folder`, which links may lead out of.

    `hub`, the repository and commit of a snapshot in the hub's cache, spares reading the weights:
    there each file is a link to a blob that is named by its own content's hash and never written
    again. A blob that changed after it was linked is read, and so is a file that is not a link.
    """
    stats = [(path.stat(), path.lstat()) for path in files]
    versions = [
        (
            _name(folder, path),
            s.st_dev,
            s.st_ino,
            s.st_size,
            s.st_mtime_ns,
            s.st_ctime_ns,
            link.st_ctime_ns,
        )
        for path, (s, link) in zip(files, stats, strict=True)
    ]
    key = f"weights:{json.dumps([os.fspath(folder.resolve()), hub, versions])}"
    known = memo.get(key)
    if known is not None and isinstance(known.get("fingerprint"), str):
        return str(known["fingerprint"])
    made = _made(folder, files, hub)
    if is_settled(*(stat for stat, _ in stats)):
        memo.set(key, {"fingerprint": made})
    return made


def _made(folder: Path, files: Sequence[Path], hub: str) -> str:
    from blake3 import blake3

    total = blake3()
    for path in files:
        blob = _blob(path) if hub else None
        one = blob or blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()
        total.update(f"{_name(folder, path)}\0{one}\n".encode())
    return f"hub:{hub}:{total.hexdigest(16)}" if hub else f"files:{total.hexdigest()}"


def _name(folder: Path, path: Path) -> str:
    return os.fsencode(path.relative_to(folder).as_posix()).decode(errors="backslashreplace")


def _blob(path: Path) -> str | None:
    """The content hash by which the hub's cache names the blob behind `path`, None where the file
    is not a link to one, or where the blob's content is another by now."""
    if not path.is_symlink():
        return None
    blob = path.resolve()
    if blob.parent.name != "blobs" or not _CONTENT_HASH.fullmatch(blob.name):
        return None
    # The blob is complete before the link is made. A copied cache may have lost that order.
    unwritten = blob.stat().st_ctime_ns <= path.lstat().st_ctime_ns
    return blob.name if unwritten or _hub_hash(blob) == blob.name else None


def _hub_hash(blob: Path) -> str:
    """The hub's hash of a file: sha256, or for a small one that of git."""
    size, is_git = blob.stat().st_size, len(blob.name) == 40
    total = hashlib.sha1(b"blob %d\0" % size) if is_git else hashlib.sha256()
    with blob.open("rb") as file:
        while data := file.read(1 << 20):
            total.update(data)
    return total.hexdigest()
