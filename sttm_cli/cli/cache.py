"""`sttm cache`: list, check and remove stored entries."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sttm_cli.base.bucket import CLIENTS, credentials_of
from sttm_cli.base.errors import CacheError, SttmError, UsageError
from sttm_cli.base.names import scheme_of
from sttm_cli.base.reports import CacheEntryReport, CacheListReport
from sttm_cli.base.types import Json
from sttm_cli.cli.flags import CACHE, Output, settings_from, takes
from sttm_cli.cli.lines import typed_by_a_person
from sttm_cli.cli.output import print_json, print_text, printable, say, size, warn
from sttm_cli.cli.questions import is_path
from sttm_cli.cli.tables import table
from sttm_cli.decode.source import Source, digest
from sttm_cli.settings.fields import parse_duration
from sttm_cli.settings.settings import cache_dir

if TYPE_CHECKING:
    from sttm_cli.store import Entry, Finding, Store

app = typer.Typer(
    help="List, check and remove stored entries.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COLUMNS = (
    "key", "video", "model", "budget", "frames", "range", "method", "layer", "system", "tokens",
    "size", "last used", "hits", "time saved",
)  # fmt: skip
LEFT = ("key", "video", "model", "range", "method", "last used")
TELLING = ("system", "range", "layer", "method", "frames")
"""Columns that distinguish the entries of one video, model and budget."""
LESS = ("time saved", "hits", "tokens", "last used")
"""Columns that a narrow terminal omits, in this order."""


def _keys(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Complete the keys in the cache, each with a description of its entry."""
    try:
        flags = {name: context.params.get(name) for name in ("cache_dir", "max_bytes")}
        with _store(flags, warn=lambda line: None) as store:
            found = store.entries()
    except (SttmError, OSError):
        return []
    told = ((e.key[:12], f"{e.label.get('video')} at {e.label.get('budget')}") for e in found)
    return [(key, printable(about)) for key, about in told if key.startswith(incomplete)]


Key = Annotated[
    str,
    typer.Argument(metavar="KEY", help="A key, or how it begins.", autocompletion=_keys),
]


@app.command("ls")
@takes(CACHE)
def ls(*, flags: dict[str, Any], output: Output) -> None:
    """List the stored videos, the last used first.

    'time saved': the total by which hits were faster than computing. A narrow terminal omits some
    columns; --json has all.
    """
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
    key: Key,
    *,
    flags: dict[str, Any],
    output: Output,
) -> None:
    """Show all facts about one entry, as JSON."""
    with _store(flags) as store:
        entry = _entry(store, key)
    # The prompt's tokens are only of use to the model.
    facts = {name: fact for name, fact in (entry.facts or {}).items() if name != "token_ids"}
    whole = {"label": entry.label, "identity": entry.identity, "facts": facts}
    print_json({**_entry_json(entry), **whole}, indent=None if output.as_json else 2)


@app.command("rm")
@takes(CACHE)
def rm(
    keys: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY",
            help="Keys, or how they begin, and paths of videos or of folders with videos.",
            autocompletion=_keys,
        ),
    ] = None,
    *,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="NAME", show_default=False, help="Only this model's."),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            "--older-than",
            metavar="TIME",
            show_default=False,
            help="Only entries unused for this long, such as 30d.",
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All entries; asks first.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    flags: dict[str, Any],
    output: Output,
) -> None:
    """Remove entries by key, video, model or time since the last use."""
    age = None if older_than is None else parse_duration("--older-than", older_than)
    if not keys and model is None and age is None and not every:
        raise UsageError(
            "nothing was named to remove", "give a KEY, a video, --model, --older-than or --all"
        )
    for flag, given in (("KEY", keys), ("--model", model), ("--older-than", age)):
        if every and given:
            raise UsageError(f"--all and {flag} cannot be combined", "choose one")
    with _store_to_change(flags) as store:
        found = [e for key in keys for e in _meant(store, key)] if keys else store.entries()
        if model is not None and not any(_is_of(entry, model, None) for entry in found):
            raise CacheError(
                f"nothing is stored for --model {model}", "sttm cache ls shows the models"
            )
        entries = {entry.key: entry for entry in found if _is_of(entry, model, age)}
        if every and entries and not yes:
            _ask(f"remove all {len(entries):,} entries, {size(sum(e.bytes for e in found))}?")
        gone = store.remove(entries)
    _removed({"removed": gone, "bytes": sum(entries[key].bytes for key in gone)}, output)
    if len(gone) < len(entries):
        raise typer.Exit(1)


