"""Fixtures that tests of several stages share."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

LMMS = os.environ.get("STTM_LMMS_VENV")
"""An environment with lmms-eval, for the tests that need one."""
VLLM = os.environ.get("STTM_VLLM_VENV")
"""An environment with vLLM, for the tests that need one."""
# Nothing in the tests may look at the user's own cache, model hub or settings.
for name in [n for n in os.environ if n.startswith("STTM_")]:
    del os.environ[name]
os.environ["HF_HUB_OFFLINE"] = "1"
# The log of answers: also that of processes that outlive a test.
_STATE = tempfile.TemporaryDirectory(prefix="sttm-tests-")
os.environ["XDG_STATE_HOME"] = _STATE.name

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STTM_CACHE_DIR", str(tmp_path_factory.mktemp("cache") / "sttm"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
    # The log of answers, and what a person was told before.
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
    # No server of the user's own may be found.
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="session")
def shared_videos() -> Path:
    """The folder of real videos; tests that need it skip where it is not there."""
    folder = SHARED / "videos"
    if not folder.is_dir():
        pytest.skip("the folder of real videos (../shared/videos) is not there")
    return folder


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA-OneVision folder with random weights."""
    from tests.checkpoints import llava_onevision

    return llava_onevision(tmp_path_factory.mktemp("model") / "llava")


@pytest.fixture
def frames() -> np.ndarray:
    """Six frames [T, H, W, 3] of slowly changing noise."""
    random = np.random.default_rng(0)
    base = random.integers(0, 255, (64, 80, 3))
    noise = random.integers(-30, 30, (6, 64, 80, 3))
    return (base + noise).clip(0, 255).astype(np.uint8)
