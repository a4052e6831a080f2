"""`sttm doctor`: whether this machine has what the tool needs, and what to do where not."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import typer

from sttm_cli.cli.flags import CACHE, Output, settings_from, takes
from sttm_cli.cli.output import print_json, print_words, say


@takes(CACHE)
def doctor(*, flags: dict[str, Any], output: Output) -> None:
    """Check that what is needed is there and works.

    Libraries, devices, decoders, cache, config file; ends with 1 if one of them is broken. Each
    decoder reads a small video that is written for it, and some entries of the cache are checked
    to the last byte. Nothing is sent anywhere but to the bucket that --cache-dir names.
    """
    from sttm_cli.runtime.diagnostics import examine

    settings, checks = settings_from(flags), []
    for check in examine(settings):
        checks.append(check)
        if not output.as_json:
            mark = "ok" if check.problem is None else "BROKEN" if check.needed else "note"
            print_words(f"{mark:<7}{check.name:<20}{check.problem or check.found}", indent=27)
            if check.problem is not None and check.hint:
                print_words(f"{'':<27}-> {check.hint}", indent=30)
    broken = sum(check.broken for check in checks)
    if output.as_json:
        rows = [asdict(check) for check in checks]
        print_json({"schema": "sttm.doctor/1", "ok": not broken, "checks": rows})
    if not output.quiet:
        say(f"{len(checks)} checked, {broken} broken")
    if broken:
        raise typer.Exit(1)
