"""The files of the artifacts: names, scans, atomic writes, and sweeping.

root/kv/ab/<key>.safetensors    the artifacts
root/kv/ab/<key>.<random>.part  being written
root/locks/<key>                locked by the process that computes this key
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from stat import S_ISREG
from threading import Lock
from typing import BinaryIO, NamedTuple, cast

from sttm_cli.base.system import hold, remove_unheld
from sttm_cli.store.artifact import Damaged
from sttm_cli.store.protocol import Space

# Write access to a cache's folders and files: this user only, or the members of one group.


OTHERS_WRITE = 0o022
SHARED = 0o2770
NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "ceph", "beegfs", "gpfs", "9p", "afs")
"""File systems that several machines may have mounted."""


@dataclass(frozen=True)
class Access:
    """The users trusted with a cache: the members of the group `gid`, or without it this user."""

    gid: int | None = None

    @property
    def folder_mode(self) -> int:
        return 0o700 if self.gid is None else SHARED

    @property
    def file_mode(self) -> int:
        return 0o600 if self.gid is None else 0o660

    def exposure(self, stat: os.stat_result) -> str:
        """Return how others can modify a file or folder, to follow its name; "" if nobody can."""
        if not hasattr(os, "geteuid"):
            return ""
        if self.gid is not None:
            if stat.st_gid != self.gid:
                return "belongs to another group"
            return "can be written by other users" if stat.st_mode & 0o002 else ""
        if stat.st_uid != os.geteuid():
            return "belongs to another user"
        return "can be written by other users" if stat.st_mode & OTHERS_WRITE else ""

    def make(self, folder: Path) -> None:
        """Create a folder and its missing parents, each with its mode regardless of the umask.

        Raises OSError.
        """
        try:
            os.mkdir(folder, self.folder_mode & 0o777)
        except FileNotFoundError:
            self.make(folder.parent)
            self.make(folder)
        except FileExistsError:
            if not folder.is_dir():
                raise
        else:
            if self.gid is not None:
                os.chmod(folder, self.folder_mode)

    def set_mode(self, descriptor: int) -> None:
        """Set the mode of a newly created file, regardless of the umask; raises OSError."""
        if self.gid is not None:
            os.fchmod(descriptor, self.file_mode)

    def check_levels(self, place: Path) -> None:
        """Raise Damaged unless the folders root, kv/ and kv/ab/ above an artifact are trusted, and
        the latter no links: what those lead to is not the cache's.

        Raises OSError if one is missing.
        """
        for level in list(place.parents)[:3]:
            if level != place.parents[2] and level.is_symlink():
                raise Damaged(f"{level} is not a folder")
            if reason := self.exposure(level.stat()):
                raise Damaged(f"{level} {reason}")


PRIVATE = Access()


def access_to(root: Path) -> Access:
    """Return who is trusted with the cache in a folder, which need not exist."""
    with suppress(OSError):
        stat = root.stat()
        shared = stat.st_mode & 0o7777 == SHARED and hasattr(os, "getgroups")
        if shared and is_member(stat.st_gid):
            return Access(stat.st_gid)
    return PRIVATE


def is_member(gid: int) -> bool:
    """Return whether this process belongs to a group."""
    return gid in {os.getegid(), *os.getgroups()}


def advice(root: Path, stat: os.stat_result) -> str:
    """Return the commands that make an unusable folder usable, "" if there are none."""
    if not hasattr(os, "geteuid"):
        return ""
    place, owner = shlex.quote(str(root)), stat.st_uid == os.geteuid()
    if owner:
        group = group_name(stat.st_gid)
        return f": chmod 700 {place} makes it yours alone, chmod 2770 {place} the group {group}'s"
    if not is_member(stat.st_gid):
        return f", and you are not a member of its group {group_name(stat.st_gid)}"
    return f": for a cache of the group {group_name(stat.st_gid)} its owner runs chmod 2770 {place}"


def repair(root: Path, access: Access) -> str:
    """Return the commands that give a group all files of its cache."""
    if access.gid is None:
        return ""
    place = shlex.quote(str(root))
    return (
        f": chgrp -R {group_name(access.gid)} {place}; chmod -R g+rw,o-rwx {place}; "
        f"find {place} -type d -exec chmod 2770 {{}} +"
    )


def group_name(gid: int) -> str:
    """Return a group's name, or its number if it has no name."""
    try:
        import grp

        return grp.getgrgid(gid).gr_name
    except (ImportError, KeyError):
        return str(gid)


