"""This package run as another process."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def command(module: str) -> list[str]:
    """What runs a module of this package, and looks for none where the user is: beside a video may
    lie an `av.py`."""
    return [sys.executable, "-P", "-m", module]


def environment() -> dict[str, str]:
    """This process's environment, in which the same package is found."""
    package = str(Path(__file__).parents[2])
    seen = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": seen}


def bound_memory(most_bytes: int) -> None:
    """Bound the memory of this process and of those that it starts; not on Windows."""
    try:
        import resource
    except ImportError:
        return
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    bound = most_bytes if most == resource.RLIM_INFINITY else min(most_bytes, most)
    resource.setrlimit(resource.RLIMIT_DATA, (bound, most))
