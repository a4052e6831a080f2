"""Quantized checkpoints: what loads on a CPU answers as transformers does, the rest is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig

from sttm_cli.base.errors import ModelError
from sttm_cli.base.types import FrameChunk, VisualTokens
from sttm_cli.models.checkpoint import find_checkpoint
from sttm_cli.models.loading import Placement, quantization, quantizers, weight_bytes
from sttm_cli.models.registry import load
from tests.checkpoints_internvl import internvl
from tests.fakes import DictMemo
from tests.models.reference import QUESTION, assert_equals_one_pass, assert_equals_transformers

BLOCK = 16
FRAMES = np.random.default_rng(3).integers(0, 255, (4, 48, 64, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return internvl(tmp_path_factory.mktemp("plain") / "m")


def source(folder: Path):
    return find_checkpoint(str(folder), str(folder), revision=None, memo=DictMemo())


def copied(plain: Path, folder: Path) -> Path:
    shutil.copytree(plain, folder)
    return folder


def stated(folder: Path, settings: dict[str, Any]) -> Path:
    """The folder, whose config.json says that its weights are quantized so."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "quantization_config": settings}))
    return folder


def in_4_bit(plain: Path, folder: Path) -> Path:
    """The decoder's linear layers as bitsandbytes' NF4, as released 4-bit checkpoints have them."""
    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        llm_int8_skip_modules=["model.vision_tower", "model.multi_modal_projector", "lm_head"],
    )
    made = AutoModelForImageTextToText.from_pretrained(
        plain, quantization_config=how, dtype=torch.float32
    )
    copied(plain, folder)
    made.save_pretrained(folder)
    return folder


def in_fp8(plain: Path, folder: Path) -> Path:
    """The decoder's linear layers as 8-bit floats with a scale a block."""
    path = copied(plain, folder) / "model.safetensors"
    made: dict[str, torch.Tensor] = {}
    for name, weight in load_file(path).items():
        if "language_model.layers" not in name or not name.endswith("proj.weight"):
            made[name] = weight
            continue
        rows, columns = weight.shape
        blocks = weight.reshape(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
        scale = blocks.abs().amax((1, 3), keepdim=True) / 448
        made[name] = (blocks / scale).to(torch.float8_e4m3fn).reshape(rows, columns)
        made[f"{name}_scale_inv"] = scale[:, 0, :, 0].contiguous()
    save_file(made, path, metadata={"format": "pt"})
    settings = {
        "quant_method": "fp8",
        "weight_block_size": [BLOCK, BLOCK],
        "activation_scheme": "dynamic",
        "modules_to_not_convert": ["vision_tower", "multi_modal_projector", "lm_head"],
    }
    return stated(folder, settings)


@pytest.fixture(scope="module", params=["bitsandbytes", "fp8"])
def folder(
    request: pytest.FixtureRequest, plain: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    where = tmp_path_factory.mktemp("quantized") / "m"
    if request.param == "fp8":
        return in_fp8(plain, where)
    pytest.importorskip("bitsandbytes", reason="4-bit weights need it")
    return in_4_bit(plain, where)


def test_a_quantized_checkpoint_answers_as_transformers_does(folder: Path) -> None:
    model = load(source(folder), Placement("cpu", "float32"))
    tokens = encoded(model)
    theirs = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    video = {"type": "video", "video": FRAMES}
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": [video, {"type": "text", "text": QUESTION}]}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"do_sample_frames": False},
    )
    assert_equals_transformers(model, tokens, theirs, processor, inputs)
    assert_equals_one_pass(model, tokens, 2)


def encoded(model: Any) -> VisualTokens:
    return model.encode(FrameChunk(FRAMES, (0.0, 1.0, 2.0, 3.0)), 4)


def test_a_quantized_checkpoint_is_another_model(folder: Path, plain: Path) -> None:
    assert source(folder).fingerprint != source(plain).fingerprint
    assert not quantization(source(plain))
    assert not quantizers(source(plain))
    assert quantizers(source(folder)) in {("bitsandbytes",), ()}


def test_quantized_weights_are_measured_as_they_are_kept(folder: Path, plain: Path) -> None:
    whole, made = weight_bytes(source(plain), "float32"), source(folder)
    kept = sum(t.nbytes for t in load_file(folder / "model.safetensors").values())
    if quantization(made) == "fp8":
        # Without a GPU transformers turns them back.
        assert weight_bytes(made, "float32") >= whole
        assert weight_bytes(made, "float32", device="cuda:0") == kept
    else:
        assert weight_bytes(made, "float32") == kept < whole


@pytest.mark.parametrize(
    ("method", "needs"),
    [("gptq", "gptqmodel"), ("awq", "gptqmodel"), ("compressed-tensors", "compressed-tensors")],
)
def test_a_missing_package_is_named(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, needs: str
) -> None:
    monkeypatch.setattr("sttm_cli.models.loading._is_installed", lambda package: False)
    made = stated(copied(plain, tmp_path / "m"), {"quant_method": method})
    with pytest.raises(ModelError, match=f"quantized as '{method}', which needs {needs}") as error:
        load(source(made), Placement("cpu", "float32"))
    assert f"pip install {needs}" in error.value.hint


@pytest.mark.parametrize("method", ["hqq", "quark", None])
def test_another_way_of_quantization_is_refused(
    plain: Path, tmp_path: Path, method: str | None
) -> None:
    made = stated(copied(plain, tmp_path / "m"), {"quant_method": method})
    with pytest.raises(ModelError, match="which is not supported") as error:
        load(source(made), Placement("cpu", "float32"))
    assert "bitsandbytes" in error.value.hint