def on_network(root: Path) -> bool:
    """Return whether other machines may have mounted the folder too; on Linux only, else False."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
        real = os.path.realpath(root)
    except OSError:
        return False
    best = ("", "")
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        place, kind = before.split(" ")[4], after.split(" ")[0]
        place = place.replace("\\040", " ")
        within = os.path.join(real, "").startswith(os.path.join(place, ""))
        if within and len(place) >= len(best[0]):
            best = (place, kind)
    return best[1].removeprefix("fuse.") in (*NETWORK, "sshfs", "glusterfs", "s3fs", "juicefs")


Seal = tuple[int, int, int, int]
"""Size, times of modification and change, and inode. Any user can set the modification time back;
the change time is set by the system."""


def file_seal(stat: os.stat_result) -> Seal:
    """Return the file's seal, which stays equal as long as nobody writes to the file."""
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


class FileBlob:
    """The bytes of a file; symbolic links are not followed, and pipes do not block.

    Raises OSError, and Damaged for anything but a regular file that only those with `access` can
    write to.
    """

    def __init__(self, path: str | Path, access: Access = PRIVATE) -> None:
        flags = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
        self.path = os.fspath(path)
        descriptor = os.open(path, os.O_RDONLY | flags)
        self.stat = os.fstat(descriptor)
        regular = S_ISREG(self.stat.st_mode)
        reason = access.exposure(self.stat) if regular else "is not a regular file"
        if reason:
            os.close(descriptor)
            raise Damaged(f"it {reason}")
        # Unbuffered: tensors are read directly into their place.
        self._file = os.fdopen(descriptor, "rb", buffering=0)
        self._seeking = Lock()

    @property
    def size(self) -> int:
        """The size when the file was opened."""
        return self.stat.st_size

    def read_into(self, target: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._file.fileno(), [target], offset)
        with self._seeking:
            self._file.seek(offset)
            return self._file.readinto(target) or 0

    def expect_whole_read(self) -> None:
        """Ask the system to read ahead: concurrent readers look like random access."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)

    def close(self) -> None:
        self._file.close()


SUFFIX = ".safetensors"
KEY = re.compile("[0-9a-f]{64}")
PART = re.compile(r"[0-9a-f]{64}\.[0-9a-f]{16}\.part|[0-9a-f]{8}[a-z0-9_]{8}\.part")
"""Temporary files, also those of earlier versions. Files of other names are never removed."""
MARKER = "CACHEDIR.TAG"
"""The file that marks a folder as a cache."""
_MARK_PART = re.compile(rf"{MARKER}\.[0-9a-f]{{16}}\.part")


TOUCH_S = 3600.0
"""Minimum seconds between updates of an entry's mtime, which other users read as its last use."""
OLD_S = 86400.0
"""Age at which leftovers of processes are removed where locks are not visible to all users."""


class Stored(NamedTuple):
    """A file in an artifact's place; its contents were not read."""

    key: str
    place: str
    stat: os.stat_result

    @property
    def path(self) -> Path:
        return Path(self.place)

    @property
    def bytes(self) -> int:
        return self.stat.st_size

    @property
    def changed(self) -> float:
        """The time of the last change in seconds since the epoch."""
        return self.stat.st_mtime

    @property
    def seal(self) -> Seal:
        return file_seal(self.stat)


@dataclass(frozen=True)
class Scan:
    """The files under kv/ by key, and the temporary files and locks that killed processes may have
    left."""

    artifacts: list[Stored]
    leftovers: list[Path]

    @property
    def bytes(self) -> int:
        return sum(stored.bytes for stored in self.artifacts)


class Folder:
    """The folders kv/ and locks/ below a cache's root."""

    def __init__(self, root: Path, access: Access = PRIVATE, *, shared: bool = False) -> None:
        """`shared`: by users or machines that do not see each other's locks."""
        self._root, self._kv, self._locks = root, root / "kv", root / "locks"
        self._access, self._shared = access, shared

    @property
    def root(self) -> Path:
        return self._root

    @property
    def locks(self) -> Path:
        return self._locks

    def space(self) -> Space:
        """Return the space of the disk that holds, or will hold, the folders."""
        place = self._root
        while not os.path.exists(place):
            place = place.parent
        usage = shutil.disk_usage(place)
        return Space(free=usage.free, total=usage.total)

    def lock(self, key: str) -> Path:
        return self._locks / key

    def place(self, key: str) -> Path:
        return self._kv / key[:2] / (key + SUFFIX)

    def is_linked(self, path: Path) -> bool:
        """Whether a link stands above an artifact's place: its file is not the cache's."""
        return path.parent.is_symlink() or self._kv.is_symlink()

    def scan(self) -> Scan:
        """One `stat` of every file; files for which it fails are left out."""
        locked = () if self._locks.is_symlink() else entries_of(self._locks)
        locks = (lock for lock in locked if KEY.fullmatch(lock.name))
        artifacts, leftovers = list[Stored](), [Path(lock) for lock in locks]
        for entry in _files(self._kv):
            key = entry.name.removesuffix(SUFFIX)
            if key != entry.name and KEY.fullmatch(key):
                with suppress(OSError):
                    artifacts.append(Stored(key, entry.path, entry.stat(follow_symlinks=False)))
            elif PART.fullmatch(entry.name):
                leftovers.append(Path(entry.path))
        # Left by processes that were killed while marking the folder.
        marks = (entry for entry in entries_of(self._root) if _MARK_PART.fullmatch(entry.name))
        leftovers += [Path(entry.path) for entry in marks]
        if self._shared:
            leftovers = [path for path in leftovers if _is_old(path)]
        return Scan(sorted(artifacts, key=itemgetter(0)), leftovers)

    def begin(self, path: Path) -> Incoming:
        """Create an empty file that can become this artifact; raises OSError and Damaged."""
        self._access.make(path.parent)
        self._access.check_levels(path)
        return Incoming(path, self._access)

    def write(self, path: Path, fill: Callable[[BinaryIO], None]) -> None:
        """Write an artifact's file atomically; raises OSError and Damaged."""
        self._access.make(path.parent)
        self._access.check_levels(path)
        write_whole(path, fill, self._access)


