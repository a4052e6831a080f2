"""The shipped folder is an ordinary LLaVA-OneVision checkpoint."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, LlavaOnevisionForConditionalGeneration

from sttm_cli.tiny.questions import TEMPLATES
from sttm_cli.tiny.training.write_checkpoint import (
    CHAT_TEMPLATE,
    FOLDER,
    make_tokenizer,
    vocabulary,
)

MOST_BYTES = 16 * 2**20


@cache
def processor() -> Any:
    return AutoProcessor.from_pretrained(FOLDER)


@cache
def model() -> Any:
    return LlavaOnevisionForConditionalGeneration.from_pretrained(FOLDER).eval()


def test_the_whole_folder_is_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*")) <= MOST_BYTES


def test_the_weights_are_complete_and_finite() -> None:
    _, loading = LlavaOnevisionForConditionalGeneration.from_pretrained(
        FOLDER, output_loading_info=True
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert all(p.isfinite().all() for p in model().parameters())


def test_the_stored_tokenizer_is_the_one_that_training_used() -> None:
    assert processor().tokenizer.get_vocab() == make_tokenizer().get_vocab()
    assert processor().chat_template == CHAT_TEMPLATE


def test_known_words_survive_encoding_and_decoding() -> None:
    tokenizer = processor().tokenizer
    for templates in TEMPLATES.values():
        for template in templates:
            text = template.format(x="red circle", y="square")
            ids = tokenizer(text).input_ids
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == text.rstrip("?").replace(",", "")


@pytest.mark.parametrize(
    "spelling",
    ["What COLOR is the circle??", "what color is the circle", "What's color the circle"],
)
def test_case_and_punctuation_do_not_matter(spelling: str) -> None:
    words = set(processor().tokenizer.decode(processor().tokenizer(spelling).input_ids).split())
    assert words == {"what", "color", "is", "the", "circle"}


def test_unknown_words_and_scripts_are_unknown_not_an_error() -> None:
    tokenizer = processor().tokenizer
    ids = tokenizer("pourquoi 猫 \U0001f600 circle \x00").input_ids
    assert tokenizer.unk_token_id in ids
    assert ids.count(vocabulary().index("circle")) == 1


def test_the_chat_layout_puts_the_video_first_and_the_question_on_its_own_line() -> None:
    turn = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "how many?"}]}
    text = processor().apply_chat_template([turn], add_generation_prompt=True)
    assert text == "<|im_start|>user <video>\nhow many?<|im_end|><|im_start|>assistant\n"


def test_further_turns_follow_in_the_same_layout() -> None:
    turns = [
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "one?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "two"}]},
        {"role": "user", "content": "three?"},
    ]
    assert processor().apply_chat_template(turns, add_generation_prompt=True) == (
        "<|im_start|>user <video>\none?<|im_end|><|im_start|>assistant \ntwo<|im_end|>"
        "<|im_start|>user \nthree?<|im_end|><|im_start|>assistant\n"
    )


def test_transformers_own_generate_answers_and_stops() -> None:
    frames = np.full((3, 200, 320, 3), 90, np.uint8)
    text = "<|im_start|>user <video>\nhow many shapes?<|im_end|><|im_start|>assistant\n"
    inputs = processor()(
        text=text, videos=[torch.from_numpy(frames).permute(0, 3, 1, 2)], return_tensors="pt"
    )
    assert inputs["pixel_values_videos"].shape == (1, 3, 3, 112, 112)
    assert (inputs["input_ids"] == processor().video_token_id).sum() == 3 * 49 + 1
    made = model().generate(**inputs.to(model().dtype))[0, inputs["input_ids"].shape[1] :]
    assert made[-1] == vocabulary().index("<|im_end|>")
    assert processor().decode(made, skip_special_tokens=True)
