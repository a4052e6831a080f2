"""Generating an answer, or scoring given answers, after a prefilled prefix."""

from sttm_cli.answer.choose import score
from sttm_cli.answer.generate import Generated, generate

__all__ = ["Generated", "generate", "score"]
