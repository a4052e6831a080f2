"""Token merging: the published method and the other methods with the same interface.

Depends on torch only, never on a model; torch itself is imported at first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sttm_cli.merge.quadtree.merging import merge_tokens
    from sttm_cli.merge.tokens import MergedTokens, Sources

__all__ = ["MergedTokens", "Sources", "merge_tokens"]

_HOMES = {"MergedTokens": "tokens", "Sources": "tokens", "merge_tokens": "quadtree.merging"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
