"""This package run as another process."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def command(module: str) -> list[str]:
    """The command that runs a module of this package. The working folder is not searched for
    modules: there may be an `av.py` next to a video."""
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
