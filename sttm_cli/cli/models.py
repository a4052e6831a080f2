"""`sttm models`: list the known models and whether they are on this machine, and fetch one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sttm_cli.cli.flags import Output, completing, examples, takes
from sttm_cli.cli.output import print_json, print_text, say, size
from sttm_cli.cli.tables import table

if TYPE_CHECKING:
    from sttm_cli.models.registry import Known

EXAMPLES = examples("sttm models pull llava-onevision-7b")

app = typer.Typer(
    help="List models by name, and fetch one.",
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
@takes()
def models(context: typer.Context, *, flags: dict[str, Any], output: Output) -> None:
    """List models by name, and which are on this machine.

    Below them are the families that a hub id or a folder may belong to.
    """
    if context.invoked_subcommand is not None:
        return
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


def _names() -> Iterable[str]:
    from sttm_cli.models.registry import aliases

    return aliases()


@app.command("pull", epilog=EXAMPLES)
@takes()
def pull(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A short name, or an id on the Hugging Face hub.",
            autocompletion=completing(_names),
        ),
    ],
    *,
    revision: Annotated[
        str | None,
        typer.Option(
            "--revision", metavar="NAME", show_default=False, help="Its branch, tag or commit."
        ),
    ] = None,
    flags: dict[str, Any],
    output: Output,
) -> None:
    """Fetch a model, with progress; files that are complete are not fetched again.

    It is kept in the Hugging Face hub's folder, shared by all programs, or below HF_HOME.
    """
    from sttm_cli.models.pull import pulled

    said = (lambda line: None) if output.quiet else say
    model = pulled(name, revision, said)
    if output.as_json:
        print_json({"schema": "sttm.models.pull/1", "name": name, **model.to_json()})
        return
    print_text(str(model.folder))
    if not output.quiet:
        say(f"{model.repository or name}: {size(model.bytes)} on this machine")


def _table(found: list[Known]) -> None:
    rows = [
        (
            model.name,
            "" if model.bytes is None else size(model.bytes),
            model.repository if model.alias else f"({model.family})",
        )
        for model in found
    ]
    print_text(*table(("name", "on disk", "stands for"), rows, left=("stands for",)))
