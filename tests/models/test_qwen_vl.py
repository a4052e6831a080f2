"""The Qwen-VL families agree with transformers' own processor, ids and generation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.video_utils import VideoMetadata

from sttm_cli.answer import generate
from sttm_cli.base.types import FrameChunk, VisualTokens
from sttm_cli.models.checkpoint import find_checkpoint
from sttm_cli.models.families.qwen2_5_vl import spacing
from sttm_cli.models.loading import Placement
from sttm_cli.models.registry import family_of, load
from sttm_cli.prefill import KVContinuation, MergeConfig, prefill
from tests.checkpoints_qwen import qwen_vl
from tests.fakes import DictMemo, keep_all, pair_up
from tests.models.reference import one_pass

QUESTION = "what colour is the circle?"
FAMILIES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"]
GEOMETRIES: dict[str, dict[str, Any]] = {
    "5x7": {"seed": 1, "patch": 8, "shape": (7, 80, 112)},
    "4x2": {"seed": 2, "patch": 12, "heads": 6, "kv_heads": 3, "shape": (6, 90, 40)},
}
FPS = 0.5
"""One frame each two seconds: the ids that count seconds then differ from plain counting."""


@pytest.fixture(scope="module", params=[(f, g) for f in FAMILIES for g in GEOMETRIES], ids=str)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    family, name = request.param
    geometry = dict(GEOMETRIES[name])
    shape = geometry.pop("shape")
    whole = shape[0] if "qwen3" in family else 1
    geometry["pixels"] = (16 * 16, 80 * 112 * whole)
    folder = qwen_vl(tmp_path_factory.mktemp("qwen"), family, **geometry)
    frames = np.random.default_rng(3).integers(0, 255, (*shape, 3)).astype(np.uint8)
    return folder, frames


@pytest.fixture(scope="module")
def model(case: tuple[Path, np.ndarray]):
    return loaded(case[0])


@pytest.fixture(scope="module")
def theirs(case: tuple[Path, np.ndarray]):
    """transformers alone: its model, its processor, its inputs for the same frames."""
    folder, frames = case
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    return model, processor, inputs_of(processor, frames)


def loaded(folder: Path):
    source = find_checkpoint(str(folder), str(folder), revision=None, memo=DictMemo())
    return load(source, Placement("cpu", "float32"))


def inputs_of(processor: Any, frames: np.ndarray):
    content = [{"type": "video"}, {"type": "text", "text": QUESTION}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, enable_thinking=False
    )
    metadata = VideoMetadata(
        total_num_frames=len(frames), fps=FPS, frames_indices=list(range(len(frames)))
    )
    return processor(
        text=text,
        videos=[frames],
        return_tensors="pt",
        videos_kwargs={
            "do_sample_frames": False,
            "video_metadata": [metadata],
            "cap_pixels_per_frame": True,
        },
    )


def encoded(model: Any, frames: np.ndarray) -> VisualTokens:
    times = tuple(i / FPS for i in range(len(frames)))
    tokens = model.encode(FrameChunk(frames, times), len(frames))
    return VisualTokens(tokens.features, tokens.deep, times, len(frames) / FPS)


def test_token_ids_equal_those_of_chat_template_and_processor(case, model, theirs) -> None:
    prompt = model.prompt(encoded(model, case[1]))
    ids = torch.cat([prompt.ids, model.question(QUESTION)])
    assert ids.tolist() == theirs[2]["input_ids"][0].tolist()


def test_rotary_ids_equal_the_models_own(case, model, theirs) -> None:
    prompt = model.prompt(encoded(model, case[1]))
    names = {"video_grid_thw", "second_per_grid_ts", "mm_token_type_ids"}
    known = {k: v for k, v in theirs[2].items() if k in names}
    wanted, _ = theirs[0].model.get_rope_index(theirs[2]["input_ids"], **known)
    count = len(model.question(QUESTION))
    assert torch.equal(prompt.positions, wanted[:, 0, :-count])
    after = prompt.next_position + torch.arange(count)
    assert torch.equal(after.expand(3, -1), wanted[:, 0, -count:])


def test_first_token_logits_and_text_equal_transformers(case, model, theirs) -> None:
    reference, processor, inputs = theirs
    with torch.inference_mode():
        wanted = reference(**inputs).logits[0, -1]
        out = reference.generate(**inputs, do_sample=False, max_new_tokens=12)
    text = processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    tokens = encoded(model, case[1])
    prompt = model.prompt(tokens)
    embeds = model.embed_prompt(prompt, tokens)
    merging = MergeConfig(1, keep_all, "survivors")
    kv = prefill(model.decoder, prompt, embeds, merging, deep=tokens.deep)
    prefix = KVContinuation(model, kv)
    logits = prefix.extend(model.question(QUESTION))
    prefix.rewind()
    assert torch.allclose(logits, wanted, atol=1e-4)
    assert wanted.std() > 0.1
    made = generate(prefix, model.question(QUESTION), model, max_new_tokens=12)
    assert made.text == text.strip()


@pytest.mark.parametrize("layer", [0, 1, "default"])
def test_merged_prefix_then_question_equals_one_pass(case, model, layer) -> None:
    source = find_checkpoint(str(case[0]), str(case[0]), revision=None, memo=DictMemo())
    layer = family_of(source).merge_layer if layer == "default" else layer
    tokens = encoded(model, case[1])
    prompt, question = model.prompt(tokens), model.question(QUESTION)
    embeds = model.embed_prompt(prompt, tokens)
    merging = MergeConfig(layer, pair_up, "survivors")
    kv = prefill(model.decoder, prompt, embeds, merging, deep=tokens.deep)
    logits = KVContinuation(model, kv).extend(question)
    wanted = one_pass(
        model, prompt, tokens, question=question, layer=layer, merge=pair_up, reassigned=False
    )
    assert kv.tokens.video_kept < kv.tokens.video_full
    assert torch.allclose(logits, wanted, atol=1e-5)


def test_encoding_in_chunks_equals_encoding_at_once(case, model) -> None:
    frames = case[1]
    whole = model.encode(FrameChunk(frames, tuple(range(len(frames)))), len(frames))
    parts = [
        model.encode(FrameChunk(frames[i : i + 2], tuple(range(i, i + 2))), len(frames))
        for i in range(0, len(frames), 2)
    ]
    assert torch.allclose(torch.cat([p.features for p in parts]), whole.features, atol=1e-5)
    for level, wanted in enumerate(whole.deep):
        assert torch.allclose(torch.cat([p.deep[level] for p in parts]), wanted, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_frames_shrink_as_a_longer_video_shares_the_pixels(family: str, tmp_path: Path) -> None:
    model = loaded(qwen_vl(tmp_path, family, pixels=(16 * 16, 64 * 64 * 4)))
    model._frames.max_video_tokens = 64
    frames = np.zeros((4, 64, 96, 3), np.uint8)
    processor = AutoProcessor.from_pretrained(tmp_path)
    processor.video_processor.max_video_tokens = 64
    grids = [model.encode(FrameChunk(frames, (0, 1, 2, 3)), n).grid for n in (4, 40)]
    assert grids[1][1:] < grids[0][1:]
    wanted = inputs_of(processor, frames)["video_grid_thw"][0]
    assert grids[0] == (2, wanted[1] // 2, wanted[2] // 2)


def test_jitter_of_frame_times_does_not_move_rotary_ids() -> None:
    assert spacing(tuple(max(0.0, i - 0.03 * (i % 2)) for i in range(64))) == 1.0
    assert spacing(tuple(i / 30 for i in range(64))) == pytest.approx(1 / 30)
    assert spacing((0.0,)) == 1.0


def test_repetition_penalty_of_the_checkpoint_is_honoured(tmp_path: Path) -> None:
    generation = {"repetition_penalty": 1.5, "do_sample": True, "top_k": 1}
    folder = qwen_vl(tmp_path, "qwen2_5_vl", generation=generation, seed=5)
    frames = np.random.default_rng(1).integers(0, 255, (4, 40, 56, 3)).astype(np.uint8)
    theirs = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    inputs = inputs_of(processor, frames)
    out = theirs.generate(**inputs, do_sample=False, max_new_tokens=24)
    model = loaded(folder)
    tokens = encoded(model, frames)
    prompt = model.prompt(tokens)
    embeds = model.embed_prompt(prompt, tokens)
    kv = prefill(model.decoder, prompt, embeds, MergeConfig(2, keep_all, "survivors"))
    prefix = KVContinuation(model, kv)
    made = generate(prefix, model.question(QUESTION), model, max_new_tokens=24)
    wanted = [i for i in out[0, inputs["input_ids"].shape[1] :].tolist() if i not in model.end_ids]
    assert list(made.ids) == wanted
    model._generation.repetition_penalty = 1.0
    assert generate(prefix, model.question(QUESTION), model, max_new_tokens=24).ids != made.ids
