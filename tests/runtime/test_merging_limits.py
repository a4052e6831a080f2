"""What a `merging` block leaves behind, and what it gets along with."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    DynamicCache,
    StaticCache,
    pipeline,
)
from transformers.integrations import flash_attention
from transformers.video_utils import VideoMetadata

import sttm_cli
from sttm_cli.base.errors import UsageError
from tests.merged import FAMILIES, QUESTION, Case, state_of
from tests.models.test_attention import as_flash_attention_computes

GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": -1}
KEPT = {"return_dict_in_generate": True, "output_logits": True}


# ---- afterwards


@pytest.mark.parametrize("family", FAMILIES)
def test_afterwards_the_model_is_as_it_was_also_after_an_exception(
    family: str, cases: Callable[[str], Case]
) -> None:
    case = cases(family)
    model = case.model
    # transformers itself leaves hooks in a tower at its first use.
    case_tower_used(case)
    before = state_of(model)
    with sttm_cli.merging(model, budget=0.3):
        assert state_of(model) != before
        case.model.generate(**case.inputs, **GREEDY)
        case.model(**case.inputs)
    assert state_of(model) == before
    with pytest.raises(UsageError), sttm_cli.merging(model, budget=0.3):
        case.model(**case.inputs, past_key_values=StaticCache(model.config, max_cache_len=400))
    assert state_of(model) == before

    def broken(*args: Any) -> None:
        raise RuntimeError("broken layer")

    def interrupted() -> None:
        with sttm_cli.merging(model, budget=0.3):
            handle = model.get_decoder().layers[-1].register_forward_pre_hook(broken)
            try:
                model(**case.inputs)
            finally:
                handle.remove()

    with pytest.raises(RuntimeError, match="broken layer"):
        interrupted()
    assert state_of(model) == before


def case_tower_used(case: Case) -> None:
    deltas = getattr(case.model.model, "rope_deltas", None)
    case.model(**case.inputs)
    if hasattr(case.model.model, "rope_deltas"):
        case.model.model.rope_deltas = deltas


def test_a_prompt_without_a_video_is_left_alone(qwen: Case) -> None:
    ids = qwen.processor.tokenizer(QUESTION, return_tensors="pt")
    wanted = qwen.model.generate(**ids, **GREEDY, **KEPT)
    with sttm_cli.merging(qwen.model, budget=0.3) as stats:
        out = qwen.model.generate(**ids, **GREEDY, **KEPT)
    assert torch.equal(out.sequences, wanted.sequences)
    assert stats == sttm_cli.MergingStats()


def test_logits_stay_at_their_tokens_and_merged_ones_have_none(llava: Case) -> None:
    ids = llava.inputs["input_ids"]
    labels = torch.where(torch.arange(ids.shape[1]) < ids.shape[1] - 6, -100, ids)
    with sttm_cli.merging(llava.model, budget=0.3) as stats, torch.no_grad():
        out = llava.model(**llava.inputs, labels=labels)
        last = llava.model(**llava.inputs, logits_to_keep=4).logits
        pair = llava.model(**llava.inputs, return_dict=False)
    assert out.logits.shape[:2] == ids.shape
    gone = out.logits.isnan().all(-1)[0]
    assert int(gone.sum()) == stats.video_full - stats.video_kept
    video = ids[0] == llava.model.config.video_token_id
    assert not (gone & ~video).any()
    assert torch.equal(last[0], out.logits[0, -4:])
    assert torch.equal(pair[0][0, -1], out.logits[0, -1])
    wanted = torch.nn.functional.cross_entropy(out.logits[0, -7:-1], ids[0, -6:])
    assert torch.isclose(out.loss, wanted)


# ---- one block, several threads, several caches


def test_a_block_in_a_block_of_the_same_model_is_refused(llava: Case, qwen: Case) -> None:
    with sttm_cli.merging(llava.model, budget=0.3):
        with (
            pytest.raises(UsageError, match=r"another sttm_cli\.merging block"),
            sttm_cli.merging(llava.model, budget=0.5),
        ):
            pass
        with sttm_cli.merging(qwen.model, budget=0.5):
            pass
        errors: list[BaseException] = []

        def enter() -> None:
            try:
                with sttm_cli.merging(llava.model, budget=0.5):
                    pass
            except UsageError as error:
                errors.append(error)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        assert errors
    with sttm_cli.merging(llava.model, budget=0.5):
        pass


def test_threads_in_one_block_do_not_disturb_each_other(llava: Case) -> None:
    other = llava.asking("how many shapes are there?", llava.frames[:4])
    given = [llava.inputs, other] * 3
    with sttm_cli.merging(llava.model, budget=0.3):
        wanted = [llava.model.generate(**each, **GREEDY) for each in given]
        found: dict[int, torch.Tensor] = {}

        def run(index: int) -> None:
            found[index] = llava.model.generate(**given[index], **GREEDY)

        threads = [threading.Thread(target=run, args=(i,)) for i in range(len(given))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(torch.equal(found[i], wanted[i]) for i in range(len(given)))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_a_cache_goes_on_after_another_video_and_in_another_block(
    family: str, cases: Callable[[str], Case]
) -> None:
    case = cases(family)
    with sttm_cli.merging(case.model, budget=0.3):
        first = case.model.generate(**case.inputs, **GREEDY, **KEPT)
        later, again = (copy.deepcopy(first.past_key_values) for _ in range(2))
        turn = torch.cat([first.sequences, case.inputs["input_ids"][:, -5:]], dim=1)
        wanted = case.model.generate(
            input_ids=turn, past_key_values=first.past_key_values, **GREEDY, **KEPT
        )
        case.model.generate(**case.asking(QUESTION, case.frames[:4]), **GREEDY)
        found = case.model.generate(input_ids=turn, past_key_values=later, **GREEDY, **KEPT)
    assert torch.equal(torch.stack(found.logits), torch.stack(wanted.logits))
    with sttm_cli.merging(case.model, budget=0.5):
        found = case.model.generate(input_ids=turn, past_key_values=again, **GREEDY, **KEPT)
    assert torch.equal(torch.stack(found.logits), torch.stack(wanted.logits))


@pytest.mark.parametrize("pads", [0, 2])
def test_a_video_may_come_after_text_that_is_in_the_cache(pads: int, llava: Case) -> None:
    inputs = dict(llava.inputs)
    for name, value in (("input_ids", 0), ("attention_mask", 0)):
        inputs[name] = torch.nn.functional.pad(inputs[name], (pads, 0), value=value)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    start = int((ids[0] == llava.model.config.video_token_id).nonzero()[0]) - 1
    with sttm_cli.merging(llava.model, budget=0.3):
        wanted = llava.model.generate(**inputs, **GREEDY, **KEPT)
        cache = DynamicCache()
        given = {"attention_mask": mask[:, :start], "past_key_values": cache}
        places = (mask[:, :start].cumsum(-1) - 1).clamp(min=0)
        llava.model(input_ids=ids[:, :start], position_ids=places, use_cache=True, **given)
        found = llava.model.generate(**inputs, past_key_values=cache, **GREEDY, **KEPT)
    assert torch.allclose(torch.stack(found.logits), torch.stack(wanted.logits), atol=1e-5)


# ---- kernels, generation modes, pipelines


@pytest.mark.parametrize("family", ["llava_onevision", "qwen3_vl"])
def test_kernels_that_make_their_own_masks_give_the_same_answer(
    family: str, cases: Callable[[str], Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    case, calls = cases(family), []

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(1)
        ids = kwargs.get("position_ids")
        assert ids is None or ids.shape[-1] == args[0].shape[1]
        return as_flash_attention_computes(*args, **kwargs)

    monkeypatch.setattr(flash_attention, "_flash_attention_forward", counted)
    decoder = case.model.get_decoder()
    with sttm_cli.merging(case.model, budget=0.3):
        wanted = case.model.generate(**case.inputs, **GREEDY, **KEPT)
        for kernel in ("eager", "flash_attention_2"):
            monkeypatch.setattr(decoder.config, "_attn_implementation_internal", kernel)
            found = case.model.generate(**case.inputs, **GREEDY, **KEPT)
            assert torch.allclose(
                torch.stack(found.logits), torch.stack(wanted.logits), atol=1e-4
            ), kernel
    assert calls


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl"])
def test_assisted_decoding_gives_the_greedy_answer(
    family: str, cases: Callable[[str], Case]
) -> None:
    case = cases(family)
    helper = copy.deepcopy(case.model)
    long = {**GREEDY, "max_new_tokens": 12}
    with sttm_cli.merging(case.model, budget=0.3):
        wanted = case.model.generate(**case.inputs, **long)
        guessed = case.model.generate(**case.inputs, **long, prompt_lookup_num_tokens=3)
        helped = case.model.generate(**case.inputs, **long, assistant_model=helper)
    assert torch.equal(guessed, wanted)
    assert torch.equal(helped, wanted)


@pytest.mark.parametrize("task", ["image-text-to-text", "any-to-any"])
def test_a_pipeline_inside_of_a_block_merges(task: str, qwen: Case) -> None:
    content = [{"type": "video", "video": qwen.frames}, {"type": "text", "text": QUESTION}]
    seen = VideoMetadata(total_num_frames=8, fps=1.0, duration=8.0, frames_indices=list(range(8)))
    ask = pipeline(task, model=qwen.model, processor=qwen.processor)
    with sttm_cli.merging(qwen.model, budget=0.3) as stats:
        wanted = qwen.model.generate(**qwen.inputs, do_sample=False, max_new_tokens=6)
        stats.video_kept = None
        out = ask(
            text=[{"role": "user", "content": content}],
            max_new_tokens=6,
            return_full_text=False,
            processor_kwargs={"do_sample_frames": False, "video_metadata": [seen]},
        )
    text = qwen.processor.decode(wanted[0, qwen.length :], skip_special_tokens=True)
    assert out[0]["generated_text"] == text
    assert stats.video_kept is not None
