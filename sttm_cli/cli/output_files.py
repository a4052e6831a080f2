"""Files that a command writes beside its output, checked before minutes of work, not after them."""

from __future__ import annotations

from pathlib import Path

from sttm_cli.base.errors import SttmError, UsageError


def check_file(flag: str, path: Path | None, *endings: str) -> None:
    """Raise UsageError for another kind of file than `endings`, SttmError for a missing folder."""
    if path is None:
        return
    if path.suffix.lower() not in endings:
        kinds = _alternatives([ending[1:].upper() for ending in endings])
        raise UsageError(
            f"{flag} {path} is not a {kinds} file",
            f"give a name that ends in {_alternatives(endings)}",
        )
    if not path.parent.is_dir():
        raise SttmError(f"{flag} {path} cannot be written: the folder {path.parent} is missing")


def check_plot(path: Path | None) -> None:
    """Raise SttmError where `--plot` cannot be drawn."""
    if path is None:
        return
    from sttm_cli.bench.plot import ENDINGS, require_matplotlib

    check_file("--plot", path, *ENDINGS)
    require_matplotlib()


def unwritable(flag: str, path: Path, error: OSError) -> SttmError:
    return SttmError(f"{flag} {path} cannot be written: {error.strerror or error}")


def _alternatives(names: tuple[str, ...] | list[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last
