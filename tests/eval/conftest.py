"""lmms-eval's environment and generated scenes, for the tests of evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest

from sttm_cli.bench.exam import Sheet
from tests.conftest import LMMS
from tests.eval.scenes import sheets


@pytest.fixture
def lmms(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The interpreter of lmms-eval's environment."""
    if LMMS is None:
        pytest.skip("STTM_LMMS_VENV names none: `python -m sttm_cli.eval.environment` makes one")
    monkeypatch.setenv("STTM_LMMS_VENV", LMMS)
    return Path(LMMS) / "bin" / "python"


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[Sheet]:
    """Three scenes of four seconds."""
    return sheets(tmp_path_factory.mktemp("scenes"), 3)
