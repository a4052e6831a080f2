"""The questions of `sttm ask`, checked before anything is computed."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from sttm_cli.base.errors import UsageError
from sttm_cli.cli.output import COMMAND
from sttm_cli.decode.image_folder import VIDEO_SUFFIXES
from sttm_cli.settings.fields import check_question

UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
)
"""Letters of scripts that put no spaces between words."""
ONE_VIDEO = (
    "ask about one video at a time; --each takes a folder or a quoted pattern such as "
    "'clips/*.mp4' in place of VIDEO"
)


def questions_of(video: str, given: Sequence[str], file: Path | None) -> list[str]:
    """Return the questions on the command line, in a file, or on stdin; at least one, each checked.

    Raises UsageError, also for arguments that are not questions: a file, or the words of a sentence
    that was not quoted.
    """
    asked = _read(given, file)
    # All are checked before the first answer: a script gets every line or none.
    for question in asked:
        check_question(question)
    if file is None and list(given) != ["-"]:
        _check_files(video, asked)
        _check_quoted(asked)
    return asked


def _read(given: Sequence[str], file: Path | None) -> list[str]:
    if given and file is not None:
        raise UsageError("QUESTION and --questions cannot be combined", "give one of them")
    if file is None and not given:
        raise UsageError("no QUESTION was given", "ask something about the video")
    if file is None and "-" not in given:
        return list(given)
    if file is None and list(given) != ["-"]:
        raise UsageError("'-' cannot be combined with other questions", "give '-' alone, or none")
    lines = _lines(file) if file else list(sys.stdin)
    asked = [stripped for line in lines if (stripped := line.strip())]
    if not asked:
        where = f"is in --questions {file}" if file else "came from stdin"
        raise UsageError(f"no question {where}", "write one question a line")
    return asked


def _lines(file: Path) -> list[str]:
    try:
        # Editors on Windows begin a file with a byte order mark.
        return file.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"--questions {file} cannot be read: {reason}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--questions {file} is not UTF-8 text") from error


def is_path(text: str) -> bool:
    """Return whether a text names a file or folder: an existing one, or a video by suffix."""
    if re.search(r"\s", text) and not os.path.isfile(text):
        return False
    return os.path.exists(text) or Path(text).suffix.lower() in VIDEO_SUFFIXES


def _check_files(video: str, questions: Sequence[str]) -> None:
    files = [question for question in questions if is_path(question)]
    missing = [file for file in files if not os.path.exists(file)]
    if missing:
        raise UsageError(f"QUESTION {missing[0]!r} is a path, and nothing is there", ONE_VIDEO)
    folders = [file for file in files if os.path.isdir(file)]
    if folders and os.path.exists(video):
        raise UsageError(f"QUESTION {folders[0]!r} is a folder", ONE_VIDEO)
    files = [file for file in files if os.path.isfile(file)]
    if files and not os.path.exists(video):
        raise UsageError(
            f"VIDEO {video!r} is not a file, but QUESTION {files[0]!r} is", "give the video first"
        )
    if files:
        raise UsageError(f"QUESTION {files[0]!r} is a file", ONE_VIDEO)


def _check_quoted(questions: Sequence[str]) -> None:
    """Refuse the words of an unquoted sentence: several without spaces, not all of them
    questions."""
    words = [text for text in questions if not re.search(r"\s", text) and not UNSPACED.search(text)]
    if len(words) < 2 or all(word.endswith("?") for word in words):
        return
    raise UsageError(
        f"{len(words)} questions of one word each: {' '.join(words)[:100]!r} is not quoted",
        f"quote it:\n{COMMAND}{_quoted(words)}",
    )


def _quoted(words: Sequence[str]) -> str:
    """Return the command as it was typed, with `words` as one argument."""
    left, typed = list(words), ["sttm"]
    for argument in sys.argv[1:]:
        if left and argument == left[0]:
            if len(left) == len(words):
                typed.append(
                    f'"{" ".join(words)}"' if _is_plain(words) else shlex.quote(" ".join(words))
                )
            left.pop(0)
        else:
            typed.append(shlex.quote(argument))
    return " ".join(typed)


def _is_plain(words: Sequence[str]) -> bool:
    """Return whether double quotes leave the words unchanged in every shell."""
    return not set("".join(words)) & set('"$`\\!')
