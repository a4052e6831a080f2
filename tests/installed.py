"""A distribution as pip would leave it, for what other packages may add to this one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def install(folder: Path, name: str, source: str, entry_points: str) -> dict[str, str]:
    """Write module `name` and its metadata to `folder`; the environment in which both are found.

    `entry_points`: the text of entry_points.txt.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(source)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    paths = [str(folder), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def sttm(environment: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "sttm_cli", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
