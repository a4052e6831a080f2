"""Tables that fit a terminal of any width."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.cells import cell_len

from sttm_cli.cli.output import columns_of, printable

GAP = "  "


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    left: Sequence[str] = (),
    less: Sequence[str] = (),
) -> list[str]:
    """Return the lines of a table, right-aligned except for the first column and those in `left`;
    fast for a hundred thousand rows. If a terminal is too narrow, columns in `less` are omitted in
    order, as many as necessary; if that is not enough, each row becomes a block of lines with the
    columns' names. Values are never truncated."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(cell_len(row[i]) for row in (head, *cells)) for i in range(len(head))]
    shown = _fitting(head, widths, less)
    if not shown:
        width = columns_of(sys.stdout) or 0
        return [line for row in cells for line in _stacked(head, row, width)]
    lines = []
    for row in (head, *cells):
        padded = []
        for at in shown:
            gap = " " * (widths[at] - cell_len(row[at]))
            padded.append(row[at] + gap if at == 0 or head[at] in left else gap + row[at])
        lines.append(GAP.join(padded).rstrip())
    return lines


def _fitting(head: Sequence[str], widths: Sequence[int], less: Sequence[str]) -> list[int]:
    """Return the columns that fit side by side; none if the terminal is too narrow."""
    width, shown = columns_of(sys.stdout), list(range(len(head)))
    for name in ("", *less):
        shown = [at for at in shown if head[at] != name]
        if width is None or sum(widths[at] + len(GAP) for at in shown) - len(GAP) <= width:
            return shown
    return []


def _stacked(head: Sequence[str], row: Sequence[str], width: int) -> list[str]:
    """Return a row as lines: its first column, then the others below it as `name value`."""
    lines = [f"{head[0]} {row[0]}".strip()]
    below = [f"{name} {cell}" for name, cell in zip(head[1:], row[1:], strict=True) if cell]
    for item in below:
        longer = f"{lines[-1]}{GAP}{item}"
        if len(lines) > 1 and cell_len(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(f"{GAP}{item}")
    return lines


def columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the table as one text."""
    return "\n".join(table(head, rows))
