"""`Method`, the interface of all merging methods, and their lookup by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
    KV of another version is never used.
    """

    name: str
    version: int
    merge: Merge

    @property
    def identity(self) -> str:
        return f"{self.name}/{self.version}"


def find_method(name: str, flag: str = "--method") -> Method:
    """Import the method called `name`.

    Raises UsageError for an unknown name, and for a method of another package that cannot be
    imported or is not a `Method` of that name.
    """
    parse_method(flag, name)
    method: Method = METHODS.load(
        name, valid=lambda found: isinstance(found, Method) and found.name == name
    )
    return method
