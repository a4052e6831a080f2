"""The digest of a video's bytes, computed once per version of a file."""

from __future__ import annotations

from pathlib import Path

from sttm_cli.base.filefacts import FileFacts
from sttm_cli.decode.file import blake3_of, file_version, open_file


def digest(path: Path, memo: FileFacts, *, version: str = "") -> str:
    """The blake3 of the file's bytes, in hex; looked up where the file was digested before.

    A file counts as the same while its path, size, times of modification and change, and inode
    are; one that was changed just now is not remembered. A folder's digest is over the names and
    bytes of its images. Raises VideoError for an unreadable file, DisturbedError for one that
    changes meanwhile or is not of `version` (of `video_version`, if given).
    """
    if path.is_dir():
        from sttm_cli.decode.image_folder import digest_folder

        return digest_folder(path, memo, version)
    with open_file(path, version) as file:
        key = f"digest:{file.version}"
        known = memo.get(key)
        if known is not None and isinstance(known.get("blake3"), str):
            return str(known["blake3"])
        value = blake3_of(file).hex()
    if file.is_settled:
        memo.set(key, {"blake3": value})
    return value


def video_version(path: Path) -> str:
    """What tells this version of a file, or this state of a folder of images, from another
    without reading its bytes; raises VideoError as `digest`."""
    if path.is_dir():
        from sttm_cli.decode.image_folder import folder_version

        return folder_version(path)
    return file_version(path)
