"""`python -m tests.cli.hostile_events ask|chat ...`: the command with a model and a server that
say hostile things, for a terminal to show."""

from __future__ import annotations

from sttm_cli.base.events import Answered, Noted, Progressed, Restarted, TextPiece, Warned
from sttm_cli.cli import main
from sttm_cli.cli.asker import Asker, Questions

HOSTILE = "a\x1b]0;owned\x07\x1b[5;5H\x9b31m\x7f\u202eb\u2066\x85c"


def ask(self: Asker, questions: Questions) -> dict[str, object]:
    """As `Asker.ask`, with hostile text wherever a server or a model has a word."""
    answers = []
    for question in questions.asked:
        self._show(Progressed(f"{HOSTILE} stage", 1, 2))
        self._show(Warned(f"{HOSTILE} warned"))
        self._show(Noted(f"{HOSTILE} noted"))
        if not answers:
            # After it, answers that were already shown are skipped.
            self._show(Restarted(f"{HOSTILE} restarted"))
        answer = {"question": question, "answer": f"{HOSTILE}\tanswer", "new_tokens": 1}
        for piece in (HOSTILE[:3], HOSTILE[3:], "\tanswer"):
            self._show(TextPiece(piece))
        self._show(Answered(answer))
        answers.append(answer)
    seconds = {"decode": 0.1, "first_token": 0.1, "restore": None, "answer": 0.1}
    return {
        "video": {
            "notes": [f"{HOSTILE} note"],
            "path": HOSTILE,
            "reader": HOSTILE,
            "frames_asked": 1,
            "fallback": HOSTILE,
        },
        "tokens": {"video_kept": 1, "video_full": 2},
        "cache": {
            "hit": False,
            "kv_dtype": HOSTILE,
            "bytes": 0,
            "saved_bytes": 0,
            "miss_reason": HOSTILE,
        },
        "answers": answers,
        "seconds": seconds,
    }


if __name__ == "__main__":
    Asker.ask = ask  # type: ignore[assignment,method-assign]
    main()
