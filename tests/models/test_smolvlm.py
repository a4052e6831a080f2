"""SmolVLM2 agrees with transformers' own processor, features and generation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.video_utils import VideoMetadata

from sttm_cli.answer import generate
from sttm_cli.models import Placement, find_source, load
from sttm_cli.prefill import KVContinuation, Merging, prefill
from sttm_cli.types import FrameChunk, VisualTokens
from tests.checkpoints_smolvlm import smolvlm
from tests.fakes import DictMemo, keep_all, pair_up
from tests.models.reference import one_pass

QUESTION = "what colour is the circle?"
GEOMETRIES: dict[str, dict[str, Any]] = {
    "3x3": {"seed": 1},
    "5x5": {"seed": 2, "heads": 6, "kv_heads": 3, "layers": 3, "image": 120, "scale": 3},
}
# Twenty seconds apart: minutes and seconds, and a duration that no frame has.
TIMES, DURATION = (0.0, 20.0, 40.0, 60.0, 80.0, 100.0), 119.5


@pytest.fixture(params=GEOMETRIES, scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smolvlm(tmp_path_factory.mktemp("smolvlm") / "m", **GEOMETRIES[request.param])


@pytest.fixture(scope="module")
def model(folder: Path):
    source = find_source(str(folder), str(folder), revision=None, memo=DictMemo())
    return load(source, Placement("cpu", "float32"))


def reference(folder: Path, frames: np.ndarray):
    processor = AutoProcessor.from_pretrained(folder)
    content = [{"type": "video"}, {"type": "text", "text": QUESTION}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    seen = VideoMetadata(
        total_num_frames=120, fps=1.0, duration=DURATION, frames_indices=[int(t) for t in TIMES]
    )
    inputs = processor(
        text=text, videos=[frames], return_tensors="pt", video_metadata=[seen],
        do_sample_frames=False,
    )  # fmt: skip
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), processor, inputs


def prefilled(model: Any, frames: np.ndarray, merging: Merging):
    features = model.encode(FrameChunk(frames, TIMES), len(frames)).features
    tokens = VisualTokens(features, (), TIMES, DURATION)
    prompt = model.prompt(tokens)
    kv = prefill(model.decoder, prompt, model.embed_prompt(prompt, tokens), merging)
    return KVContinuation(model, kv), prompt, tokens


def test_ids_logits_and_text_equal_transformers(model, folder, frames) -> None:
    theirs, processor, inputs = reference(folder, frames)
    prefix, prompt, _ = prefilled(model, frames, Merging(1, keep_all, "reassigned"))
    question = model.question(QUESTION)
    assert [*prompt.ids.tolist(), *question.tolist()] == inputs["input_ids"][0].tolist()
    with torch.inference_mode():
        wanted = theirs(**inputs).logits[0, -1]
        out = theirs.generate(**inputs, do_sample=False, max_new_tokens=12)
    logits = prefix.extend(question)
    prefix.rewind()
    assert torch.allclose(logits, wanted, atol=1e-4)
    assert wanted.std() > 0.1
    text = processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert generate(prefix, question, model, max_new_tokens=12).text == text.strip()


@pytest.mark.parametrize("layer", [0, 2])
def test_merged_prefix_then_question_equals_one_pass(model, frames, layer) -> None:
    prefix, prompt, tokens = prefilled(model, frames, Merging(layer, pair_up, "reassigned"))
    question = model.question(QUESTION)
    wanted = one_pass(
        model, prompt, tokens, question=question, layer=layer, merge=pair_up, reassigned=True
    )
    assert torch.allclose(prefix.extend(question), wanted, atol=1e-5)


def test_encoding_in_chunks_equals_encoding_at_once(model, frames) -> None:
    whole = model.encode(FrameChunk(frames, TIMES), 6).features
    parts = [model.encode(FrameChunk(frames[i : i + 2], (0, 1)), 6).features for i in (0, 2, 4)]
    assert torch.allclose(torch.cat(parts), whole, atol=1e-5)
