"""A small checkpoint of each family."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.checkpoints import llava_onevision
from tests.checkpoints_gemma import gemma4
from tests.checkpoints_glm import glm
from tests.checkpoints_internvl import internvl
from tests.checkpoints_llava import llava_video
from tests.checkpoints_minicpm import minicpm
from tests.checkpoints_molmo import molmo2
from tests.checkpoints_perception import perception_lm
from tests.checkpoints_qwen import qwen_vl
from tests.checkpoints_smolvlm import smolvlm
from tests.checkpoints_videollama import videollama

TIMM = find_spec("timm")
FAMILIES = {
    "llava_onevision": llava_onevision,
    "llava_video": llava_video,
    "internvl": internvl,
    "smolvlm": smolvlm,
    "qwen2_vl": lambda folder: qwen_vl(folder, "qwen2_vl", pixels=(256, 80 * 112)),
    "qwen3_vl": lambda folder: qwen_vl(folder, "qwen3_vl", pixels=(256, 400 * 112)),
    "qwen3_5": lambda folder: qwen_vl(folder, "qwen3_5", pixels=(256, 400 * 112)),
    "glm4v": lambda folder: glm(folder, "glm4v"),
    "video_llama_3": videollama,
    "perception_lm": perception_lm,
    "molmo2": molmo2,
    "minicpm": minicpm,
    "gemma4": gemma4,
    "gemma4_large": lambda folder: gemma4(folder, "large"),
}
HERE = {name: write for name, write in FAMILIES.items() if name != "perception_lm" or TIMM}
"""Those whose packages are installed."""


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param not in HERE:
        pytest.skip("Perception-LM's tower is one of timm, which is not installed")
    path = tmp_path_factory.mktemp("models") / request.param
    FAMILIES[request.param](path)
    return path
