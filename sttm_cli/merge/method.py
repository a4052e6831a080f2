"""`Method`, the interface of all merging methods, and their lookup by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sttm_cli.base.names import METHODS
from sttm_cli.settings.fields import (
    Thresholds,
    check_thresholds_alone,
    parse_method,
    parse_thresholds,
)

if TYPE_CHECKING:
    import torch

    from sttm_cli.merge.tokens import MergedTokens

    BudgetedMerge = Callable[[torch.Tensor, float | int], MergedTokens]
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
    merge: BudgetedMerge
    sizes: bool = False

    @property
    def identity(self) -> str:
        return f"{self.name}/{self.version}"


def find_method(name: str, flag: str = "--method") -> Method:
    """Import the method called `name`, which may have thresholds behind a colon.

    Raises UsageError for an unknown name, and for a method of another package that cannot be
    imported or is not a `Method` of that name.
    """
    name, _, pair = parse_method(flag, name).partition(":")
    method: Method = METHODS.load(
        name, valid=lambda found: isinstance(found, Method) and found.name == name
    )
    return _at(method, parse_thresholds(flag, pair)) if pair else method


def _at(method: Method, thresholds: Thresholds) -> Method:
    """The method at thresholds that were given by hand, which stand for a budget."""
    from sttm_cli.merge.quadtree.merging import merge_tokens

    def merge(features: torch.Tensor, budget: float | int) -> MergedTokens:
        check_thresholds_alone(thresholds.method, budget)
        return merge_tokens(features, thresholds.spatial, thresholds.temporal)

    return replace(method, name=thresholds.method, merge=merge)
