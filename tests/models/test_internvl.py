"""InternVL agrees with transformers' own processor, features and generation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from sttm_cli.base.types import FrameChunk, VisualTokens
from sttm_cli.models.checkpoint import find_checkpoint
from sttm_cli.models.loading import Placement
from sttm_cli.models.registry import load
from tests.checkpoints_internvl import internvl
from tests.fakes import DictMemo
from tests.models.reference import QUESTION, assert_equals_one_pass, assert_equals_transformers

GEOMETRIES: dict[str, dict[str, Any]] = {
    "3x3": {"seed": 1},
    "5x5": {"seed": 2, "heads": 6, "kv_heads": 3, "layers": 3, "image": 80},
}


@pytest.fixture(params=GEOMETRIES, scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return internvl(tmp_path_factory.mktemp("internvl") / "m", **GEOMETRIES[request.param])


@pytest.fixture(scope="module")
def model(folder: Path):
    source = find_checkpoint(str(folder), str(folder), revision=None, memo=DictMemo())
    return load(source, Placement("cpu", "float32"))


def reference(folder: Path, frames: np.ndarray):
    processor = AutoProcessor.from_pretrained(folder)
    content = [{"type": "video"}, {"type": "text", "text": QUESTION}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    kwargs = {"do_sample_frames": False}
    inputs = processor(text=text, videos=[frames], return_tensors="pt", videos_kwargs=kwargs)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), processor, inputs


def encoded(model: Any, frames: np.ndarray) -> VisualTokens:
    return model.encode(FrameChunk(frames, tuple(range(len(frames)))), len(frames))


def test_ids_logits_and_text_equal_transformers(model, folder, frames) -> None:
    assert_equals_transformers(model, encoded(model, frames), *reference(folder, frames))


@pytest.mark.parametrize("layer", [0, 2])
def test_merged_prefix_then_question_equals_one_pass(model, frames, layer) -> None:
    assert_equals_one_pass(model, encoded(model, frames), layer)


def test_encoding_in_chunks_equals_encoding_at_once(model, frames) -> None:
    whole = model.encode(FrameChunk(frames, tuple(range(6))), 6).features
    parts = [model.encode(FrameChunk(frames[i : i + 2], (0, 1)), 6).features for i in (0, 2, 4)]
    assert torch.allclose(torch.cat(parts), whole, atol=1e-5)
