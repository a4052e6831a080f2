"""`sttm models`: which names are known, and what of them is on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sttm_cli.cli.flags import Output, takes
from sttm_cli.cli.output import console, print_json, say, size

if TYPE_CHECKING:
    from sttm_cli.models.registry import Known


@takes()
def models(*, flags: dict[str, Any], output: Output) -> None:
    """List models by name, and which are on this machine.

    Below them stand the families that a hub id or a folder may belong to.
    """
    from sttm_cli.models.registry import families, known_models

    found = known_models()
    if output.as_json:
        rows = [model.to_json() for model in found]
        kinds = [family.to_json() for family in families()]
        print_json({"schema": "sttm.models/1", "models": rows, "families": kinds})
        return
    _table(found)
    if not output.quiet:
        here = sum(model.bytes is not None for model in found)
        say(f"{here} of {len(found)} on this machine")
        types = ", ".join(family.model_type for family in families())
        say(f"any hub id or folder of these types works: {types}")


def _table(found: list[Known]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for name in ("name", "here", "stands for"):
        table.add_column(name, justify="right" if name == "here" else "left", no_wrap=True)
    for model in found:
        here = "" if model.bytes is None else size(model.bytes)
        table.add_row(model.name, here, model.repository if model.alias else f"({model.family})")
    console().print(table)
