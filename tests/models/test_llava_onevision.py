"""The family agrees with transformers' own processor, features and generation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, LlavaOnevisionForConditionalGeneration

from sttm_cli.answer import generate
from sttm_cli.base.errors import ModelError, UsageError
from sttm_cli.base.types import FrameChunk
from sttm_cli.models.checkpoint import find_checkpoint
from sttm_cli.models.loading import Placement
from sttm_cli.models.registry import family_of, load
from sttm_cli.prefill import KVContinuation, MergeConfig, prefill
from tests.checkpoints import llava_onevision
from tests.fakes import DictMemo, keep_all

QUESTION = "what colour is the circle?"
GEOMETRIES = [
    {"seed": 1},
    {"seed": 2, "hidden": 96, "layers": 3, "heads": 6, "kv_heads": 3, "image": 40, "patch": 8},
]


@pytest.fixture(params=GEOMETRIES, ids=["7x7", "5x5"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return llava_onevision(tmp_path / "model", **request.param)


def loaded(folder: Path):
    source = find_checkpoint(str(folder), str(folder), revision=None, memo=DictMemo())
    return load(source, Placement("cpu", "float32"))


def reference(folder: Path, frames: np.ndarray, question: str):
    """transformers alone: its processor, its model, its inputs for the same frames."""
    processor = AutoProcessor.from_pretrained(folder)
    content = [{"type": "video"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    inputs = processor(
        text=text, videos=[frames], return_tensors="pt", videos_kwargs={"do_sample_frames": False}
    )
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), processor, inputs


def prepared(model, frames: np.ndarray, layer: int = 1):
    tokens = model.encode(FrameChunk(frames, tuple(range(len(frames)))), len(frames))
    prompt = model.prompt(tokens)
    embeds = model.embed_prompt(prompt, tokens)
    merging = MergeConfig(layer, keep_all, "reassigned")
    return prefill(model.decoder, prompt, embeds, merging), prompt


def test_token_ids_equal_those_of_the_chat_template(folder: Path, frames: np.ndarray) -> None:
    model = loaded(folder)
    _, _, inputs = reference(folder, frames, QUESTION)
    _, prompt = prepared(model, frames)
    ids = torch.cat([prompt.ids, model.question(QUESTION)])
    assert ids.tolist() == inputs["input_ids"][0].tolist()


def test_first_token_logits_and_text_equal_transformers(folder: Path, frames: np.ndarray) -> None:
    model = loaded(folder)
    theirs, processor, inputs = reference(folder, frames, QUESTION)
    with torch.inference_mode():
        wanted = theirs(**inputs).logits[0, -1]
        out = theirs.generate(**inputs, do_sample=False, max_new_tokens=12)
    text = processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    kv, _ = prepared(model, frames)
    prefix = KVContinuation(model, kv)
    logits = prefix.extend(model.question(QUESTION))
    prefix.rewind()
    assert torch.allclose(logits, wanted, atol=1e-4)
    assert wanted.std() > 0.1
    made = generate(prefix, model.question(QUESTION), model, max_new_tokens=12)
    assert made.text == text.strip()


def test_encoding_in_chunks_equals_encoding_at_once(folder: Path, frames: np.ndarray) -> None:
    model = loaded(folder)
    whole = model.encode(FrameChunk(frames, tuple(range(6))), 6).features
    parts = [model.encode(FrameChunk(frames[i : i + 2], (i, i + 1)), 6).features for i in (0, 2, 4)]
    assert torch.allclose(torch.cat(parts), whole, atol=1e-5)


def test_a_control_token_in_the_question_is_refused(random_model: Path) -> None:
    with pytest.raises(UsageError, match="<video>"):
        loaded(random_model).question("what is <video> ?")


def test_follow_up_turns_tokenize_as_one_conversation(random_model: Path) -> None:
    model = loaded(random_model)
    first, second = "how many shapes are there?", QUESTION
    both = model.question(second, [(first, "two")]).tolist()
    assert both[: len(model.question(first))] == model.question(first).tolist()
    assert len(both) > len(model.question(first)) + len(model.question(second)) - 6


def test_a_checkpoint_that_lacks_weights_is_refused(random_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "broken"
    folder.mkdir()
    for path in random_model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / "model.safetensors")
    gone = next(name for name in weights if "layers.1" in name)
    del weights[gone]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="lacks 1 weights"):
        loaded(folder)


@pytest.mark.parametrize(
    ("files", "message"),
    [({}, "config.json"), ({"config.json": "{}"}, "weights"), ({"config.json": "]"}, "weights")],
)
def test_a_folder_that_is_no_model_is_refused(tmp_path: Path, files: dict, message: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ModelError, match=message):
        find_checkpoint("x", str(tmp_path), revision=None, memo=DictMemo())


def test_an_unsupported_architecture_is_refused_and_names_a_supported_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "model.safetensors").write_bytes(b"x")
    source = find_checkpoint("x", str(tmp_path), revision=None, memo=DictMemo())
    with pytest.raises(ModelError, match="qwen3-vl-4b"):
        family_of(source)


def test_fingerprint_changes_with_one_byte_of_the_weights(random_model: Path, tmp_path: Path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in random_model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    memo = DictMemo()
    before = find_checkpoint("a", str(folder), revision=None, memo=memo).fingerprint
    assert before == find_checkpoint("a", str(random_model), revision=None, memo=memo).fingerprint
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    assert find_checkpoint("a", str(folder), revision=None, memo=memo).fingerprint != before
