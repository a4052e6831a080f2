"""What tests of reading share."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that were made just now count as old: what is read of them is remembered."""
    monkeypatch.setattr(sys.modules["sttm_cli.base.system"], "STEP_S", -1.0)
