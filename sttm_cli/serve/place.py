"""Where a user's servers are: a socket, an address file and a lock per model and settings."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

from sttm_cli.base.address import absolute
from sttm_cli.base.locks import try_hold
from sttm_cli.base.types import Json
from sttm_cli.settings.settings import Settings, cache_dir

OF_THE_MODEL = ("model", "revision", "device", "dtype", "newlines")
PINNED = (*OF_THE_MODEL, "cache_dir", "max_bytes")
"""The settings that a server has for good; all others come with each request."""
_IN_PROCESS = ("no_cache", "refresh")


@dataclass(frozen=True)
class Place:
    """The files of one server in the user's runtime folder."""

    folder: Path
    name: str

    @property
    def socket(self) -> Path:
        return self.folder / f"{self.name}.sock"

    @property
    def file(self) -> Path:
        """Says who serves what: pid, version, model, addresses."""
        return self.folder / f"{self.name}.json"

    @property
    def lock(self) -> Path:
        """Held by the server for as long as it lives."""
        return self.folder / f"{self.name}.lock"

    @property
    def log(self) -> Path:
        """What a server that was left behind has to say."""
        return self.folder / f"{self.name}.log"

    def read(self) -> Json | None:
        """The address file, None where there is none that can be read."""
        try:
            value = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return value if isinstance(value, dict) else None

    def write(self, value: Json) -> None:
        """Write the address file, whole or not at all, for this user only."""
        part = self.file.with_suffix(".part")
        part.unlink(missing_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(value, file)
        part.replace(self.file)

    def clear(self) -> None:
        """Remove what says that a server is here."""
        for path in (self.socket, self.file):
            path.unlink(missing_ok=True)

    @contextmanager
    def hold(self, *, patience_s: float = 0.2) -> Iterator[bool]:
        """Hold the place until the block ends, cleared of what a dead server left; whether that
        could be: else a living server holds it."""
        descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            ours = try_hold(descriptor, patience_s=patience_s)
            if ours:
                self.clear()
            yield ours
        finally:
            os.close(descriptor)

    def is_served(self) -> bool:
        """Whether a living server holds the place; what a dead one left is cleared."""
        with self.hold(patience_s=0) as ours:
            return not ours


def place_of(settings: Settings) -> Place | None:
    """Where the server for these settings is or would be; None where none can be."""
    folder = runtime_folder()
    if folder is None or not may_be_served(settings):
        return None
    text = json.dumps(pinned(settings), sort_keys=True)
    return Place(folder, hashlib.sha256(text.encode()).hexdigest()[:16])


def may_be_served(settings: Settings) -> bool:
    """Whether a server could answer: what leaves the cache out is done in the process itself."""
    return not any(getattr(settings, name) for name in _IN_PROCESS)


def places() -> Iterator[Place]:
    """Every place of this user at which a server has written its address."""
    folder = runtime_folder()
    if folder is not None:
        for file in sorted(folder.glob("*.json")):
            yield Place(folder, file.stem)


def per_request(settings: Settings) -> Json:
    """The settings that are sent with a request."""
    others = {*PINNED, *_IN_PROCESS}
    return {f.name: getattr(settings, f.name) for f in fields(settings) if f.name not in others}


def runtime_folder() -> Path | None:
    """The user's own folder for sockets; None where there are none, or where another user could
    have put one."""
    if not hasattr(os, "geteuid"):
        return None
    from platformdirs import user_runtime_path

    with warnings.catch_warnings():
        # A folder that others can open is not used; platformdirs says so in its own words.
        warnings.simplefilter("ignore")
        folder = user_runtime_path("sttm")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.stat()
    except OSError:
        return None
    ours = found.st_uid == os.geteuid() and not found.st_mode & 0o077
    # Longer paths do not fit into a socket's address.
    return folder if ours and len(os.fsencode(folder)) < 80 else None


def pinned(settings: Settings) -> Json:
    """The settings that tell one server from another, independent of where a process runs."""
    model = Path(settings.model).expanduser()
    return {
        **{name: getattr(settings, name) for name in PINNED},
        "model": str(model.resolve()) if model.is_dir() else settings.model,
        "cache_dir": absolute(cache_dir(settings.cache_dir)),
    }


def of_the_model(settings: Settings) -> Json:
    """What a server's model must be like to answer for `settings`."""
    return {name: pinned(settings)[name] for name in OF_THE_MODEL}


def served_name(settings: Settings) -> str:
    """The model's name for clients: of a folder its own, as its path is nobody's business."""
    model = Path(settings.model).expanduser()
    return model.resolve().name if model.is_dir() else settings.model
