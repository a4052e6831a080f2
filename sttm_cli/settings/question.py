"""Checks of a question and of the options to choose its answer from."""

from __future__ import annotations

from collections.abc import Sequence

from sttm_cli.base.errors import UsageError


def check_question(text: object) -> None:
    """Raise UsageError unless a question is text, and not an empty one."""
    if not isinstance(text, str):
        raise UsageError(f"the question is {text!r}", "give it as text")
    if not text.strip():
        raise UsageError("the question is empty", "ask something about the video")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"the question {text!r} is not UTF-8 text") from None


def parse_choices(text: str) -> list[str]:
    """Read options as typed, "A|B|C"."""
    options = [option.strip() for option in text.split("|")]
    check_options(options)
    return options


def check_options(options: Sequence[str]) -> None:
    """Raise UsageError unless there are two or more options, none empty and none twice."""
    if len(options) < 2:
        raise UsageError("--choices names a single option", 'give two or more: "A|B"')
    if any(not option.strip() for option in options):
        raise UsageError("--choices holds an empty option", 'give them as "A|B|C"')
    twice = [option for option in options if options.count(option) > 1]
    if twice:
        raise UsageError(f"--choices names {twice[0]!r} twice", "give each option once")
