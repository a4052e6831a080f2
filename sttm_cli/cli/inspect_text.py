"""What `sttm inspect` prints: what was sampled, what budgets keep, and what they take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sttm_cli.cli.output import size
from sttm_cli.survey import COMPUTED, RESTORED

if TYPE_CHECKING:
    from rich.console import Console

    from sttm_cli.store import Entry
    from sttm_cli.survey import BudgetCost, Survey

ENTRIES = 3
"""Stored entries that are named; of the others the number is told."""
TOKENS = ("budget", "spatial", "kept", "share", "thresholds", "KV", "in cache")
SECONDS = ("budget", "merge", "prefill", "restore", "first", "new", "stored", "gain")
NOTES = (
    "spatial, kept: tokens after the spatial step, and after the temporal step too;\n"
    "thresholds: cosine similarities found for the budget.",
    "Measured: medians of {repeat}; restore reads a file written just before, which the\n"
    "system still holds in memory. Sums of these medians: new = decode + encode +\n"
    "merge + prefill + first; stored = restore + first. Gain: merge + prefill + first\n"
    "at budget 1 over the same here.",
)


def print_survey(console: Console, found: Survey) -> None:
    """Print facts and both tables; they fit 80 columns."""
    from rich.table import Table

    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column()
    facts.add_column(overflow="fold")
    for name, fact in _facts(found).items():
        facts.add_row(name, fact)
    console.print(facts)
    console.print()
    _table(console, TOKENS, [_token_cells(row) for row in found.rows])
    console.print(NOTES[0], style="dim")
    console.print()
    _table(console, SECONDS, [_second_cells(row) for row in found.rows])
    console.print(NOTES[1].format(repeat=found.repeat), style="dim")


def _facts(found: Survey) -> dict[str, str]:
    info, model, grid = found.request.info, found.model, found.grid
    first = found.rows[0].seconds
    return {
        "video": f"{_name(found)}: {info.codec} in {info.container}, "
        f"{info.width}x{info.height}, {info.fps:.3g} fps, {info.duration_s:.2f} s",
        "model": f"{model['name']} on {model['device']}, {model['dtype']}, merging before layer "
        f"{model['merge_layer']}",
        "sampled": _sampled(found),
        "grid": f"{grid[0]} x {grid[1]} x {grid[2]} = {grid[0] * grid[1] * grid[2]:,} tokens",
        "measured": f"decode {_seconds(first['decode'])} s, encode {_seconds(first['encode'])} s, "
        "the same for every budget",
        "in cache": _stored(found.entries),
    }


def _name(found: Survey) -> str:
    source = found.request.source
    return source.name if source.is_copy else source.path.name or source.name


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
        f"{Path(str(e.label.get('model', '?'))).name} at {e.label.get('budget', '?')} "
        f"({size(e.bytes)})"
        for e in entries[:ENTRIES]
    ]
    more = [f"{len(entries) - ENTRIES} more"] if len(entries) > ENTRIES else []
    return ", ".join(named + more)


def _table(console: Console, names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _token_cells(row: BudgetCost) -> list[str]:
    tokens = row.tokens
    thresholds = (tokens.spatial_threshold, tokens.temporal_threshold)
    return [
        f"{row.budget:g}",
        f"{tokens.after_spatial:,}",
        f"{tokens.video_kept:,}",
        f"{100 * tokens.video_kept / tokens.video_full:.1f} %",
        " ".join("    -" if value is None else f"{value:.3f}" for value in thresholds),
        size(row.kv_bytes),
        "yes" if row.stored else "no",
    ]


def _second_cells(row: BudgetCost) -> list[str]:
    stages = ("merge", "prefill", "restore", "first_token")
    measured = [_seconds(row.seconds[name]) for name in stages]
    sums = [_seconds(row.sum_of(names)) for names in (COMPUTED, RESTORED)]
    return [f"{row.budget:g}", *measured, *sums, f"{row.speedup:.2f}x"]


def _seconds(value: float | None) -> str:
    """Seconds in about three digits."""
    if value is None:
        return "-"
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"
