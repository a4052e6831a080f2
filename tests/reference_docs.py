"""Writes docs/cli.md from commands and settings: `python -m tests.reference_docs`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import typer

from sttm_cli.settings.fields import Setting
from sttm_cli.settings.settings import CONFIG_KEYS, SETTINGS
from tests.transcripts import commands_shown

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
HEAD = """\
# Commands

Every command and flag, with defaults in brackets; `--help` explains a command's own. Answers and
data go to stdout, everything else to stderr. A flag beats its environment variable, that the
[config file](#config-file), that the default.

"""
SHARED = """\
## Shared flags

The same in every command that names their group. All take those of **Output**.
"""
TAIL = """\
## Config file

`config.toml` in the user's configuration folder, or what `STTM_CONFIG` names; `sttm config path`
prints it. Keys: KEYS. They are defaults of the commands that take the flag, apart from `--budget`
of `inspect`, `--max-download` and `--keep-alive` of `serve`, and all of `bench` and `eval`.

```toml
model = "llava-onevision-7b"
budget = 0.3
```

## Environment

`STTM_MODEL`, `STTM_BUDGET`, `STTM_METHOD`, `STTM_CACHE_DIR`, `STTM_CACHE_TIER`: as the flags\\
`STTM_CONFIG`: the config file\\
`STTM_HOST`: the server to ask, `HOST:PORT`\\
`STTM_API_KEY`: its key; of `sttm serve`, what clients must send\\
`STTM_LMMS_VENV`: [lmms-eval's environment](evaluation.md#the-environment)\\
`HF_HOME`, `HF_HUB_OFFLINE`: where models are kept; never ask the hub\\
`XDG_CACHE_HOME`, `XDG_CONFIG_HOME`, `XDG_STATE_HOME`: folders of cache, config, log (Linux)\\
`TMPDIR`: downloads and stdin while they are read\\
`NO_COLOR`: no colours

## Exit codes

0 done · 1 any other failure, a part that failed (`precompute`, `eval`, `--each`), damage (`cache
verify`) · 2 usage · 3 the video cannot be read · 4 the model is missing or not supported · 5 out of
memory · 130 interrupted. With `--json` a failure is also `{"schema": "sttm.error/1", "error":
{"kind", "message", "hint"}}` on stdout: [Troubleshooting](troubleshooting.md).
"""


def page() -> str:
    """The whole page."""
    known = dict(commands())
    sections = "\n".join(_section(command, name) for name, command in known.items())
    keys = ", ".join(f"`{key}`" for key in CONFIG_KEYS)
    return HEAD + _shared(known["sttm ask"]) + sections + "\n" + TAIL.replace("KEYS", keys)


def commands() -> Iterator[tuple[str, Any]]:
    """Every command that does something, by its full name."""
    from sttm_cli.cli import app

    return _below(typer.main.get_command(app), "sttm")


def _below(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            if command.invoke_without_command:
                yield f"{prefix} {name}", command
            yield from _below(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


def _shared(ask: Any) -> str:
    """The settings by their panels, and how to have a command speak."""
    panels: dict[str, list[str]] = {}
    for known in SETTINGS.values():
        row = _row(known.flags, known.help, known.env, known.default)
        panels.setdefault(str(known.group.panel), []).append(row)
    panels["Output"] = [
        _option_row(p) for p in ask.params if is_shared(p) and p.name not in SETTINGS
    ]
    panels["Several commands"] = [_option_row(option) for option in common().values()]
    groups = (f"\n**{name}**\n\n{_lines(rows)}" for name, rows in panels.items())
    return SHARED + "".join(groups) + "\n"


@cache
def common() -> dict[str, Any]:
    """The options beside the settings that several commands take with the same meaning, by name."""
    found: dict[tuple[str, str], list[Any]] = {}
    for _, command in commands():
        for option in command.params:
            if option.param_type_name == "option" and not is_shared(option):
                found.setdefault((option.opts[-1], option.help or ""), []).append(option)
    several = [options[0] for options in found.values() if len(options) > 1]
    return {option.name: option for option in several if option.name != "help"}


def is_common(option: Any) -> bool:
    """Whether it is one of those."""
    known = common().get(option.name)
    return known is not None and (known.opts, known.help) == (option.opts, option.help)


def groups_of(command: Any) -> str:
    """The groups of shared flags that a command takes, and which of their flags it does not."""
    taken = {p.name for p in command.params if is_shared(p)}
    panels: dict[str, list[Setting]] = {}
    for known in SETTINGS.values():
        panels.setdefault(str(known.group.panel), []).append(known)
    words = []
    for name, known in panels.items():
        here = [f"`{k.flag}`" for k in known if k.name in taken]
        less = [f"`{k.flag}`" for k in known if k.name not in taken]
        if here and not less:
            words.append(f"**{name}**")
        elif len(here) > len(less):
            words.append(f"**{name}** without {_listed(less)}")
        elif here:
            words.append(", ".join(here))
    if beside := [f"`{p.opts[-1]}`" for p in command.params if is_common(p)]:
        words.append(", ".join(beside))
    return f" Shared: {'; '.join(words)}." if words else ""


def _listed(names: list[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def is_shared(option: Any) -> bool:
    """Whether an option means the same in every command that takes it."""
    panels = {known.group.panel for known in SETTINGS.values()} | {"Output"}
    return getattr(option, "rich_help_panel", None) in panels


def heading(name: str, command: Any) -> str:
    """The title of a command's section: its name and what stands behind it."""
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    return " ".join([name, *map(_place, arguments)])


def _section(command: Any, name: str) -> str:
    options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
    # What follows the first paragraph is in the help itself.
    about = " ".join(command.help.split("\n\n")[0].split())
    shown = [option for option in options if not (is_shared(option) or is_common(option))]
    own = f"\n{'; '.join(map(_own, shown))}\n" if shown else ""
    groups = "" if name.startswith("sttm bench ") else groups_of(command)
    return f"## {heading(name, command)}\n\n{about}{groups}{_shown(name)}\n{own}"


def _own(option: Any) -> str:
    """An option's names and default, which its help explains."""
    names = ", ".join(f"`{flag}`" for flag in (*option.opts, *option.secondary_opts))
    beside = _beside(option.help, option.envvar, option.default if option.show_default else None)
    return names + beside


def _place(argument: Any) -> str:
    name = argument.metavar + "..." * (argument.nargs == -1)
    return name if argument.required or argument.nargs == -1 else f"[{name}]"


def examples(command: Any) -> list[str]:
    """The commands that stand below a command's help."""
    return [line.strip() for line in (command.epilog or "").splitlines()[1:] if line.strip()]


def _shown(name: str) -> str:
    """Where the command stands with what it prints: the first page in the README's order."""
    root = PAGE.parents[1]
    named = re.findall(r"\]\((docs/.*?\.md)\)", (root / "README.md").read_text(encoding="utf-8"))
    pages = {Path(page).name: (root / page).read_text(encoding="utf-8") for page in named}
    links = [
        page
        for page, text in pages.items()
        if any(f"sttm {shown} ".startswith(f"{name} ") for shown in commands_shown(text))
    ]
    return f" ([shown]({links[0]}))" if links else ""


def _lines(rows: Sequence[str]) -> str:
    """Rows below each other: a backslash ends a line of a paragraph."""
    return "\\\n".join(rows) + "\n"


def _option_row(option: Any) -> str:
    default = option.default if option.show_default else None
    flags = (*option.opts, *option.secondary_opts)
    return _row(flags, option.help, option.envvar, default)


def _row(flags: Sequence[str], about: str, env: str | None, default: Any) -> str:
    names = ", ".join(f"`{name}`" for name in flags)
    return f"{names}: {_brief(about)[0]}{_beside(about, env, default)}"


def _beside(about: str, env: str | None, default: Any) -> str:
    value = _brief(about)[1] if default in (None, False, "") else str(default)
    beside = ", ".join(part for part in (value, env and f"`{env}`") if part)
    return f" ({beside})" if beside else ""


def _brief(about: str) -> tuple[str, str]:
    """The first clause of a flag's help, and the default that it names."""
    about = " ".join(about.split())
    said = re.search(r" \(default: (.*)\)$", about)
    text = about[: said.start()] if said else about
    clause = re.split(r"[.;](?: |$)|(?<!--on ray)(?<!--geometry): |, such as |, until ", text)[0]
    if clause[1:2].islower():
        clause = clause[0].lower() + clause[1:]
    return clause, said[1] if said else ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
