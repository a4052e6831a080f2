"""`sttm doctor`: check this machine for all components, with a remedy for each fault."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import typer

from sttm_cli.cli.flags import CACHE, Output, settings_from, takes
from sttm_cli.cli.output import print_json, print_words, say


@takes(CACHE)
def doctor(*, flags: dict[str, Any], output: Output) -> None:
    """Check that all components are installed and work.

    Libraries, devices, decoders, cache and config file; exits with 1 if one of them is broken. Each
    decoder reads a small generated video, and some cache entries are checked byte by byte. Nothing
    is sent anywhere except to the bucket in --cache-dir.
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
