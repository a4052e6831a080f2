"""The files by which a user's servers are found, and the settings that identify them: a socket, an
address file and a lock for each model and its settings."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sttm_cli.base.names import absolute
from sttm_cli.base.reports import ServerFacts
from sttm_cli.base.shapes import shaped
from sttm_cli.base.system import try_hold
from sttm_cli.base.types import Json
from sttm_cli.settings.fields import NO_TIER, Scope
from sttm_cli.settings.settings import Settings, cache_dir, cache_tier, in_scope


@dataclass(frozen=True)
class ServerFiles:
    """The files of one server in the user's runtime folder."""

    folder: Path
    name: str

    @property
    def socket(self) -> Path:
        return self.folder / f"{self.name}.sock"

    @property
    def file(self) -> Path:
        """The address file: process id, version, model, address."""
        return self.folder / f"{self.name}.json"

    @property
    def lock(self) -> Path:
        """The lock file, locked as long as the server lives."""
        return self.folder / f"{self.name}.lock"

    @property
    def log(self) -> Path:
        """The log of a server that runs in the background."""
        return self.folder / f"{self.name}.log"

    def read(self) -> ServerFacts | None:
        """Read the address file, None if it is missing or unreadable."""
        try:
            value = json.loads(self.file.read_text(encoding="utf-8"))
            return shaped(value, ServerFacts, "the address file")
        except (OSError, ValueError, RecursionError):
            return None

    def write(self, value: ServerFacts) -> None:
        """Write the address file atomically, for this user only."""
        part = self.file.with_suffix(".part")
        part.unlink(missing_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(value, file)
        part.replace(self.file)

    def clear(self) -> None:
        """Remove the socket and the address file."""
        for path in (self.socket, self.file):
            path.unlink(missing_ok=True)

    @contextmanager
    def hold(self, *, patience_s: float = 0.2) -> Iterator[bool]:
        """Hold the lock until the block ends, after removing the files of a dead server; yields
        False if a live server holds it."""
        descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            ours = try_hold(descriptor, patience_s=patience_s)
            if ours:
                self.clear()
            yield ours
        finally:
            os.close(descriptor)

    def is_served(self) -> bool:
        """Return whether a live server holds the lock; the files of a dead one are removed."""
        with self.hold(patience_s=0) as ours:
            return not ours


def files_of(settings: Settings) -> ServerFiles | None:
    """Return the files of the server for these settings, running or not; None if impossible."""
    folder = runtime_folder()
    if folder is None or not may_be_served(settings):
        return None
    text = json.dumps(pinned(settings), sort_keys=True)
    return ServerFiles(folder, hashlib.sha256(text.encode()).hexdigest()[:16])


def may_be_served(settings: Settings) -> bool:
    """Return whether a server may answer: questions that bypass the cache are answered here."""
    return not any(getattr(settings, name) for name in in_scope(Scope.PROCESS))


def all_files() -> Iterator[ServerFiles]:
    """Yield the files of every server of this user that has written its address."""
    folder = runtime_folder()
    if folder is not None:
        for file in sorted(folder.glob("*.json")):
            yield ServerFiles(folder, file.stem)


def per_request(settings: Settings) -> Json:
    """Return the settings that are sent with a request."""
    return {name: getattr(settings, name) for name in in_scope(Scope.REQUEST)}


def runtime_folder() -> Path | None:
    """Return the user's own folder for sockets; None on systems without one, or if another user
    could have put files there."""
    if not hasattr(os, "geteuid"):
        return None
    from platformdirs import user_runtime_path

    with warnings.catch_warnings():
        # A folder that others can open is rejected below; platformdirs warns of it as well.
        warnings.simplefilter("ignore")
        folder = user_runtime_path("sttm")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        state = folder.stat()
    except OSError:
        return None
    ours = state.st_uid == os.geteuid() and not state.st_mode & 0o077
    # Longer paths do not fit into a socket address.
    return folder if ours and len(os.fsencode(folder)) < 80 else None


def pinned(settings: Settings) -> Json:
    """Return the settings that distinguish servers, independent of the working folder."""
    model = Path(settings.model).expanduser()
    where, tier = cache_dir(settings.cache_dir), settings.cache_tier
    if isinstance(where, str) and tier is None:
        tier = cache_tier() or NO_TIER
    return {
        **{name: getattr(settings, name) for name in in_scope(Scope.MODEL, Scope.SERVER)},
        "model": str(model.resolve()) if model.is_dir() else settings.model,
        "cache_dir": absolute(where),
        "cache_tier": None if tier is None else absolute(tier),
    }


def of_the_model(settings: Settings) -> Json:
    """Return the settings in which a server's model must agree with `settings`."""
    ours = {name: pinned(settings)[name] for name in in_scope(Scope.MODEL)}
    # As they arrive: JSON has no tuples.
    return {name: list(v) if isinstance(v, tuple) else v for name, v in ours.items()}


def served_name(settings: Settings) -> str:
    """Return the model's name for clients; a folder's own name, since its path is private."""
    model = Path(settings.model).expanduser()
    return model.resolve().name if model.is_dir() else settings.model
