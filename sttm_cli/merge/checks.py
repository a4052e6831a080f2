"""Checks of the arguments of `merge_tokens`; each raises UsageError."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import torch

from sttm_cli.base.errors import UsageError

FEWEST = 16
"""The smallest number of tokens accepted as a budget."""

CHOICES = {"semantics": ("paper", "reference"), "link": ("first", "most_similar")}


def check_features(features: Any) -> None:
    """Require a non-empty floating-point tensor [T, H, W, C]."""
    if not isinstance(features, torch.Tensor):
        raise UsageError(f"features are a {type(features).__name__}", "give a tensor [T, H, W, C]")
    shape = tuple(features.shape)
    if features.ndim != 4:
        raise UsageError(f"features have shape {shape}", "give a tensor [T, H, W, C]")
    if 0 in shape:
        raise UsageError(f"features of shape {shape} are empty", "every side must be at least 1")
    if not features.is_floating_point():
        raise UsageError(f"features are {features.dtype}", "give float16, bfloat16 or float32")


def check_finite(norm: torch.Tensor, features: torch.Tensor) -> None:
    """Require finite features whose squares fit float32; they are searched if `norm` is not."""
    if bool(torch.isfinite(norm).all()):
        return
    bad = (~torch.isfinite(features)).nonzero()
    if len(bad):
        index = tuple(bad[0].tolist())
        hint = "every value must be finite"
        if features.dtype is torch.float16:
            hint += "; use --dtype bfloat16 or float32, which have a larger range"
        raise UsageError(f"features[{index}] is {features[index].item()}", hint)
    most = features.abs().max().item()
    raise UsageError(f"features reach {most:g}", "their squares must be finite in float32")


def check_settings(
    thresholds: Mapping[str, float | None],
    *,
    budget: float | int | None,
    root_level: int,
    head_dim: int | None,
    channels: int,
    weighted: bool,
    choices: Mapping[str, str],
) -> None:
    """Require every setting to be in its range, and no two to contradict each other."""
    for name, threshold in thresholds.items():
        if threshold is not None:
            _check_threshold(name, threshold)
    if budget is not None:
        check_budget(budget, FEWEST)
        given = [name for name, threshold in thresholds.items() if threshold is not None]
        if given:
            raise UsageError(
                f"budget={budget!r} sets both thresholds, but {given[0]} is given",
                "give a budget or thresholds",
            )
    if not is_whole(root_level) or root_level < 0:
        raise UsageError(f"root_level is {root_level!r}", "give a whole number >= 0")
    if head_dim is not None and not (
        is_whole(head_dim) and head_dim > 0 and not channels % head_dim
    ):
        raise UsageError(f"head_dim is {head_dim!r}", f"give a divisor of the {channels} channels")
    if not isinstance(weighted, bool):
        raise UsageError(f"weighted is {weighted!r}", "give True or False")
    _check_choices(choices, budget)


def check_budget(budget: Any, fewest: int) -> None:
    """Require a share in (0, 1], or a whole number of at least `fewest`."""
    real = isinstance(budget, Real) and not isinstance(budget, Integral)
    share = real and 0 < float(budget) <= 1
    count = is_whole(budget) and (budget >= fewest or budget == 1)
    if not share and not count:
        raise UsageError(
            f"budget is {budget!r}",
            f"give a share in (0, 1] or a whole number of tokens >= {fewest}",
        )


def too_small(budget: float | int, most: int, total: int, least: int) -> UsageError:
    """Build the error for a budget below the number of roots of one frame."""
    share = math.ceil(least / total * 1e4) / 1e4
    return UsageError(
        f"budget={budget!r} allows {most} of {total} tokens",
        f"the least possible for this video is {least}, a share of {share:g}",
    )


def _check_threshold(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not -1 <= float(value) <= 1:
        raise UsageError(f"{name} is {value!r}", "give a cosine in [-1, 1]")


def _check_choices(choices: Mapping[str, str], budget: float | int | None) -> None:
    for name, value in choices.items():
        if value not in CHOICES[name]:
            raise UsageError(f"{name} is {value!r}", f"give one of {', '.join(CHOICES[name])}")
    if choices["semantics"] == "reference" and choices["link"] != "first":
        raise UsageError(
            f"semantics='reference' cannot be combined with link={choices['link']!r}",
            "the released code supports link='first' only",
        )
    if choices["semantics"] == "reference" and budget is not None:
        raise UsageError(
            f"semantics='reference' cannot be combined with budget={budget!r}",
            "the released code supports thresholds only",
        )


def is_whole(value: Any) -> bool:
    """Return whether `value` is a whole number of any type, excluding bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)
