"""`Method`, the interface of all merging methods, and their lookup by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sttm_cli.base.errors import UsageError
from sttm_cli.base.names import METHODS
from sttm_cli.settings.fields import parse_method

if TYPE_CHECKING:
    import torch

    from sttm_cli.merge.tokens import MergedTokens

    Merge = Callable[[torch.Tensor, float | int], MergedTokens]
    """Takes features [T, H, W, C] and a budget: a share in (0, 1] as a float, or a number of
    tokens as an int. The budget is an upper bound; at 1.0 every token is kept unchanged."""


@dataclass(frozen=True)
class Method:
    """A way to merge the visual tokens of a video.

    `version` changes whenever the same features and budget could give different tokens; a stored
    KV of another version is never used. `sizes`: its tokens are meant to count in attention as
    often as the cells behind them, and do unless the user says otherwise.
    """

    name: str
    version: int
    merge: Merge
    sizes: bool = False

    @property
    def identity(self) -> str:
        return f"{self.name}/{self.version}"


def method_names() -> list[str]:
    """List the names of all methods without importing them."""
    return METHODS.names()


def find_method(name: str, flag: str = "--method") -> Method:
    """Import the method called `name`.

    Raises UsageError for an unknown name, and for a method of another package that cannot be
    imported or is not a `Method` of that name.
    """
    parse_method(flag, name)
    try:
        method = METHODS.load(name)
    except Exception as error:
        raise UsageError(
            f"{flag} {name!r} cannot be imported: {error}", "update or remove its package"
        ) from error
    if not isinstance(method, Method) or method.name != name:
        raise UsageError(f"{flag} {name!r} is not a Method of that name", "ask its authors")
    return method
