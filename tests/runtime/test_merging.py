"""Inside of a `merging` block a transformers model answers as `VideoQA` does, in every family."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache

import sttm_cli
from sttm_cli.base.errors import UsageError
from tests.merged import FAMILIES, NO_BEAMS, QUESTION, Case, case_of, scored, video_qa

BUDGETS = (0.5, 0.3)
GREEDY = {"do_sample": False, "max_new_tokens": 8}
KEPT = {"return_dict_in_generate": True, "output_logits": True}
NEXT = "how many shapes are there?"
RECURRENT = ("qwen3_5", "qwen3_5_moe")


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case_of(request.param, tmp_path_factory.mktemp("merging") / request.param)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    assert theirs.std() > 0.1
    return torch.allclose(ours, theirs, atol=1e-4)


def test_budget_1_gives_the_plain_models_bits(case: Case) -> None:
    model, inputs = case.model, case.inputs
    wanted = model(**inputs, output_hidden_states=True)
    beams = {**GREEDY, "num_beams": 3, "num_return_sequences": 2}
    ways = (GREEDY,) if case.family in NO_BEAMS else (GREEDY, beams)
    plain = [model.generate(**case.asking(QUESTION), **how) for how in ways]
    with sttm_cli.merging(model, budget=1.0) as stats:
        out = model(**inputs, output_hidden_states=True)
        made = [model.generate(**case.asking(QUESTION), **how) for how in ways]
    assert torch.equal(out.logits, wanted.logits)
    assert all(map(torch.equal, out.hidden_states, wanted.hidden_states))
    assert all(map(torch.equal, made, plain))
    assert stats.video_kept == stats.video_full > 90


def test_in_bfloat16_budget_1_gives_the_plain_models_bits(case: Case) -> None:
    model, inputs = half(case)
    wanted, plain = model(**inputs), model.generate(**inputs, **GREEDY)
    with sttm_cli.merging(model, budget=1.0):
        out, made = model(**inputs), model.generate(**inputs, **GREEDY)
    assert out.logits.dtype == torch.bfloat16
    assert torch.equal(out.logits, wanted.logits)
    assert torch.equal(made, plain)


@pytest.mark.parametrize("budget", BUDGETS)
def test_in_bfloat16_logits_equal_those_of_video_qa_within_its_precision(
    case: Case, budget: float
) -> None:
    if case.family not in ("llava_onevision", "qwen2_5_vl"):
        pytest.skip("of two families")
    model, inputs = half(case)
    with video_qa(case, budget=budget, dtype="bfloat16") as (_, prepared, question):
        wanted = prepared.prefix.extend(question).float()
        kept = prepared.kv.tokens.video_kept
    plain = model(**inputs).logits[0, -1].float()
    with sttm_cli.merging(model, budget=budget) as stats:
        found = model(**inputs).logits[0, -1].float()
    assert stats.video_kept == kept
    # bfloat16 has 8 bits; merging itself moves the logits much further.
    error = (found - wanted).norm() / wanted.norm()
    assert error < 0.05
    assert (found - plain).norm() / wanted.norm() > 3 * error


def half(case: Case) -> tuple[Any, Any]:
    """The model and its inputs in bfloat16."""
    return copy.deepcopy(case.model).to(torch.bfloat16), case.asking(QUESTION).to(torch.bfloat16)


@pytest.mark.parametrize("budget", BUDGETS)
def test_logits_and_greedy_text_equal_those_of_video_qa(case: Case, budget: float) -> None:
    with video_qa(case, budget=budget, max_new_tokens=8) as (qa, prepared, question):
        wanted = prepared.prefix.extend(question)
        prepared.prefix.rewind()
        answer = qa.answer(prepared, QUESTION)
    plain = case.model(**case.inputs).logits
    with sttm_cli.merging(case.model, budget=budget) as stats:
        logits = case.model(**case.inputs).logits
        out = case.model.generate(**case.inputs, **GREEDY)
        again = case.model.generate(**case.inputs, **GREEDY, use_cache=False)
    assert close(logits[0, -1], wanted)
    text = case.processor.decode(out[0, case.length :], skip_special_tokens=True)
    assert text.strip() == answer.text
    assert torch.equal(again, out)
    assert not close(logits[0, -1], plain[0, -1])
    assert (stats.video_full, stats.video_kept) == (
        answer.tokens.video_full,
        answer.tokens.video_kept,
    )
    assert stats.spatial_threshold == pytest.approx(answer.tokens.spatial_threshold, abs=1e-4)
    assert stats.temporal_threshold == pytest.approx(answer.tokens.temporal_threshold, abs=1e-4)
    assert stats.seconds is not None
    assert stats.seconds > 0


@pytest.mark.parametrize("budget", BUDGETS)
def test_beams_and_drawn_sequences_have_the_logits_of_video_qa(case: Case, budget: float) -> None:
    if case.family in NO_BEAMS:
        with pytest.raises(ValueError, match="non-empty list"):
            case.model.generate(**case.inputs, **GREEDY, num_beams=2)
        pytest.skip("transformers itself cannot repeat this family's prompts with a video")
    torch.manual_seed(5)
    with sttm_cli.merging(case.model, budget=budget):
        beams = case.model.generate(
            **case.inputs, **GREEDY, **KEPT, num_beams=3, num_return_sequences=2,
            output_scores=True, length_penalty=0.0, eos_token_id=-1,
        )  # fmt: skip
        drawn = case.model.generate(
            **case.inputs, **KEPT, do_sample=True, top_k=20, max_new_tokens=6,
            num_return_sequences=3, eos_token_id=-1,
        )  # fmt: skip
    with video_qa(case, budget=budget) as (_, prepared, question):
        for sequence, score in zip(beams.sequences, beams.sequences_scores, strict=True):
            new = sequence[case.length :]
            found = scored(prepared.prefix, question, new).log_softmax(-1)
            total = found.gather(1, new[:, None]).sum()
            assert torch.isclose(total, score, atol=1e-3)
        rows = torch.stack(drawn.logits, dim=1)
        for sequence, logits in zip(drawn.sequences, rows, strict=True):
            wanted = scored(prepared.prefix, question, sequence[case.length :])
            assert close(logits, wanted)
    assert len({tuple(row.tolist()) for row in drawn.sequences}) == 3


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_next_turn_goes_on_from_the_callers_cache_as_video_qa_does(
    case: Case, budget: float
) -> None:
    with video_qa(case, budget=budget) as (qa, prepared, question):
        turn = qa.model().answer(NEXT)
        with sttm_cli.merging(case.model, budget=budget):
            first = case.model.generate(**case.inputs, **GREEDY, **KEPT, eos_token_id=-1)
            kept = copy.deepcopy(first.past_key_values)
            so_far = torch.cat([first.sequences, turn[None]], dim=1)
            second = case.model.generate(
                input_ids=so_far, past_key_values=first.past_key_values, **GREEDY, **KEPT,
                eos_token_id=-1,
            )  # fmt: skip
            # The last token of an answer is not in the cache yet.
            plain = case.model(input_ids=so_far[:, case.length + 7 :], past_key_values=kept)
        before = torch.cat([question, so_far[0, case.length :]])
        wanted = scored(prepared.prefix, before, second.sequences[0, so_far.shape[1] :])
        assert close(torch.stack(second.logits, dim=1)[0], wanted)
        assert close(plain.logits[0, -1], wanted[0])


def test_a_plain_loop_over_the_model_with_a_cache_equals_generate(case: Case) -> None:
    with sttm_cli.merging(case.model, budget=0.3):
        wanted = case.model.generate(**case.inputs, **GREEDY, eos_token_id=-1)
        cache = DynamicCache(config=case.model.config)
        out = case.model(**case.inputs, past_key_values=cache, use_cache=True)
        new = [out.logits[:, -1:].argmax(-1)]
        for _ in range(7):
            out = case.model(input_ids=new[-1], past_key_values=cache, use_cache=True)
            new.append(out.logits[:, -1:].argmax(-1))
    assert torch.equal(torch.cat(new, dim=1), wanted[:, case.length :])


@pytest.mark.parametrize("layer", [0, 1])
def test_another_merge_layer_equals_video_qa_with_cache_and_next_turn(
    case: Case, layer: int
) -> None:
    with video_qa(case, budget=0.3, merge_layer=layer) as (qa, prepared, question):
        turn = qa.model().answer(NEXT)
        with sttm_cli.merging(case.model, budget=0.3, merge_layer=layer):
            first = case.model.generate(**case.inputs, **GREEDY, **KEPT, eos_token_id=-1)
            so_far = torch.cat([first.sequences, turn[None]], dim=1)
            second = case.model.generate(
                input_ids=so_far, past_key_values=first.past_key_values, **GREEDY, **KEPT,
                eos_token_id=-1,
            )  # fmt: skip
        new = first.sequences[0, case.length :]
        assert close(torch.stack(first.logits, dim=1)[0], scored(prepared.prefix, question, new))
        before = torch.cat([question, so_far[0, case.length :]])
        wanted = scored(prepared.prefix, before, second.sequences[0, so_far.shape[1] :])
        assert close(torch.stack(second.logits, dim=1)[0], wanted)


def padded(processor: Any, inputs: Any, count: int) -> dict[str, Any]:
    """Inputs with `count` tokens of padding on the left."""
    made = dict(inputs)
    token = processor.tokenizer.pad_token_id
    for name, value in (("input_ids", token), ("attention_mask", 0), ("mm_token_type_ids", 0)):
        if name in made:
            made[name] = torch.nn.functional.pad(made[name], (count, 0), value=value)
    return made


def test_padding_before_and_within_a_conversation_changes_nothing(case: Case) -> None:
    with sttm_cli.merging(case.model, budget=0.3):
        wanted = case.model.generate(**case.inputs, **GREEDY, **KEPT, eos_token_id=-1)
        given = padded(case.processor, case.inputs, 3)
        out = case.model.generate(**given, **GREEDY, **KEPT, eos_token_id=-1)
        new = wanted.sequences[:, -4:]
        assert torch.equal(out.sequences[:, 3:], wanted.sequences)
        assert close(torch.stack(out.logits), torch.stack(wanted.logits))
        turn = torch.cat([out.sequences, new[:, :1], new], dim=1)
        mask = torch.ones_like(turn)
        mask[:, :3] = mask[:, -5] = 0
        if case.family in RECURRENT:
            given = {"attention_mask": mask, "past_key_values": out.past_key_values}
            with pytest.raises(UsageError, match="padding behind a merged video"):
                case.model.generate(input_ids=turn, **given, **GREEDY)
            return
        more = case.model.generate(
            input_ids=turn, attention_mask=mask, past_key_values=out.past_key_values, **GREEDY,
            **KEPT,
        )  # fmt: skip
        turn = torch.cat([wanted.sequences, new], dim=1)
        same = case.model.generate(
            input_ids=turn, past_key_values=wanted.past_key_values, **GREEDY, **KEPT
        )
    assert close(more.logits[0], same.logits[0])


def test_a_batch_of_videos_of_one_size_answers_as_each_of_them_alone(case: Case) -> None:
    still = case.frames[::-1].copy()
    still[:4] = still[0]
    flipped = case.asking(NEXT, still)
    alone = [case.inputs, flipped]
    gap = flipped["input_ids"].shape[1] - case.length
    rows = [
        padded(case.processor, each, max(0, by))
        for each, by in zip(alone, (gap, -gap), strict=False)
    ]
    if "video_token_pooling" in rows[1]:
        # Molmo 2 counts the patches of all videos on.
        before = rows[0]["pixel_values_videos"].flatten(0, 1).shape[0]
        rows[1]["video_token_pooling"] = rows[1]["video_token_pooling"] + before
    batch = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    with sttm_cli.merging(case.model, spatial_threshold=0.8, temporal_threshold=0.7) as stats:
        wanted, kept = [], []
        for each in alone:
            made = case.model.generate(**each, **GREEDY, **KEPT, eos_token_id=-1)
            wanted.append(torch.stack(made.logits, dim=1)[0])
            kept.append(stats.video_kept)
        if case.family in RECURRENT:
            with pytest.raises(UsageError, match="keep different numbers of tokens"):
                case.model.generate(**batch, **GREEDY, **KEPT, eos_token_id=-1)
            return
        out = case.model.generate(**batch, **GREEDY, **KEPT, eos_token_id=-1)
        assert stats.video_kept == sum(kept)
    assert kept[0] != kept[1], "no row is filled up"
    assert close(torch.stack(out.logits, dim=1), torch.stack(wanted))


@pytest.mark.parametrize("case", RECURRENT[:1], indirect=True)
@pytest.mark.parametrize("layer", [0, 1, 3, 4])
def test_questions_about_one_video_are_a_batch_also_before_recurrent_layers(
    case: Case, layer: int
) -> None:
    alone = [case.inputs, case.asking("how many?")]
    gap = alone[0]["input_ids"].shape[1] - alone[1]["input_ids"].shape[1]
    rows = [alone[0], padded(case.processor, alone[1], gap)]
    batch = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    with sttm_cli.merging(case.model, budget=0.3, merge_layer=layer):
        made = [case.model.generate(**each, **GREEDY, **KEPT, eos_token_id=-1) for each in alone]
        out = case.model.generate(**batch, **GREEDY, **KEPT, eos_token_id=-1)
    assert gap > 0
    wanted = torch.stack([torch.stack(each.logits, dim=1)[0] for each in made])
    assert close(torch.stack(out.logits, dim=1), wanted)


@torch.no_grad()
@pytest.mark.parametrize("case", RECURRENT[:1], indirect=True)
@pytest.mark.parametrize("count", [1, 3])
def test_a_merged_cache_of_recurrent_layers_is_as_it_was_after_a_refusal(
    case: Case, count: int
) -> None:
    ids = case.inputs["input_ids"][:, -count:]
    with sttm_cli.merging(case.model, budget=0.3):
        cache = case.model(**case.inputs, use_cache=True).past_key_values
        other = copy.deepcopy(cache)
    with pytest.raises(UsageError, match="which the model alone cannot go on from"):
        case.model(input_ids=ids, past_key_values=cache)
    with sttm_cli.merging(case.model, budget=0.3):
        found = case.model(input_ids=ids, past_key_values=cache).logits
        wanted = case.model(input_ids=ids, past_key_values=other).logits
    assert torch.equal(found, wanted)
