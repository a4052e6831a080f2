"""The digest of a video's bytes, computed once per version of a file."""

from __future__ import annotations

from pathlib import Path

from sttm_cli.base.errors import VideoError
from sttm_cli.base.filefacts import FileFacts, is_settled
from sttm_cli.decode.file import check_file, version_key


def digest(path: Path, memo: FileFacts) -> str:
    """The blake3 of the file's bytes, in hex; looked up where the file was digested before.

    A file counts as the same while its path, size, times of modification and change, and inode
    are; one that was changed just now is not remembered. A folder's digest is over the names and
    bytes of its images. Raises VideoError for what cannot be read or changes meanwhile.
    """
    if path.is_dir():
        from sttm_cli.decode.image_folder import digest_folder

        return digest_folder(path, memo)
    before = check_file(path)
    key = "digest:" + version_key(path, before)
    known = memo.get(key)
    if known is not None and isinstance(known.get("blake3"), str):
        return str(known["blake3"])
    value = _blake3(path)
    after = check_file(path)
    if version_key(path, after) != version_key(path, before):
        raise VideoError(f"{path} changed while it was read", "wait until it is complete")
    if is_settled(after):
        memo.set(key, {"blake3": value})
    return value


def _blake3(path: Path) -> str:
    from blake3 import blake3

    try:
        return str(blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest())
    except OSError as error:
        raise VideoError(f"{path} cannot be read: {error.strerror}", "check the file") from None
