"""Merged tokens drawn over the frames they stand for."""

from sttm_cli.picture.png import draw
from sttm_cli.picture.report import Table, report_page
from sttm_cli.picture.terminal import print_frames
from sttm_cli.picture.view import Kept, View, thumbnail

__all__ = ["Kept", "Table", "View", "draw", "print_frames", "report_page", "thumbnail"]
