"""`sttm cache`: what is stored, and making room."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.cells import cell_len

from sttm_cli.base.errors import CacheError, UsageError
from sttm_cli.base.reports import CacheEntryReport, CacheListReport
from sttm_cli.base.types import Json
from sttm_cli.cli.flags import CACHE, Output, settings_from, takes
from sttm_cli.cli.output import print_json, print_text, printable, say, size, warn
from sttm_cli.settings.settings import cache_dir

if TYPE_CHECKING:
    from sttm_cli.store import Entry, Finding, Store

app = typer.Typer(
    help="Show and tidy what is stored.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COLUMNS = ("key", "video", "model", "budget", "tokens", "size", "last used", "hits", "saved")
LEFT = ("key", "video", "model", "last used")
LONGEST = 24
"""Characters of a name that are shown on a terminal."""
Keys = Annotated[list[str], typer.Argument(metavar="KEY", help="Keys, or how they begin.")]


@app.command("ls")
@takes(CACHE)
def ls(*, flags: dict[str, Any], output: Output) -> None:
    """List the stored videos, the last used first; 'saved' adds up what hits were faster by."""
    from sttm_cli.store import NO_BOUND

    with _store(flags) as store:
        entries = sorted(store.entries(), key=lambda e: e.last_used, reverse=True)
        total, bound = 0 if store.failure else store.bytes, store.max_bytes
        unbounded = bound == NO_BOUND
    if output.as_json:
        rows = [_entry_json(entry) for entry in entries]
        listed: CacheListReport = {
            "schema": "sttm.cache/1",
            "entries": rows,
            "bytes": total,
            "max_bytes": bound,
        }
        print_json(listed)
        return
    _table(entries)
    if not output.quiet:
        saved = sum(entry.uses.saved_s for entry in entries)
        say(
            f"{len(entries):,} stored, {size(total)}"
            + ("" if unbounded else f" of at most {size(bound)}")
            + f", {saved:,.1f} s saved so far"
        )


@app.command("show")
@takes(CACHE)
def show(
    key: Annotated[str, typer.Argument(metavar="KEY", help="A key, or how it begins.")],
    *,
    flags: dict[str, Any],
    output: Output,
) -> None:
    """Show everything that is known of one entry, as JSON."""
    with _store(flags) as store:
        entry = _entry(store, key)
    # The prompt's tokens are of use to the model only.
    facts = {name: fact for name, fact in (entry.facts or {}).items() if name != "token_ids"}
    whole = {"label": entry.label, "identity": entry.identity, "facts": facts}
    print_json({**_entry_json(entry), **whole}, indent=None if output.as_json else 2)


@app.command("rm")
@takes(CACHE)
def rm(keys: Keys, *, flags: dict[str, Any], output: Output) -> None:
    """Remove entries by key."""
    with _store_to_change(flags) as store:
        entries = {entry.key: entry for entry in (_entry(store, key) for key in keys)}
        gone = store.remove(entries)
    _removed({"removed": gone, "bytes": sum(entries[key].bytes for key in gone)}, output)
    if len(gone) < len(entries):
        raise typer.Exit(1)


@app.command("prune")
@takes(CACHE)
def prune(*, flags: dict[str, Any], output: Output) -> None:
    """Remove the least recently used entries until the cache fits --max-bytes."""
    with _store_to_change(flags) as store:
        gone = store.prune(store.max_bytes)
    _removed({"removed": [e.key for e in gone], "bytes": sum(e.bytes for e in gone)}, output)


@app.command("verify")
@takes(CACHE)
def verify(
    *,
    repair: Annotated[bool, typer.Option("--repair", help="Remove what is damaged.")] = False,
    flags: dict[str, Any],
    output: Output,
) -> None:
    """Check every byte of every entry; ends with 1 if something is damaged and still there."""
    with _store_to_change(flags) if repair else _store(flags) as store:
        checked, findings = store.verify(repair=repair)
    if output.as_json:
        rows = [_finding_json(finding) for finding in findings]
        print_json({"schema": "sttm.verify/1", "checked": checked, "damaged": rows})
    for finding in findings if not output.as_json else ():
        print_text(f"{finding.location}: {finding.problem}")
    if not output.quiet:
        ending = f", {sum(f.removed for f in findings)} removed" if repair else ""
        say(f"{checked:,} checked, {len(findings)} damaged{ending}")
    if not all(finding.removed for finding in findings):
        raise typer.Exit(1)


@app.command("path")
@takes(CACHE)
def path(*, flags: dict[str, Any], output: Output) -> None:
    """Print the folder of the cache."""
    with _store(flags, warn=lambda line: None) as store:
        location = store.location
    if output.as_json:
        print_json({"path": location})
    else:
        print_text(location)


@contextmanager
def _store(flags: dict[str, Any], *, warn: Callable[[str], None] = warn) -> Iterator[Store]:
    """The store; raises CacheError at the end where its medium failed, rather than show as missing
    what could not be read."""
    from sttm_cli.store import open_store

    settings = settings_from(flags)
    where, tier = cache_dir(settings.cache_dir), settings.cache_tier
    with open_store(where, max_bytes=settings.max_bytes, tier=tier, warn=warn) as store:
        yield store
        if store.failure:
            raise CacheError(
                f"{store.location} cannot be used: {store.failure}", "sttm doctor tries it"
            )


@contextmanager
def _store_to_change(flags: dict[str, Any]) -> Iterator[Store]:
    """As `_store`; raises CacheError where the store does not use its place."""
    with _store(flags, warn=lambda line: None) as store, store.telling(warn):
        if store.refusal:
            raise CacheError(f"the cache is not used: {store.refusal}", "give another --cache-dir")
        yield store


def _entry(store: Store, key: str) -> Entry:
    entries = store.beginning(key)
    if not entries and store.failure:
        raise CacheError(
            f"{store.location} cannot be used: {store.failure}", "sttm doctor tries it"
        )
    if not entries:
        raise CacheError(f"nothing is stored under {key!r}", "sttm cache ls shows the keys")
    if len(entries) > 1:
        raise UsageError(f"{key!r} begins {len(entries)} keys", "give more of the key")
    return entries[0]


def _removed(summary: Json, output: Output) -> None:
    if output.as_json:
        print_json({"schema": "sttm.removed/1", **summary})
    if not output.quiet:
        say(f"{len(summary['removed']):,} removed, {size(summary['bytes'])}")


def _finding_json(finding: Finding) -> Json:
    return {"path": finding.location, "problem": finding.problem, "removed": finding.removed}


def _entry_json(entry: Entry) -> CacheEntryReport:
    return {
        "key": entry.key,
        "path": entry.location,
        "bytes": entry.bytes,
        "kv_dtype": entry.kv_dtype,
        "saved_bytes": entry.saved_bytes,
        "video": entry.label.get("video"),
        "model": entry.label.get("model"),
        "budget": entry.label.get("budget"),
        "method": entry.label.get("method"),
        "video_full": entry.tokens.video_full,
        "video_kept": entry.tokens.video_kept,
        "created": entry.created,
        "last_used": entry.last_used,
        "hits": entry.uses.hits,
        "saved_seconds": entry.uses.saved_s,
    }


def _table(entries: list[Entry]) -> None:
    """Columns as wide as their widest cell; fast for a hundred thousand rows."""
    rows = [COLUMNS, *(_cells(entry) for entry in entries)]
    widths = [max(cell_len(row[n]) for row in rows) for n in range(len(COLUMNS))]
    for row in rows if entries else ():
        cells = []
        for name, cell, width in zip(COLUMNS, row, widths, strict=True):
            gap = " " * (width - cell_len(cell))
            cells.append(cell + gap if name in LEFT else gap + cell)
        print_text("  ".join(cells).rstrip())


def _cells(entry: Entry) -> tuple[str, ...]:
    return (
        entry.key[:12],
        _name(entry.label.get("video")),
        _name(entry.label.get("model")),
        f"{entry.label.get('budget', '?')}",
        f"{entry.tokens.video_kept:,}",
        size(entry.bytes),
        datetime.fromtimestamp(entry.last_used).isoformat(" ", "minutes"),
        f"{entry.uses.hits}",
        f"{entry.uses.saved_s:.1f} s",
    )


def _name(value: Any) -> str:
    """The last part of a path, of which nothing can move the cursor."""
    name = Path(str(value or "?")).name
    shown = printable(name)
    long = sys.stdout.isatty() and len(shown) > LONGEST
    return f"{shown[: LONGEST - 1]}…" if long else shown
