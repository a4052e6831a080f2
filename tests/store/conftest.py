"""A cache in a folder of its own, and what it warned of."""

from __future__ import annotations

from pathlib import Path

import pytest

from sttm_cli.store import LocalStore


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, warnings: list[str]) -> LocalStore:
    return LocalStore(tmp_path / "cache", warn=warnings.append)
