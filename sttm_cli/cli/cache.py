"""`sttm cache`: what is stored, and making room."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sttm_cli.cli.options import CACHE, Output, bytes_from, takes
from sttm_cli.cli.output import print_json, say, size, warn
from sttm_cli.config import cache_dir
from sttm_cli.errors import CacheError, UsageError
from sttm_cli.types import Json

if TYPE_CHECKING:
    from sttm_cli.store import Entry, Store

app = typer.Typer(
    help="Show and tidy what is stored.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Keys = Annotated[list[str], typer.Argument(metavar="KEY...", help="Keys, or how they begin.")]


@app.command("ls")
@takes(CACHE)
def ls(*, flags: dict[str, Any], output: Output) -> None:
    """List the stored videos, the last used first."""
    with _store(flags) as store:
        entries = sorted(store.entries(), key=lambda e: e.last_used, reverse=True)
        if output.as_json:
            print_json(
                {
                    "schema": "sttm.cache/1",
                    "entries": [_entry_json(entry) for entry in entries],
                    "bytes": store.bytes,
                    "max_bytes": store.max_bytes,
                }
            )
            return
        _table(entries)
        if not output.quiet:
            say(f"{len(entries)} stored, {size(store.bytes)} of at most {size(store.max_bytes)}")


@app.command("show")
@takes(CACHE)
def show(
    key: Annotated[str, typer.Argument(metavar="KEY", help="A key, or how it begins.")],
    *,
    flags: dict[str, Any],
    output: Output,
) -> None:
    """Show everything that is known of one entry, as JSON."""
    import json

    with _store(flags) as store:
        found = {**_entry_json(_entry(store, key)), "identity": _entry(store, key).identity}
    if output.as_json:
        print_json(found)
    else:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))


@app.command("rm")
@takes(CACHE)
def rm(keys: Keys, *, flags: dict[str, Any], output: Output) -> None:
    """Remove entries by key."""
    with _store(flags) as store:
        entries = [_entry(store, key) for key in keys]
        store.remove([entry.key for entry in entries])
    _removed({"removed": [e.key for e in entries], "bytes": sum(e.bytes for e in entries)}, output)


@app.command("prune")
@takes(CACHE)
def prune(*, flags: dict[str, Any], output: Output) -> None:
    """Remove the least recently used entries until the cache fits --max-bytes."""
    with _store(flags) as store:
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
    with _store(flags) as store:
        checked = len(store.entries())
        findings = store.verify(repair=repair)
    if output.as_json:
        rows = [{"path": str(f.path), "problem": f.problem} for f in findings]
        print_json({"schema": "sttm.verify/1", "checked": checked, "damaged": rows})
    for finding in findings if not output.as_json else ():
        typer.echo(f"{finding.path}: {finding.problem}")
    if not output.quiet:
        ending = " and removed" if repair and findings else ""
        say(f"{checked} checked, {len(findings)} damaged{ending}")
    if findings and not repair:
        raise typer.Exit(1)


@app.command("path")
@takes(CACHE)
def path(*, flags: dict[str, Any], output: Output) -> None:
    """Print the folder of the cache."""
    folder = cache_dir(flags["cache_dir"]).absolute()
    if output.as_json:
        print_json({"path": str(folder)})
    else:
        typer.echo(str(folder))


def _store(flags: dict[str, Any]) -> Store:
    from sttm_cli.store import Store

    folder = cache_dir(flags["cache_dir"])
    return Store(folder, max_bytes=bytes_from(flags["max_bytes"]), warn=warn)


def _entry(store: Store, key: str) -> Entry:
    found = [entry for entry in store.entries() if entry.key.startswith(key)]
    if not found:
        raise CacheError(f"nothing is stored under {key!r}", "sttm cache ls shows the keys")
    if len(found) > 1:
        raise UsageError(f"{key!r} begins {len(found)} keys", "give more of the key")
    return found[0]


def _removed(summary: Json, output: Output) -> None:
    if output.as_json:
        print_json({"schema": "sttm.removed/1", **summary})
    if not output.quiet:
        say(f"removed {len(summary['removed'])} entries, {size(summary['bytes'])}")


def _entry_json(entry: Entry) -> Json:
    return {
        "key": entry.key,
        "path": str(entry.path),
        "bytes": entry.bytes,
        "kv_dtype": entry.kv_dtype,
        "saved_bytes": entry.saved_bytes,
        "video": entry.label.get("video"),
        "model": entry.label.get("model"),
        "budget": entry.label.get("budget"),
        "video_full": entry.tokens.video_full,
        "video_kept": entry.tokens.video_kept,
        "created": entry.created,
        "last_used": entry.last_used,
    }


def _table(entries: list[Entry]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for name, justify in (("key", "left"), ("video", "left"), ("model", "left"),
                          ("budget", "right"), ("tokens", "right"), ("size", "right"),
                          ("last used", "left")):  # fmt: skip
        table.add_column(name, justify=justify, overflow="fold", no_wrap=name != "video")  # type: ignore[arg-type]
    for entry in entries:
        table.add_row(
            entry.key[:12],
            Path(str(entry.label.get("video", "?"))).name,
            Path(str(entry.label.get("model", "?"))).name,
            f"{entry.label.get('budget', '?')}",
            f"{entry.tokens.video_kept:,}",
            size(entry.bytes),
            datetime.fromtimestamp(entry.last_used).isoformat(" ", "minutes"),
        )
    if entries:
        Console(highlight=False, markup=False).print(table)
