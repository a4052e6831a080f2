"""Writes docs/cli.md from the commands themselves: `python -m tests.reference_docs`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from tests.transcripts import commands_shown

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
HEAD = """\
# Commands

This page is written from the commands' own help (`python -m tests.reference_docs`) and checked by a
test. Answers and requested data go to stdout, everything else to stderr. A flag beats its
environment variable, which beats the [config file](#config-file), which beats the default.

"""
TAIL = """\
## Config file

`config.toml` in the user's configuration folder (Linux: `~/.config/sttm/`), or the file that
`STTM_CONFIG` names. Its keys are flags without their dashes, for `ask`, `chat`, `precompute`,
`serve` (but `max_download` and `keep_alive`) and `inspect` (but `budget`); `cache` and `doctor`
take `cache_dir` and `max_bytes`:

```toml
model = "llava-onevision-7b"
budget = 0.3
cache_dir = "/data/sttm"
```

`sttm config path` prints where it is looked for, `sttm config show` what holds and why.

## Environment

| variable | does |
|---|---|
| `STTM_MODEL`, `STTM_BUDGET`, `STTM_METHOD`, `STTM_CACHE_DIR` | defaults of the flags |
| `STTM_CONFIG` | the config file |
| `STTM_HOST` | the server that is asked, as `HOST:PORT`: see [Serving](serve.md) |
| `STTM_API_KEY` | its key; of `sttm serve`, the key that clients must send |
| `HF_HOME`, `HF_HUB_OFFLINE` | where models from the hub are kept, and whether it is asked at all |
| `XDG_CACHE_HOME`, `XDG_CONFIG_HOME` | on Linux: the folders of cache and config file |
| `TMPDIR` | where downloads and stdin are kept while they are read |
| `NO_COLOR` | no colours |

## Exit codes

| code | means |
|---|---|
| 0 | done |
| 1 | any other failure; `precompute`: some file failed; `cache verify`: something is damaged |
| 2 | usage: a flag or a combination that cannot hold |
| 3 | the video cannot be read or has no video stream |
| 4 | the model is missing or not supported |
| 5 | out of memory |
| 130 | interrupted |

A failure is one line on stderr, with what to do below it. With `--json` it is also
`{"schema": "sttm.error/1", "error": {"kind", "message", "hint"}}` on stdout. `--debug` adds the
traceback.
"""


def page() -> str:
    """The whole page."""
    return HEAD + "\n".join(_section(command, name) for name, command in commands()) + "\n" + TAIL


def commands() -> Iterator[tuple[str, Any]]:
    """Every command that does something, by its full name."""
    from sttm_cli.cli import app

    return _below(typer.main.get_command(app), "sttm")


def _below(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _below(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


def _section(command: Any, name: str) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
    usage = " ".join([name, *map(_place, arguments), "[OPTIONS]"])
    about = " ".join(command.help.split())
    lines = [f"## {name}", "", f"`{usage}`", "", about, "", "| option | does |", "|---|---|"]
    return (
        "\n".join(lines + [_row(option) for option in options]) + "\n" + _below_table(command, name)
    )


def _place(argument: Any) -> str:
    name = argument.metavar + "..." * (argument.nargs == -1)
    return name if argument.required or argument.nargs == -1 else f"[{name}]"


def examples(command: Any) -> list[str]:
    """The commands that stand below a command's help."""
    return [line.strip() for line in (command.epilog or "").splitlines()[1:] if line.strip()]


def _below_table(command: Any, name: str) -> str:
    block = "\n".join(examples(command))
    return (f"\n```sh\n{block}\n```\n" if block else "") + _shown(name)


def _shown(name: str) -> str:
    """Where the command stands with what it prints: three pages at most, in the README's order."""
    root = PAGE.parents[1]
    named = re.findall(r"\]\((docs/.*?\.md)\)", (root / "README.md").read_text(encoding="utf-8"))
    pages = {Path(page).name: (root / page).read_text(encoding="utf-8") for page in named}
    links = [
        f"[{text.splitlines()[0].lstrip('# ')}]({page})"
        for page, text in pages.items()
        if any(f"sttm {shown} ".startswith(f"{name} ") for shown in commands_shown(text))
    ]
    return f"\nWith its output: {', '.join(links[:3])}.\n" if links else ""


def _row(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    about = " ".join(option.help.split())
    if option.envvar:
        about += f" Environment: `{option.envvar}`."
    if option.show_default and option.default not in (None, False):
        about += f" Default: `{option.default}`."
    return f"| {names} | {about} |".replace("A|B", "A\\|B")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
