"""The tables of `sttm inspect`: the sampled frames, and each budget's tokens and cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sttm_cli.cli.output import print_text, printable, size
from sttm_cli.cli.tables import table
from sttm_cli.settings.settings import DEFAULT_METHOD

if TYPE_CHECKING:
    from rich.console import Console

    from sttm_cli.inspect import Table
    from sttm_cli.inspect.measure import BudgetCost, Survey
    from sttm_cli.store import Entry

ENTRIES = 3
"""Number of stored entries that are named; the others are counted."""
TOKENS = ("budget", "after spatial", "tokens kept", "share", "thresholds", "KV", "in cache")
KEEPS = "after spatial: tokens left by the spatial step alone."
THRESHOLDS = "thresholds: cosine similarities found for the budget."
SECONDS = (
    "budget", "merge", "prefill", "restore", "question", "new video", "from cache", "LLM faster",
)  # fmt: skip
TAKES = (
    "Seconds, measured: medians of {repeat}. restore reads a file written just before, which the "
    "system still holds in memory; question: from there to the first token. Sums of medians: new "
    "video = decode + encode + merge + prefill + question; from cache = restore + question. LLM "
    "faster: merge + prefill + question at budget 1 over the same here."
)


def facts(found: Survey) -> dict[str, str]:
    """Return the facts about the video, the model, and the video's entries in the cache."""
    info, model, grid = found.request.info, found.model, found.grid
    first = found.rows[0].seconds
    return {
        "name": _name(found),
        "video": f"{info.codec} in {info.container}, {info.width}x{info.height}, "
        f"{info.fps:.3g} fps, {info.duration_s:.2f} s",
        "model": f"{model['name']} on {model['device']}, {model['dtype']}, merged by "
        f"{model['method']} before layer {model['merge_layer']}",
        "sampled": _sampled(found),
        **_kept_as(found),
        "grid": f"{grid[0]} x {grid[1]} x {grid[2]} = {grid[0] * grid[1] * grid[2]:,} tokens",
        "measured": f"decode {_seconds(first['decode'])} s, encode {_seconds(first['encode'])} s, "
        "the same for every budget",
        "in cache": _stored(found.entries),
    }


def _kept_as(found: Survey) -> dict[str, str]:
    if not any(row.saved_bytes for row in found.rows):
        return {}
    saved = ", ".join(size(row.saved_bytes) for row in found.rows)
    return {"KV": f"kept as {found.model['kv_dtype']}, which saves {saved}"}


def tables(found: Survey) -> tuple[Table, Table]:
    """Return the tables of the budgets' tokens and of their seconds."""
    return (
        _tokens(found.rows),
        (SECONDS, [_second_cells(row) for row in found.rows], TAKES.format(repeat=found.repeat)),
    )


def _tokens(rows: Sequence[BudgetCost]) -> Table:
    """Return the table of the budgets' tokens; without thresholds, it has no columns for them."""
    cells = [_token_cells(row) for row in rows]
    at = TOKENS.index("thresholds")
    if any(line[at] for line in cells):
        return TOKENS, cells, f"{KEEPS} {THRESHOLDS}"
    return _without(TOKENS, at), [_without(line, at) for line in cells], KEEPS


def _without(cells: Sequence[str], at: int) -> Sequence[str]:
    return [*cells[:at], *cells[at + 1 :]]


def print_survey(console: Console, found: Survey) -> None:
    """Print the facts and the tables."""
    from rich.table import Table as Grid

    lines = Grid.grid(padding=(0, 2, 0, 0))
    lines.add_column()
    lines.add_column(overflow="fold")
    for name, fact in facts(found).items():
        lines.add_row(name, fact)
    console.print(lines)
    for names, rows, note in tables(found):
        print_text("", *table(names, rows))
        console.print(note, style="dim", width=min(80, console.width))


def _name(found: Survey) -> str:
    source = found.request.source
    return printable(source.name if source.is_copy else source.path.name or source.name)


def _sampled(found: Survey) -> str:
    asked, got = found.request.plan.times_s, found.report.times_s
    off = max(min(abs(time - other) for other in asked) for time in got)
    spread = f", {got[0]:.2f} to {got[-1]:.2f} s" if len(got) > 1 else f", at {got[0]:.2f} s"
    return (
        f"{len(got)} of {len(asked)} frames asked for{spread}, read with {found.report.reader}; "
        f"at most {off:.2f} s off the times asked for"
    )


def _stored(entries: Sequence[Entry]) -> str:
    if not entries:
        return "nothing of this video"
    named = [
        printable(f"{Path(str(e.label.get('model'))).name} at {e.label.get('budget')}{_by(e)} ")
        + f"({size(e.bytes)})"
        for e in entries[:ENTRIES]
    ]
    more = [f"{len(entries) - ENTRIES} more"] if len(entries) > ENTRIES else []
    return ", ".join(named + more)


def _by(entry: Entry) -> str:
    method = entry.label.get("method")
    return "" if method in (None, DEFAULT_METHOD) else f" by {method}"


def _token_cells(row: BudgetCost) -> list[str]:
    tokens = row.tokens
    thresholds = (tokens.spatial_threshold, tokens.temporal_threshold)
    return [
        f"{row.budget:g}",
        f"{tokens.after_spatial:,}",
        f"{tokens.video_kept:,}",
        f"{100 * tokens.video_kept / tokens.video_full:.1f} %",
        "" if thresholds == (None, None) else " ".join(map(_threshold, thresholds)),
        size(row.kv_bytes),
        "yes" if row.stored else "no",
    ]


def _threshold(value: float | None) -> str:
    return "-" if value is None else f"{value:.5f}"


def _second_cells(row: BudgetCost) -> list[str]:
    stages = ("merge", "prefill", "restore", "first_token")
    measured = [_seconds(row.seconds[name]) for name in stages]
    sums = [_seconds(row.computed_s), _seconds(row.restored_s)]
    return [f"{row.budget:g}", *measured, *sums, f"{row.speedup:.2f}x"]


def _seconds(value: float | None) -> str:
    """Format seconds with about three digits."""
    if value is None:
        return "-"
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"
