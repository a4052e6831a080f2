"""LLaVA-Video in its original layout equals a plain assembly of the same weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import (
    AutoTokenizer,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from sttm_cli.answer import generate
from sttm_cli.base.errors import ModelError
from sttm_cli.base.types import FrameChunk, VisualTokens
from sttm_cli.models.checkpoint import find_checkpoint
from sttm_cli.models.loading import Placement
from sttm_cli.models.registry import load
from sttm_cli.prefill import MergeConfig
from tests.checkpoints_llava import llava_video
from tests.fakes import DictMemo, keep_all
from tests.models.reference import QUESTION, assert_equals_one_pass, prefilled

TIMES, DURATION = (0.0, 1.0, 2.03, 3.0, 4.0, 5.0), 6.4
GEOMETRIES: dict[str, dict[str, Any]] = {
    "7x7": {"seed": 1},
    "5x5": {"seed": 2, "heads": 6, "kv_heads": 3, "layers": 3, "image": 40},
}


@pytest.fixture(params=GEOMETRIES, scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llava_video(tmp_path_factory.mktemp("llava") / "m", **GEOMETRIES[request.param])


@pytest.fixture(params=[False, True], ids=["plain", "newlines"], scope="module")
def newlines(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def model(folder: Path, newlines: bool):
    return loaded(folder, newlines=newlines)


def loaded(folder: Path, newlines: bool = False):
    source = find_checkpoint(str(folder), str(folder), revision=None, memo=DictMemo())
    return load(source, Placement("cpu", "float32"), frozenset({"newlines"} if newlines else ()))


class Assembly:
    """The same weights in a tower, a projector and a decoder, put together by hand."""

    def __init__(self, folder: Path) -> None:
        self.folder, config = folder, json.loads((folder / "config.json").read_text())
        config.pop("rope_scaling")
        weights: dict[str, torch.Tensor] = {}
        for file in folder.glob("*.safetensors"):
            weights |= load_file(file)
        tower = dict(config["vision_config"], num_hidden_layers=2, vision_use_head=False)
        self.tower = SiglipVisionModel(SiglipVisionConfig(**tower)).eval()
        prefix = "model.vision_tower.vision_tower."
        own = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        if "vision_model" not in next(iter(self.tower.state_dict())):
            own = {k.removeprefix("vision_model."): v for k, v in own.items()}
        self.tower.load_state_dict(own)
        self.decoder = Qwen2ForCausalLM(Qwen2Config(**{**config, "model_type": "qwen2"})).eval()
        names = self.decoder.state_dict()
        self.decoder.load_state_dict({k: v for k, v in weights.items() if k in names})
        self.rest = weights
        self.side = config["vision_config"]["image_size"]

    def tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels [T, 3, S, S] -> [T, h, w, C]: tower, projector, 2x bilinear pooling."""
        states = self.tower(pixels, output_hidden_states=True).hidden_states[-1]
        project = "model.mm_projector."
        first = states @ self.rest[project + "0.weight"].T + self.rest[project + "0.bias"]
        second = functional.gelu(first) @ self.rest[project + "2.weight"].T
        out = second + self.rest[project + "2.bias"]
        side = math.isqrt(out.shape[1])
        grid = out.view(-1, side, side, out.shape[2]).permute(0, 3, 1, 2)
        half = math.ceil(side / 2)
        return functional.interpolate(grid, size=[half, half], mode="bilinear").permute(0, 2, 3, 1)

    def inputs(self, tokens: torch.Tensor, text: str, newlines: bool) -> torch.Tensor:
        """Embeddings [L, C] of the prompt, tokenized apart on both sides of the video."""
        rows = tokens.flatten(0, 1)
        if newlines:
            end = self.rest["model.image_newline"].expand(len(rows), 1, -1)
            rows = torch.cat([rows, end], dim=1)
        head, tail = (self.decoder.model.embed_tokens(self.ids(t)) for t in text.split("<image>"))
        return torch.cat([head, rows.flatten(0, 1), tail])

    def ids(self, text: str) -> torch.Tensor:
        return torch.tensor(AutoTokenizer.from_pretrained(self.folder)(text).input_ids)


def prompt_text(question: str) -> str:
    """The prompt as the model card writes it, in the conversation format qwen_1_5."""
    located = ",".join(f"{t:.2f}s" for t in TIMES)
    times = (
        f"The video lasts for {DURATION:.2f} seconds, and {len(TIMES)} frames are uniformly "
        f"sampled from it. These frames are located at {located}.Please answer the following "
        "questions related to this video."
    )
    return (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n<image>\n{times}\n{question}<|im_end|>\n<|im_start|>assistant\n"
    )


def pixels(frames: np.ndarray, side: int) -> torch.Tensor:
    from PIL import Image

    resized = [Image.fromarray(f).resize((side, side), Image.Resampling.BICUBIC) for f in frames]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2) / 255 * 2 - 1