def _meant(store: Store, named: str) -> list[Entry]:
    """The entry of a key, or all those of a video or of the videos below a folder; a path goes
    before how a key begins."""
    entries, path = store.entries(), Path(named)
    origin = Source(named, path).origin
    found = [entry for entry in entries if entry.label.get("video") in (origin, named)]
    if not found and path.is_dir():
        found = [e for e in entries if Path(str(e.label.get("video"))).is_relative_to(origin)]
    elif not found and path.exists():
        bytes_of = digest(path, store)
        found = [entry for entry in entries if entry.video == bytes_of]
    if not found and path.exists():
        raise CacheError(f"nothing is stored of {named}", "sttm cache ls shows what is")
    if not found and is_path(named):
        raise CacheError(f"there is no file {named}, and nothing is stored of it", "check the path")
    return found or [_entry(store, named)]


def _is_of(entry: Entry, model: str | None, age: float | None) -> bool:
    stored = entry.label.get("model")
    same = model is None or stored == model or Path(str(stored)) == Path(model).absolute()
    return same and (age is None or entry.last_used < time.time() - age)


def _ask(question: str) -> None:
    """Ask a person to agree; raises UsageError if nobody is there, typer.Exit if they refuse."""
    if not typed_by_a_person():
        raise UsageError("--all asks before it removes, and nobody is there", "give --yes as well")
    say(f"{question} [y/N]")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        say("nothing was removed")
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
    repair: Annotated[bool, typer.Option("--repair", help="Remove damaged entries.")] = False,
    flags: dict[str, Any],
    output: Output,
) -> None:
    """Check every byte of every entry; exits with 1 if a damaged entry remains."""
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
    """Open the store; on exit, raise CacheError if its storage failed, rather than report
    unreadable entries as missing."""
    from sttm_cli.store import open_store

    settings = settings_from(flags)
    where, tier = cache_dir(settings.cache_dir), settings.cache_tier
    with open_store(where, max_bytes=settings.max_bytes, tier=tier, warn=warn) as store:
        yield store
        if store.failure:
            raise _failed(store)


@contextmanager
def _store_to_change(flags: dict[str, Any]) -> Iterator[Store]:
    """Like `_store`; raises CacheError if the store does not use its place."""
    with _store(flags, warn=lambda line: None) as store, store.telling(warn):
        if store.refusal:
            raise CacheError(f"the cache is not used: {store.refusal}", "give another --cache-dir")
        yield store


def _failed(store: Store) -> CacheError:
    scheme = scheme_of(store.location)
    looked = f"{credentials_of(scheme)}; " if scheme in CLIENTS else ""
    return CacheError(
        f"{store.location} cannot be used: {store.failure}", f"{looked}sttm doctor tries it"
    )


def _entry(store: Store, key: str) -> Entry:
    entries = store.beginning(key)
    if not entries and store.failure:
        raise _failed(store)
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
        "frames": entry.label.get("frames"),
        "start_s": entry.label.get("start_s"),
        "end_s": entry.label.get("end_s"),
        "merge_layer": entry.label.get("merge_layer"),
        "system": entry.label.get("system"),
        "video_full": entry.tokens.video_full,
        "video_kept": entry.tokens.video_kept,
        "created": entry.created,
        "last_used": entry.last_used,
        "hits": entry.uses.hits,
        "saved_seconds": entry.uses.saved_s,
    }


def _table(entries: list[Entry]) -> None:
    if not entries:
        return
    rows = [_cells(entry) for entry in entries]
    # A column with equal values distinguishes no rows, so it is omitted first.
    same = [n for n in TELLING if len({row[COLUMNS.index(n)] for row in rows}) == 1]
    print_text(*table(COLUMNS, rows, left=LEFT, less=[*same, *LESS]))


def _cells(entry: Entry) -> tuple[str, ...]:
    label = entry.label
    return (
        entry.key[:12],
        shown_path(str(label.get("video") or "?")),
        shown_path(str(label.get("model") or "?")),
        f"{label.get('budget', '?')}",
        _known(label.get("frames")),
        _range(label),
        _known(label.get("method")),
        _known(label.get("merge_layer")),
        "yes" if label.get("system") else "",
        f"{entry.tokens.video_kept:,}",
        size(entry.bytes),
        datetime.fromtimestamp(entry.last_used).isoformat(" ", "minutes"),
        f"{entry.uses.hits}",
        f"{entry.uses.saved_s:.1f} s",
    )


def _known(value: object) -> str:
    return "" if value is None else str(value)


def _range(label: Json) -> str:
    """Return the part of the video in seconds; "" if it is the whole video or unknown."""
    start, end, whole = (label.get(name) for name in ("start_s", "end_s", "duration_s"))
    if not all(isinstance(value, (int, float)) for value in (start, end, whole)):
        return ""
    return "" if not start and end == whole else f"{start:g}-{end:g} s"


def shown_path(text: str) -> str:
    """Return a path as a person would type it: relative to this folder, or to the home folder."""
    path = Path(text)
    for base, prefix in ((Path.cwd(), ""), (Path.home(), "~/")):
        if path.is_absolute() and path.is_relative_to(base) and path != base:
            return f"{prefix}{path.relative_to(base)}"
    return text
