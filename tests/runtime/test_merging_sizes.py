"""`merging` with sizes in attention answers as `VideoQA` does with the same setting."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import DynamicCache
from transformers.integrations import flash_attention

import sttm_cli
from sttm_cli.base.errors import UsageError
from tests.merged import FAMILIES, NO_BEAMS, QUESTION, Case, case_of, scored, state_of, video_qa
from tests.models.test_attention import as_flash_attention_computes

pytestmark = pytest.mark.long

GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": -1}
KEPT = {"return_dict_in_generate": True, "output_logits": True}
ON = {"budget": 0.3, "attention_sizes": "on"}


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case_of(request.param, tmp_path_factory.mktemp("sizes") / request.param)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    assert theirs.std() > 0.1
    return torch.allclose(ours, theirs, atol=1e-4)


def test_answers_beams_and_a_next_turn_are_those_of_video_qa(case: Case) -> None:
    with video_qa(case, **ON) as (qa, prepared, question):
        turn = qa.model().answer("how many shapes are there?")
        with sttm_cli.merging(case.model, **ON):
            first = case.model.generate(**case.inputs, **GREEDY, **KEPT)
            whole = case.model.generate(**case.inputs, **GREEDY, use_cache=False)
            beams = None
            if case.family not in NO_BEAMS:
                beams = case.model.generate(
                    **case.inputs, **GREEDY, **KEPT, num_beams=3, num_return_sequences=2,
                    output_scores=True, length_penalty=0.0,
                )  # fmt: skip
            so_far = torch.cat([first.sequences, turn[None]], dim=1)
            second = case.model.generate(
                input_ids=so_far, past_key_values=first.past_key_values, **GREEDY, **KEPT
            )
        new = first.sequences[0, case.length :]
        wanted = scored(prepared.prefix, question, new)
        assert close(torch.stack(first.logits, dim=1)[0], wanted)
        assert torch.equal(whole, first.sequences)
        for sequence, score in zip(*of(beams), strict=True):
            new = sequence[case.length :]
            found = scored(prepared.prefix, question, new).log_softmax(-1)
            assert torch.isclose(found.gather(1, new[:, None]).sum(), score, atol=1e-3)
        before = torch.cat([question, so_far[0, case.length :]])
        later = scored(prepared.prefix, before, second.sequences[0, so_far.shape[1] :])
        assert close(torch.stack(second.logits, dim=1)[0], later)
    with sttm_cli.merging(case.model, budget=0.3):
        off = case.model(**case.inputs).logits[0, -1]
    assert not close(off, wanted[0])


def of(beams: Any) -> tuple[Any, Any]:
    return ((), ()) if beams is None else (beams.sequences, beams.sequences_scores)


def test_budget_1_gives_the_plain_models_bits_and_the_model_is_as_before(case: Case) -> None:
    wanted = case.model(**case.inputs).logits
    made = case.model.generate(**case.inputs, **GREEDY)
    before = state_of(case.model)
    with sttm_cli.merging(case.model, budget=1.0, attention_sizes="on"):
        assert torch.equal(case.model(**case.inputs).logits, wanted)
        assert torch.equal(case.model.generate(**case.inputs, **GREEDY), made)
    # transformers keeps the ids' offset of its own last prompt.
    case.model(**case.inputs)
    assert state_of(case.model) == before
    with pytest.raises(RuntimeError, match="broken"):
        interrupted(case)
    assert torch.equal(case.model(**case.inputs).logits, wanted)
    assert state_of(case.model) == before


def interrupted(case: Case) -> None:
    with sttm_cli.merging(case.model, **ON):
        handle = case.model.get_decoder().layers[-1].register_forward_pre_hook(broken)
        try:
            case.model(**case.inputs)
        finally:
            handle.remove()


def broken(*args: Any) -> None:
    raise RuntimeError("broken layer")


def test_a_batch_with_padding_answers_as_each_of_its_rows(llava: Case) -> None:
    still = llava.frames[::-1].copy()
    still[:4] = still[0]
    alone = [llava.inputs, llava.asking(QUESTION, still)]
    pads = (3, 3)
    rows = []
    for each, count in zip(alone, pads, strict=True):
        row = dict(each)
        for name in ("input_ids", "attention_mask"):
            row[name] = torch.nn.functional.pad(row[name], (count, 0))
        rows.append(row)
    batch = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    how = {"spatial_threshold": 0.8, "temporal_threshold": 0.7, "attention_sizes": "on"}
    with sttm_cli.merging(llava.model, **how) as stats:
        wanted, kept = [], []
        for each in alone:
            made = llava.model.generate(**each, **GREEDY, **KEPT)
            wanted.append(torch.stack(made.logits, dim=1)[0])
            kept.append(stats.video_kept)
        out = llava.model.generate(**batch, **GREEDY, **KEPT)
    assert kept[0] != kept[1]
    assert close(torch.stack(out.logits, dim=1), torch.stack(wanted))


def test_sizes_go_with_a_cache_that_is_reordered_cropped_and_kept(llava: Case) -> None:
    ids = llava.inputs["input_ids"]
    with sttm_cli.merging(llava.model, **ON), torch.no_grad():
        wanted = llava.model(**llava.inputs).logits[0, -4:]
        cache = llava.model(**llava.inputs, use_cache=True).past_key_values
        cache.crop(-4)
        cache.batch_repeat_interleave(2)
        cache.reorder_cache(torch.tensor([1, 0]))
    kept = copy.deepcopy(cache)
    given = {"input_ids": ids[:, -4:].expand(2, -1), "use_cache": True}
    with sttm_cli.merging(llava.model, attention_sizes="on"), torch.no_grad():
        found = llava.model(**given, past_key_values=cache).logits
    assert torch.allclose(found, wanted.expand(2, -1, -1), atol=1e-5)
    with (
        sttm_cli.merging(llava.model, budget=0.3),
        pytest.raises(UsageError, match='give attention_sizes="on"'),
    ):
        llava.model(**given, past_key_values=kept)


def test_rows_of_a_cache_keep_their_own_sizes(llava: Case) -> None:
    other = llava.asking(QUESTION, llava.frames[::-1].copy())
    batch = {name: torch.cat([llava.inputs[name], other[name]]) for name in other}
    new = llava.inputs["input_ids"][:, -3:]
    how = {"spatial_threshold": 0.9, "temporal_threshold": 0.7, "attention_sizes": "on"}
    with sttm_cli.merging(llava.model, **how), torch.no_grad():
        alone = llava.model(**other, use_cache=True).past_key_values
        wanted = llava.model(input_ids=new, past_key_values=alone).logits
        cache = llava.model(**batch, use_cache=True).past_key_values
        cache.reorder_cache(torch.tensor([1, 0]))
        found = llava.model(input_ids=new.expand(2, -1), past_key_values=cache).logits
    assert torch.allclose(found[:1], wanted, atol=1e-5)
    assert not torch.allclose(found[1:], wanted, atol=1e-3)


def test_a_cache_without_sizes_goes_on_without_them(llava: Case) -> None:
    new = llava.inputs["input_ids"][:, -3:]
    with sttm_cli.merging(llava.model, budget=0.3), torch.no_grad():
        cache = llava.model(**llava.inputs, use_cache=True).past_key_values
        kept = copy.deepcopy(cache)
        wanted = llava.model(input_ids=new, past_key_values=cache).logits
    with sttm_cli.merging(llava.model, **ON), torch.no_grad():
        found = llava.model(input_ids=new, past_key_values=kept).logits
        text = llava.processor.tokenizer(QUESTION, return_tensors="pt")
        plain = llava.model(**text).logits
    assert torch.equal(found, wanted)
    assert torch.equal(plain, llava.model(**text).logits)


def test_a_video_after_text_in_the_cache_counts_its_sizes(llava: Case) -> None:
    ids = llava.inputs["input_ids"]
    start = int((ids[0] == llava.model.config.video_token_id).nonzero()[0]) - 1
    with sttm_cli.merging(llava.model, **ON), torch.no_grad():
        wanted = llava.model.generate(**llava.inputs, **GREEDY, **KEPT)
        cache = DynamicCache()
        llava.model(input_ids=ids[:, :start], past_key_values=cache, use_cache=True)
        found = llava.model.generate(**llava.inputs, past_key_values=cache, **GREEDY, **KEPT)
    assert torch.allclose(torch.stack(found.logits), torch.stack(wanted.logits), atol=1e-5)


def test_threads_in_one_block_count_their_own_sizes(llava: Case) -> None:
    other = llava.asking(QUESTION, llava.frames[:4])
    given, found = [llava.inputs, other] * 3, {}
    with sttm_cli.merging(llava.model, **ON):
        wanted = [llava.model.generate(**each, **GREEDY) for each in given]

        def run(index: int) -> None:
            found[index] = llava.model.generate(**given[index], **GREEDY)

        threads = [threading.Thread(target=run, args=(i,)) for i in range(len(given))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(torch.equal(found[i], wanted[i]) for i in range(len(given)))


@pytest.mark.parametrize("pads", [0, 3])
def test_flash_attention_counts_sizes_too(
    pads: int, llava: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counted(query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(1)
        # Padding on the left alone, cut off as the kernel's wrapper does.
        pad = 0 if mask is None else int((~mask.bool()).sum())
        gone = min(pad, query.shape[1] - 1)
        rest = (query[:, gone:], key[:, pad:], value[:, pad:])
        out = as_flash_attention_computes(*rest, None, **{**kwargs, "position_ids": None})
        return torch.nn.functional.pad(out, (0, 0, 0, 0, gone, 0))

    monkeypatch.setattr(flash_attention, "_flash_attention_forward", counted)
    inputs = dict(llava.inputs)
    for name in ("input_ids", "attention_mask"):
        inputs[name] = torch.nn.functional.pad(inputs[name], (pads, 0))
    with sttm_cli.merging(llava.model, **ON):
        wanted = llava.model.generate(**inputs, **GREEDY, **KEPT)
    config = llava.model.get_decoder().config
    monkeypatch.setattr(config, "_attn_implementation_internal", "flash_attention_2")
    with sttm_cli.merging(llava.model, **ON):
        found = llava.model.generate(**inputs, **GREEDY, **KEPT)
    assert calls
    assert torch.allclose(torch.stack(found.logits), torch.stack(wanted.logits), atol=1e-4)


def test_what_cannot_count_sizes_is_refused_by_name(
    llava: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state_of(llava.model)
    with (
        pytest.raises(UsageError, match="attention_sizes 'yes' is not known"),
        sttm_cli.merging(llava.model, attention_sizes="yes"),
    ):
        pass
    config = llava.model.get_decoder().config
    with monkeypatch.context() as patch:
        patch.setattr(config, "_attn_implementation_internal", "eager")
        with (
            pytest.raises(UsageError, match="cannot be combined with the attention 'eager'"),
            sttm_cli.merging(llava.model, attention_sizes="on"),
        ):
            pass
        # Where nobody asked for sizes, a method goes without them.
        with sttm_cli.merging(llava.model, method="anchors"):
            pass
    assert state_of(llava.model) == before


def test_other_methods_count_their_sizes_as_video_qa_does(cases: Callable[[str], Case]) -> None:
    case = cases("qwen2_5_vl")
    for method in ("tome", "pooling", "evs"):
        with video_qa(case, method=method, **ON) as (_, prepared, question):
            wanted = prepared.prefix.extend(question)
        with sttm_cli.merging(case.model, method=method, **ON):
            assert close(case.model(**case.inputs).logits[0, -1], wanted), method
