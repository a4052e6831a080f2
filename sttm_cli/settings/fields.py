"""The declaration of one setting: its flag, its parsing, its help, and where it may be given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from sttm_cli.settings.parse import Parse, one_of, parse_switch


class Group(Enum):
    """Settings that commands take together; each is shown in a panel of a command's help."""

    MODEL = "model", "Model"
    FRAMES = "frames", "Frames"
    SOURCE = "source", "Frames"
    STORE = "store", "Cache"
    CACHE = "cache", "Cache"
    ANSWER = "answer", "Answer"
    SERVER = "server", None

    def __init__(self, name: str, panel: str | None) -> None:
        """`panel`: its heading, None for the command's own options."""
        self.panel = panel


class Scope(Enum):
    """Whether a server has a setting for good, or takes it with each request.

    MODEL and SERVER are pinned: they tell one server from another. MODEL shapes the loaded model,
    so a client that names a server by its address must ask for the same. What has the scope
    PROCESS is done in the process itself, by no server.
    """

    MODEL = "model"
    SERVER = "server"
    REQUEST = "request"
    PROCESS = "process"


@dataclass(frozen=True)
class Setting:
    """All that is known of a setting.

    `default` is as typed, None where the model, the video or the machine decides. `parse` reads and
    checks every value, from whichever side it comes. `choices` complete in the shell. `in_config`:
    whether the config file may hold it.
    """

    flags: tuple[str, ...]
    default: Any
    help: str
    group: Group
    parse: Parse
    metavar: str | None = None
    env: str | None = None
    choices: tuple[str, ...] = ()
    in_config: bool = True
    scope: Scope = Scope.REQUEST

    @property
    def flag(self) -> str:
        """The long flag."""
        return self.flags[-1]

    @property
    def name(self) -> str:
        """The field's name, which is the key in the config file."""
        return self.flag.removeprefix("--").replace("-", "_")

    @property
    def is_switch(self) -> bool:
        """Whether the flag takes no value."""
        return self.parse is parse_switch

    def read(self, value: Any) -> Any:
        """A value as typed or from Python -> the field's own type. Raises UsageError."""
        if value is None and self.default is None:
            return None
        return self.parse(self.flag, value)

    def typed(self, value: Any) -> Iterator[str]:
        """The argument that gives the field this value; none for a value that needs none."""
        if isinstance(value, tuple):
            value = ",".join(value) or None
        if value is True:
            yield self.flag
        elif value not in (None, False):
            yield f"{self.flag}={value}"


def declare(default: Any, *flags: str, **known: Any) -> Setting:
    """A setting; one with `choices` and without `parse` takes these words only."""
    return Setting(flags, default, **{"parse": one_of(*known.get("choices", ())), **known})


def setting(default: Any, *flags: str, **known: Any) -> Any:
    """A field of a dataclass with its declaration."""
    declared = declare(default, *flags, **known)
    return field(default=declared.read(default), metadata={"setting": declared})
