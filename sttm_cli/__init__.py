"""Ask questions about videos, again and again.

>>> import sttm_cli
>>> with sttm_cli.VideoQA(model="tiny", budget=0.3) as qa:  # doctest: +SKIP
...     qa.ask("video.mp4", "what happens?").text
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sttm_cli.base.errors import SttmError
    from sttm_cli.base.results import Answer, Choice
    from sttm_cli.base.types import Sampling
    from sttm_cli.merge import MergedTokens, merge_tokens
    from sttm_cli.runtime.merging import merging
    from sttm_cli.runtime.merging_block import MergingStats
    from sttm_cli.runtime.session import VideoQA

__all__ = [
    "Answer",
    "Choice",
    "MergedTokens",
    "MergingStats",
    "Sampling",
    "SttmError",
    "VideoQA",
    "__version__",
    "merge_tokens",
    "merging",
]

# Imported on demand (PEP 562): importing the package must cost nothing.
_HOMES = {
    "Answer": "sttm_cli.base.results",
    "Choice": "sttm_cli.base.results",
    "MergedTokens": "sttm_cli.merge",
    "MergingStats": "sttm_cli.runtime.merging_block",
    "Sampling": "sttm_cli.base.types",
    "SttmError": "sttm_cli.base.errors",
    "VideoQA": "sttm_cli.runtime.session",
    "merge_tokens": "sttm_cli.merge",
    "merging": "sttm_cli.runtime.merging",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
