"""Question and prefilled prefix -> answer."""

from sttm_cli.answer.generate import Generated, generate

__all__ = ["Generated", "generate"]