def write_whole(path: Path, fill: Callable[[BinaryIO], object], access: Access = PRIVATE) -> None:
    """Fill a temporary file in the same folder, sync it and rename it. Raises OSError."""
    part = part_of(path)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(part, flags, 0o600)
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            access.set_mode(file.fileno())
            # A held file is never swept by other processes.
            hold(file.fileno())
            fill(cast(BinaryIO, file))
            os.fsync(file.fileno())
            if os.name == "posix":
                os.replace(part, path)
        if os.name != "posix":
            # Windows cannot move an open file.
            os.replace(part, path)
        _sync(path.parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


class Incoming:
    """A temporary file, filled in any order by several threads, that becomes the artifact once it
    is kept. Raises OSError; the file is removed unless it is kept."""

    def __init__(self, path: Path, access: Access = PRIVATE) -> None:
        self.path = path
        self._part = part_of(path)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        self.file = os.fdopen(os.open(self._part, flags, 0o600), "r+b", buffering=0)
        access.set_mode(self.file.fileno())
        hold(self.file.fileno())
        self._seeking = Lock()

    def write(self, offset: int, data: memoryview) -> None:
        """Write bytes at an offset."""
        while data:
            if hasattr(os, "pwrite"):
                count = os.pwrite(self.file.fileno(), data, offset)
            else:
                with self._seeking:
                    self.file.seek(offset)
                    count = self.file.write(data) or 0
            data, offset = data[count:], offset + count

    def keep(self) -> None:
        """Move the file into place without a sync: each restore verifies its checksum, and the
        bucket has the original."""
        self.file.close()
        os.replace(self._part, self.path)

    def drop(self) -> None:
        """Remove the file unless it was kept."""
        self.file.close()
        with suppress(OSError):
            self._part.unlink(missing_ok=True)


def _is_old(path: Path) -> bool:
    """Return whether a file is unchanged for so long that no live process can be writing it."""
    with suppress(OSError):
        return time.time() - path.lstat().st_mtime > OLD_S
    return False


def part_of(path: Path) -> Path:
    """Return a new temporary name in the same folder."""
    return path.with_name(f"{path.name.removesuffix(SUFFIX)}.{secrets.token_hex(8)}.part")


def sweep(leftovers: list[Path]) -> None:
    """Remove temporary files and locks whose owner is dead."""
    for path in leftovers:
        remove_unheld(path)


def remove_files(paths: Iterable[Path], warn: Callable[[str], None]) -> list[Path]:
    """Remove files and return those that no longer exist; `warn` gets a line if some remain."""
    removed, kept = list[Path](), list[str]()
    for path in paths:
        try:
            path.unlink(missing_ok=True)
            removed.append(path)
        except OSError as error:
            kept.append(f"{path} cannot be removed: {error.strerror}")
    if kept:
        warn(kept[0] + (f", nor can {len(kept) - 1:,} more" if kept[1:] else ""))
    return removed


def touch(path: Path) -> None:
    """Set an artifact's mtime to now, at most once an hour, if permitted."""
    with suppress(OSError):
        if abs(time.time() - path.lstat().st_mtime) > TOUCH_S:
            os.utime(path, follow_symlinks=False)


def entries_of(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    """Yield the entries of a folder, none if it cannot be read."""
    with suppress(OSError), os.scandir(folder) as entries:
        yield from entries


def _files(kv: Path) -> Iterator[os.DirEntry[str]]:
    """The files of the folders kv/ab, each with a name that begins with its folder's."""
    # Files behind a link are not ours to count, and least of all to remove.
    for folder in () if kv.is_symlink() else entries_of(kv):
        if folder.is_dir(follow_symlinks=False):
            yield from (e for e in entries_of(folder.path) if e.name[:2] == folder.name)


def _sync(folder: Path) -> None:
    if os.name != "posix":
        return
    # The file is already in place; some network file systems cannot sync a folder.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
