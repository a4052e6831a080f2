"""A system prompt stands before the video, where it is part of what a stored KV is known by."""

from __future__ import annotations

from pathlib import Path

import pytest

from sttm_cli import VideoQA
from sttm_cli.base.errors import ModelError, UsageError
from sttm_cli.models.families.llava_qwen import TEMPLATE
from sttm_cli.models.template import render
from sttm_cli.settings.settings import Settings
from tests.cli.process import sttm_here
from tests.cli.test_ask import QUESTION, SAMPLE

SYSTEM = "answer in one word"


def test_the_prompt_is_the_templates_own_with_a_system_turn(random_model: Path) -> None:
    with VideoQA(model=str(random_model), system=SYSTEM) as qa:
        model = qa.model()
        ours = [*model.head_ids(), *model.question(QUESTION).tolist()]  # type: ignore[attr-defined]
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(random_model)
    messages = [
        {"role": "system", "content": [{"type": "text", "text": SYSTEM}]},
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": QUESTION}]},
    ]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    head, tail = text.split(processor.video_token)
    tokenizer = processor.tokenizer
    assert ours == tokenizer(head).input_ids + tokenizer(tail, add_special_tokens=False).input_ids


def test_another_system_prompt_is_another_entry_and_changes_the_answer(random_model: Path) -> None:
    found = [
        sttm_here(
            "ask", SAMPLE, QUESTION, "-m", random_model, "--json", "--max-new-tokens", 8, *more
        )
        for more in ((), ("--system", SYSTEM), ("--system", "be long"), ("--system", SYSTEM))
    ]
    reports = [ended.json for ended in found]
    assert [r["cache"]["hit"] for r in reports] == [False, False, False, True]
    assert "prompt.system" in reports[1]["cache"]["miss_reason"]
    assert len({r["cache"]["key"] for r in reports}) == 3
    assert reports[1]["tokens"]["prefix"] > reports[0]["tokens"]["prefix"]
    assert reports[3]["answers"] == reports[1]["answers"]


def test_what_precompute_stored_with_a_system_prompt_is_used(random_model: Path) -> None:
    flags = ("-m", random_model, "--system", SYSTEM)
    assert sttm_here("precompute", SAMPLE, *flags).code == 0
    assert sttm_here("ask", SAMPLE, QUESTION, *flags, "--json").json["cache"]["hit"]


def test_sessions_that_share_a_model_keep_their_own_system_prompts(random_model: Path) -> None:
    with VideoQA(model=str(random_model), max_new_tokens=6) as plain:
        before = plain.ask(SAMPLE, QUESTION).text
        with plain.with_settings(
            Settings(model=str(random_model), max_new_tokens=6, system=SYSTEM)
        ) as told:
            assert told.prepare(SAMPLE).kv.tokens.prefix > plain.prepare(SAMPLE).kv.tokens.prefix
        assert plain.ask(SAMPLE, QUESTION).text == before


def test_a_template_without_a_place_for_it_and_a_control_token_are_refused(
    random_model: Path,
) -> None:
    with VideoQA(model=str(random_model)) as qa:
        model = qa.model()
        deaf = model.with_system(SYSTEM)
        deaf._template = (  # type: ignore[attr-defined]
            "{% for m in messages if m.role == 'user' %}<video>{{ m.content[-1].text }}{% endfor %}"
        )
        with pytest.raises(ModelError, match="no place for a system prompt"):
            deaf.question(QUESTION)
        with pytest.raises(UsageError, match="control token"):
            model.with_system("a <video> of")


def test_the_llava_video_template_says_its_own_system_prompt_only_without_another() -> None:
    user = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "what?"}]}
    system = {"role": "system", "content": [{"type": "text", "text": SYSTEM}]}
    assert render(TEMPLATE, [user], {}).startswith(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<image>\nwhat?"
    )
    told = render(TEMPLATE, [system, user], {})
    assert told.startswith(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n<image>")
    assert "helpful assistant" not in told
