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
