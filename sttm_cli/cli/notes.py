"""Notes printed with answers: the meaning of a budget, and the limits of the embedded model."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from sttm_cli.settings.settings import DEFAULT_MODEL, Settings

NAME_A_MODEL = (
    "this was the small embedded model 'tiny', which knows generated scenes of coloured shapes "
    "only; name a real one with --model, such as llava-onevision-7b"
)
DAY_S = 86_400.0
PERCENT = 100
"""A budget of fewer tokens than this may have been meant as a percentage."""


def notes_on(settings: Settings, video_full: int = 0) -> list[str]:
    """Return notes about the settings, to be shown after the answers."""
    notes = [note] if (note := budget_note(settings.budget, video_full)) else []
    if settings.model == DEFAULT_MODEL and sys.stderr.isatty() and _first_today("tiny"):
        notes.append(NAME_A_MODEL)
    return notes


def budget_note(budget: float | int, video_full: int = 0) -> str:
    """The share of the video that an absolute budget amounts to; "" for a share."""
    if not isinstance(budget, int):
        return ""
    note = f"--budget {budget} is {budget:,} tokens for the whole video"
    if video_full:
        note += f", {100 * min(budget, video_full) / video_full:.1f} % of this one's {video_full:,}"
    return note + (f"; --budget {budget}% keeps that share" if budget <= PERCENT else "")


def _first_today(name: str) -> bool:
    """Return whether a notice was not shown for a day, and record it as shown now."""
    from platformdirs import user_state_path

    stamp = Path(user_state_path("sttm")) / f"noticed-{name}"
    try:
        if stamp.exists() and time.time() - stamp.stat().st_mtime < DAY_S:
            return False
        stamp.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        stamp.touch()
    except OSError:
        pass
    return True
