"""The task of VNBench for lmms-eval: what is asked of each item, and whether an answer is right.

An answer's letter is the first of A to D in it, and each of a question's four tries counts alone:
so the figures published with the method were counted.
"""

from __future__ import annotations

import re
from typing import Any

LETTERS = "ABCD"
POST_PROMPT = "Answer with the option's letter from the given choices directly."
_OPENINGS = re.compile(r"(the )?(best |correct )?(answer|option)( is)?\s*:?", flags=re.IGNORECASE)


def video_of(doc: dict[str, Any]) -> list[str]:
    """The item's video, as a path."""
    return [doc["video"]]


def text_of(doc: dict[str, Any], lmms_eval_specific_kwargs: Any = None) -> str:
    """The question, its options by letter, and how to answer."""
    options = zip(LETTERS, doc["options"], strict=False)
    lines = [doc["question"], *(f"{letter}. {option}" for letter, option in options), POST_PROMPT]
    return "\n".join(lines)


def judge(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 for the right letter, else 0."""
    return {"accuracy": float(letter_of(results[0]) == doc["answer"])}


def letter_of(answer: str) -> str:
    """The first of A to D behind an opening such as "The answer is"; empty without one."""
    found = re.search(f"[{LETTERS}]", _OPENINGS.sub("", answer))
    return found[0] if found else ""