def encoded(model: Any, frames: np.ndarray) -> VisualTokens:
    tokens = model.encode(FrameChunk(frames, TIMES), len(frames))
    return VisualTokens(tokens.features, times_s=TIMES, duration_s=DURATION)


def test_token_ids_equal_those_of_the_model_cards_prompt(model, folder, newlines, frames) -> None:
    prompt = model.prompt(encoded(model, frames))
    assembly, (head, tail) = Assembly(folder), prompt_text(QUESTION).split("<image>")
    before, after = assembly.ids(head).tolist(), assembly.ids(tail).tolist()
    ids = [*prompt.ids.tolist(), *model.question(QUESTION).tolist()]
    assert ids[: len(before)] == before
    assert ids[-len(after) :] == after
    side = prompt.grid[1]
    assert len(ids) - len(before) - len(after) == len(TIMES) * side * (side + newlines)
    assert len(prompt.video) == len(TIMES) * side * side


@torch.inference_mode()
def test_first_token_logits_and_text_equal_the_assembly(model, folder, newlines, frames) -> None:
    assembly = Assembly(folder)
    # Frames at the tower's own size: resizing is compared by itself below.
    frames = np.ascontiguousarray(frames[:, : assembly.side, : assembly.side])
    tokens = assembly.tokens(pixels(frames, assembly.side))
    embeds = assembly.inputs(tokens, prompt_text(QUESTION), newlines)
    wanted = assembly.decoder(inputs_embeds=embeds[None]).logits[0, -1]
    prefix, _ = prefilled(model, encoded(model, frames), MergeConfig(1, keep_all, "reassigned"))
    logits = prefix.extend(model.question(QUESTION))
    prefix.rewind()
    assert torch.allclose(logits, wanted, atol=1e-4)
    assert wanted.std() > 0.1
    ends = sorted(model.end_ids)
    out = assembly.decoder.generate(
        inputs_embeds=embeds[None], do_sample=False, max_new_tokens=12, eos_token_id=ends
    )
    text = AutoTokenizer.from_pretrained(folder).decode(out[0], skip_special_tokens=True)
    made = generate(prefix, model.question(QUESTION), model, max_new_tokens=12)
    assert made.text == text.strip()


def test_frames_are_resized_as_pillow_resizes_them_but_for_rounding(model, folder, frames) -> None:
    assembly = Assembly(folder)
    made = model._frames(torch.from_numpy(frames).permute(0, 3, 1, 2), return_tensors="pt")
    wanted = pixels(frames, assembly.side)
    assert (made["pixel_values_videos"][0] - wanted).abs().max() <= 1.01 / 127.5


@pytest.mark.parametrize("layer", [0, 2])
def test_merged_prefix_then_question_equals_one_pass(model, frames, layer) -> None:
    assert_equals_one_pass(model, encoded(model, frames), layer)


def test_encoding_in_chunks_equals_encoding_at_once(model, frames) -> None:
    whole = model.encode(FrameChunk(frames, TIMES), 6).features
    parts = [model.encode(FrameChunk(frames[i : i + 2], TIMES[:2]), 6) for i in (0, 2, 4)]
    assert torch.allclose(torch.cat([p.features for p in parts]), whole, atol=1e-5)


@torch.inference_mode()
def test_repetition_penalty_counts_the_answer_alone(tmp_path: Path, frames: np.ndarray) -> None:
    # As in the original code, which generates from embeddings and knows no ids of the prompt.
    folder = llava_video(tmp_path / "m", seed=4, generation={"repetition_penalty": 1.5})
    model, assembly = loaded(folder), Assembly(folder)
    tokens = encoded(model, frames)
    prefix, prompt = prefilled(model, tokens, MergeConfig(2, keep_all, "reassigned"))
    made = generate(prefix, model.question(QUESTION), model, max_new_tokens=16)
    embeds = torch.cat([model.embed_prompt(prompt, tokens), model.embed(model.question(QUESTION))])
    out = assembly.decoder.generate(
        inputs_embeds=embeds[None],
        do_sample=False,
        max_new_tokens=16,
        repetition_penalty=1.5,
        eos_token_id=sorted(model.end_ids),
    )
    assert list(made.ids) == [i for i in out[0].tolist() if i not in model.end_ids]


def test_follow_up_turns_go_on_behind_the_prompt(model) -> None:
    first = model.question(QUESTION).tolist()
    both = model.question("how many shapes?", [(QUESTION, "blue")]).tolist()
    assert both[: len(first)] == first


def test_an_unknown_tower_or_pooling_is_refused(tmp_path: Path) -> None:
    folder = llava_video(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "mm_spatial_pool_mode": "average"}))
    with pytest.raises(ModelError, match="average"):
        loaded(folder)


def test_a_shard_without_its_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = llava_video(tmp_path / "m")
    shard = folder / "model-00001-of-00002.safetensors"
    weights = load_file(shard)
    gone = next(name for name in weights if "layers" in name)
    del weights[gone]
    save_file(weights, shard, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="lacks 1 weights"):
        loaded(folder)
