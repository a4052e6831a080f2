"""Merged tokens drawn over the frames they stand for."""

from sttm_cli.picture.png import draw

__all__ = ["draw"]
