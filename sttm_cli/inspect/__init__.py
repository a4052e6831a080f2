"""Costs of budgets on one video, and merged tokens drawn over the frames they represent."""

from sttm_cli.inspect.page import Table, report_page
from sttm_cli.inspect.png import draw
from sttm_cli.inspect.terminal import print_frames
from sttm_cli.inspect.view import Kept, View, thumbnail

__all__ = ["Kept", "Table", "View", "draw", "print_frames", "report_page", "thumbnail"]
