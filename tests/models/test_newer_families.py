"""The families of 2026 agree with transformers' own processor, ids and generation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.video_utils import VideoMetadata

from sttm_cli.base.types import FrameChunk, VisualTokens
from sttm_cli.models.checkpoint import find_checkpoint
from sttm_cli.models.loading import Placement
from sttm_cli.models.registry import family_of, load, token_count
from tests.checkpoints_gemma import gemma4
from tests.checkpoints_glm import glm
from tests.checkpoints_minicpm import minicpm
from tests.checkpoints_molmo import molmo2
from tests.checkpoints_perception import perception_lm
from tests.checkpoints_videollama import videollama
from tests.fakes import DictMemo
from tests.models.reference import QUESTION, assert_equals_one_pass, assert_equals_transformers


class Case(NamedTuple):
    """A checkpoint, the frames shown to it [T, H, W], and options of transformers' processor."""

    write: Callable[[Path], Path]
    shape: tuple[int, int, int]
    options: Mapping[str, Any] = MappingProxyType({})


CASES = {
    "glm4v-5x7": Case(partial(glm, family="glm4v"), (6, 80, 112)),
    "glm4v-odd": Case(
        partial(glm, family="glm4v", seed=1, heads=6, kv_heads=3, rotated=1.0, pixels=7 * 40 * 56),
        (7, 90, 40),
    ),
    "glm4v_moe": Case(partial(glm, family="glm4v_moe", seed=2), (5, 80, 112)),
    "glm46v": Case(partial(glm, family="glm46v", seed=3), (7, 64, 96)),
}
_WHOLE = {"use_token_compression": False}
CASES |= {
    "videollama3-5x7": Case(videollama, (6, 80, 112), _WHOLE),
    "videollama3-odd": Case(
        partial(videollama, seed=1, heads=6, kv_heads=3, pixels=(32 * 32, 7 * 40 * 56)),
        (7, 90, 40),
        _WHOLE,
    ),
}
CASES |= {
    "perception_lm-3x3": Case(perception_lm, (6, 64, 96)),
    "perception_lm-5x5": Case(
        partial(perception_lm, seed=1, heads=6, kv_heads=3, image=80), (5, 90, 40)
    ),
}
CASES |= {
    "molmo2-3x3": Case(partial(molmo2, scaled=[1, 3]), (6, 64, 96)),
    "molmo2-4x4": Case(
        partial(molmo2, seed=1, heads=6, kv_heads=3, image=80, columns=True), (5, 90, 40)
    ),
}
_ONE_VIEW = {"max_slice_nums": 1, "use_image_id": False}
CASES |= {
    "minicpm-16x": Case(minicpm, (6, 64, 96), _ONE_VIEW),
    "minicpm-4x": Case(
        partial(minicpm, seed=1, heads=6, kv_heads=3, scale=40, mode="4x"), (5, 90, 40), _ONE_VIEW
    ),
}
CASES |= {
    "gemma4-small-6x10": Case(gemma4, (6, 64, 96)),
    "gemma4-small-odd": Case(
        partial(gemma4, seed=1, heads=6, window=16, soft_tokens=140), (5, 90, 40)
    ),
    "gemma4-large": Case(partial(gemma4, size="large", seed=2), (6, 64, 96)),
    "gemma4-unified": Case(partial(gemma4, size="unified", seed=4), (6, 64, 96)),
    "gemma4-experts": Case(partial(gemma4, size="experts", seed=3, window=40), (5, 80, 112)),
}
FPS = 0.4
"""Frames at 0, 2.5, 5.0 s, ...: tenths of a second, and more than a minute in few frames."""


class Loaded(NamedTuple):
    """A case on disk, the family's model of it, and what it is shown."""

    case: Case
    folder: Path
    model: Any
    frames: np.ndarray

    @property
    def tokens(self) -> VisualTokens:
        made = self.encoded(0, len(self.frames))
        times = tuple(i / FPS for i in range(len(self.frames)))
        return VisualTokens(made.features, made.deep, times, len(self.frames) / FPS)

    def encoded(self, start: int, end: int) -> VisualTokens:
        times = tuple(i / FPS for i in range(start, end))
        return self.model.encode(FrameChunk(self.frames[start:end], times), len(self.frames))


@pytest.fixture(scope="module", params=CASES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    case = CASES[request.param]
    if "perception" in request.param:
        pytest.importorskip("timm", reason="Perception-LM's tower is timm's")
    folder = case.write(tmp_path_factory.mktemp("newer") / "m")
    frames = np.random.default_rng(3).integers(0, 255, (*case.shape, 3)).astype(np.uint8)
    return Loaded(case, folder, load(source(folder), Placement("cpu", "float32")), frames)


def source(folder: Path):
    return find_checkpoint(str(folder), str(folder), revision=None, memo=DictMemo())


def reference(loaded: Loaded):
    """transformers alone: its model, its processor, its inputs for the same frames."""
    processor = AutoProcessor.from_pretrained(loaded.folder)
    count = len(loaded.frames)
    seen = VideoMetadata(total_num_frames=count, fps=FPS, frames_indices=list(range(count)))
    video = {"type": "video", "video": loaded.frames}
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": [video, {"type": "text", "text": QUESTION}]}],
        add_generation_prompt=True,
        enable_thinking=False,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={
            "do_sample_frames": False,
            "video_metadata": [[seen]],
            **loaded.case.options,
        },
    )
    inputs.pop("video_metadata", None)
    model = AutoModelForImageTextToText.from_pretrained(loaded.folder, dtype=torch.float32)
    return model.eval(), processor, inputs


def test_ids_logits_and_text_equal_transformers(loaded: Loaded) -> None:
    assert_equals_transformers(loaded.model, loaded.tokens, *reference(loaded))


@pytest.mark.parametrize("layer", [0, 1, "default"])
def test_merged_prefix_then_question_equals_one_pass(loaded: Loaded, layer: int | str) -> None:
    k = family_of(source(loaded.folder)).merge_layer if layer == "default" else layer
    assert_equals_one_pass(loaded.model, loaded.tokens, int(k))


def test_encoding_in_chunks_equals_encoding_at_once(loaded: Loaded) -> None:
    ends = [*range(0, len(loaded.frames), 2), len(loaded.frames)]
    parts = [loaded.encoded(a, b).features for a, b in pairwise(ends)]
    assert torch.allclose(torch.cat(parts), loaded.tokens.features, atol=1e-5)


def test_tokens_are_counted_from_the_files_alone(loaded: Loaded) -> None:
    frames, height, width = loaded.case.shape
    counted = token_count(source(loaded.folder), frames, width=width, height=height)
    assert counted is not None
    time, rows, columns = loaded.tokens.grid
    # A bound for frames that keep their aspect ratio, reached where the sides need no rounding.
    assert counted.visual >= time * rows * columns
    assert counted.visual == time * rows * columns or width == 40


@pytest.mark.parametrize("loaded", [c for c in CASES if "glm" in c], indirect=True)
def test_rotary_ids_equal_the_models_own(loaded: Loaded) -> None:
    model, _, inputs = reference(loaded)
    known = {k: inputs[k] for k in ("video_grid_thw", "mm_token_type_ids")}
    wanted, _ = model.model.get_rope_index(inputs["input_ids"], **known)
    prompt, count = loaded.model.prompt(loaded.tokens), len(loaded.model.question(QUESTION))
    assert torch.equal(prompt.positions, wanted[:, 0, :-count])
    after = prompt.next_position + torch.arange(count)
    assert torch.equal(after.expand(3, -1), wanted[:, 0, -count:])
