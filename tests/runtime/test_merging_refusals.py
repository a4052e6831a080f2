"""What a `merging` block takes as options, and the models and inputs that it refuses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AttentionInterface,
    DynamicCache,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.video_utils import VideoMetadata

import sttm_cli
from sttm_cli.base.errors import ModelError, UsageError
from sttm_cli.models import registry
from sttm_cli.models.registry import TINY
from tests.merged import QUESTION, SAMPLE, Case, asking, inputs_of, state_of, video_qa

GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": -1}
KEPT = {"return_dict_in_generate": True, "output_logits": True}


# ---- options


def test_method_positions_and_counts_are_those_of_video_qa(llava: Case) -> None:
    for options in (
        {"budget": 0.4, "method": "tome"},
        {"budget": 40},
        {"budget": 0.3, "positions": "survivors"},
    ):
        with video_qa(llava, **options) as (_, prepared, question):
            wanted = prepared.prefix.extend(question)
            kept = prepared.kv.tokens.video_kept
        with sttm_cli.merging(llava.model, **options) as stats:
            logits = llava.model(**llava.inputs).logits
        assert torch.allclose(logits[0, -1], wanted, atol=1e-4), options
        assert stats.video_kept == kept


def test_thresholds_are_those_of_video_qa(llava: Case, qwen: Case) -> None:
    for case in (llava, qwen):
        with video_qa(case, budget=1, method="sttm:0.8/0.6") as (_, prepared, question):
            wanted = prepared.prefix.extend(question)
            kept = prepared.kv.tokens.video_kept
        with sttm_cli.merging(case.model, spatial_threshold=0.8, temporal_threshold=0.6) as stats:
            logits = case.model(**case.inputs).logits
        assert torch.allclose(logits[0, -1], wanted, atol=1e-4)
        assert stats.video_kept == kept < stats.video_full


def test_thresholds_are_used_as_given(llava: Case) -> None:
    kept = []
    for spatial, temporal in ((0.9, 0.9), (0.9, -1.0), (0.9, 0.7)):
        with sttm_cli.merging(
            llava.model, spatial_threshold=spatial, temporal_threshold=temporal
        ) as stats:
            llava.model(**llava.inputs)
        assert stats.spatial_threshold == spatial
        kept.append(stats.video_kept)
    assert kept[1] > kept[0] > kept[2]


def test_without_options_the_budget_is_a_half(llava: Case) -> None:
    with sttm_cli.merging(llava.model) as stats:
        llava.model(**llava.inputs)
    assert stats.video_kept == stats.video_full // 2


def test_a_checkpoints_own_defaults_hold() -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(TINY, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(TINY)
    question = "how many shapes are there?"
    with asking(TINY, budget=0.3) as qa:
        prepared = qa.prepare(SAMPLE)
        answer, kv = qa.answer(prepared, question), prepared.kv
        case = case_frames(qa)
    inputs = inputs_of(processor, case, question)
    with sttm_cli.merging(model, budget=0.3) as stats:
        out = model.generate(**inputs, do_sample=False, max_new_tokens=8, **KEPT)
    new = out.sequences[0, inputs["input_ids"].shape[1] :]
    assert processor.decode(new, skip_special_tokens=True).strip() == answer.text == "three"
    assert stats.video_kept == answer.tokens.video_kept
    lengths = [layer.count if i >= 1 else layer.get_seq_length()
               for i, layer in enumerate(out.past_key_values.layers)]  # fmt: skip
    assert kv.lengths[1] - kv.lengths[0] == lengths[1] - lengths[0] < 0


def case_frames(qa: Any) -> np.ndarray:
    from sttm_cli.base.types import DecodeReport
    from sttm_cli.decode import read_frames

    plan = qa.request(SAMPLE).plan
    return np.concatenate([c.frames for c in read_frames(SAMPLE, plan, report=DecodeReport())])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 1.5}, "budget 1.5 is not possible"),
        ({"budget": 3}, "budget 3 is not possible"),
        ({"budget": 0.5, "spatial_threshold": 0.8}, "cannot be combined"),
        ({"spatial_threshold": 1.8}, "spatial_threshold is 1.8"),
        ({"temporal_threshold": 0.5, "method": "tome"}, "'tome' has no thresholds"),
        ({"method": "sttm:0.8/0.6"}, "cannot be combined with merging's own thresholds"),
        ({"method": "tomee"}, "method 'tomee' is not known"),
        ({"merge_layer": 4}, "merge_layer 4 is not possible: the model has 4 layers"),
        ({"merge_layer": -1}, "merge_layer -1 is not possible"),
        ({"merge_layer": 1.5}, r"merge_layer 1\.5 is not a whole number"),
        ({"positions": "kept"}, "positions 'kept' is not known"),
    ],
)
def test_options_that_are_not_possible_are_refused(
    options: dict[str, Any], message: str, llava: Case
) -> None:
    before = state_of(llava.model)
    with pytest.raises(ValueError, match=message), sttm_cli.merging(llava.model, **options):
        pass
    assert state_of(llava.model) == before


def test_positions_cannot_be_reassigned_where_they_are_places(qwen: Case) -> None:
    with (
        pytest.raises(UsageError, match=r"cannot be combined with qwen2\.5-vl"),
        sttm_cli.merging(qwen.model, positions="reassigned"),
    ):
        pass


# ---- models that are refused


def refused(model: Any) -> str:
    with pytest.raises(ModelError) as error, sttm_cli.merging(model, budget=0.3):
        pass
    return str(error.value)


def test_models_that_cannot_merge_are_refused(llava: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    text = Qwen2Config(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    assert "type 'qwen2', which is not supported" in refused(Qwen2ForCausalLM(text))
    assert "a str is not a model" in refused("llava-onevision-7b")
    assert "is not a model that transformers generates with" in refused(llava.model.model)
    assert "compiled model" in refused(torch.compile(llava.model))
    compiled = copy.deepcopy(llava.model)
    compiled.model.language_model.layers[1].compile()
    assert "compiled model" in refused(compiled)
    sliding = copy.deepcopy(llava.model)
    sliding.config.text_config.layer_types = ["full_attention", "sliding_attention"] * 2
    assert "has layers of full_attention, sliding_attention" in refused(sliding)
    family = registry.find_family("llava_qwen")
    monkeypatch.setattr(registry, "find_family", lambda model_type: family)
    assert "is not supported for llava-video" in refused(llava.model)


# ---- inputs that are refused


@pytest.fixture
def block(llava: Case) -> Iterator[Case]:
    with sttm_cli.merging(llava.model, budget=0.3):
        yield llava


def two_videos(case: Case, first: np.ndarray, second: np.ndarray) -> Any:
    content = [{"type": "video"}, {"type": "video"}, {"type": "text", "text": QUESTION}]
    text = case.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    seen = [
        VideoMetadata(
            total_num_frames=len(f), fps=1.0, duration=8.0, frames_indices=list(range(len(f)))
        )
        for f in (first, second)
    ]
    return case.processor(
        text=text, videos=[first, second], return_tensors="pt", do_sample_frames=False,
        video_metadata=seen, add_special_tokens=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "family",
    [
        "llava_onevision", "qwen2_vl", "qwen3_vl", "internvl", "smolvlm", "glm4v", "glm46v",
        "perception_lm", "video_llama_3",
    ],
)  # fmt: skip
@pytest.mark.parametrize("more", [8, 2])
def test_two_videos_in_a_prompt_are_refused(
    family: str, more: int, cases: Callable[[str], Case]
) -> None:
    case = cases(family)
    if family in ("llava_onevision", "internvl", "perception_lm") and more != 8:
        pytest.skip("transformers itself takes videos of one length only")
    inputs = two_videos(case, case.frames, case.frames[:more])
    with sttm_cli.merging(case.model, budget=0.3):
        for call in (case.model, case.model.generate):
            with pytest.raises(UsageError, match="one video"):
                call(**inputs)


def test_images_that_could_be_taken_for_frames_are_refused(
    cases: Callable[[str], Case],
) -> None:
    for family in ("internvl", "smolvlm"):
        case = cases(family)
        processor, picture = case.processor, case.frames[0]
        for count, size in ((1, (80, 80)), (3, (80, 80)), (1, (240, 240)), (1, (120, 240))):
            mark = "<IMG_CONTEXT>" if family == "internvl" else "<image>"
            inputs = processor(
                text=f"{mark}\n" * count + QUESTION,
                images=[np.resize(picture, (*size, 3)) for _ in range(count)],
                return_tensors="pt",
            )
            with (
                sttm_cli.merging(case.model, budget=0.3),
                pytest.raises(UsageError, match="one video"),
            ):
                case.model(**inputs)


def test_a_batch_of_videos_of_different_sizes_is_refused(cases: Callable[[str], Case]) -> None:
    for family in ("qwen2_vl", "qwen3_vl"):
        case = cases(family)
        texts, seen = [], []
        videos = [case.frames, case.frames[:4]]
        content = [{"type": "video"}, {"type": "text", "text": QUESTION}]
        for video in videos:
            texts.append(
                case.processor.apply_chat_template(
                    [{"role": "user", "content": content}], add_generation_prompt=True
                )
            )
            seen.append(
                VideoMetadata(
                    total_num_frames=len(video), fps=1.0, duration=8.0,
                    frames_indices=list(range(len(video))),
                )
            )  # fmt: skip
        case.processor.tokenizer.padding_side = "left"
        inputs = case.processor(
            text=texts, videos=videos, return_tensors="pt", do_sample_frames=False,
            video_metadata=seen, padding=True,
        )  # fmt: skip
        with (
            sttm_cli.merging(case.model, budget=0.3),
            pytest.raises(UsageError, match="different sizes"),
        ):
            case.model.generate(**inputs, **GREEDY)


@pytest.mark.parametrize("how", ["static", "offloaded static"])
def test_a_cache_that_is_not_dynamic_is_refused(how: str, block: Case) -> None:
    if how == "static":
        with pytest.raises(UsageError, match="into a StaticCache with StaticLayer"):
            block.model.generate(**block.inputs, **GREEDY, cache_implementation="static")
    else:
        cache = DynamicCache()
        cache.offloading = True
        with pytest.raises(UsageError, match="that is offloaded"):
            block.model(**block.inputs, past_key_values=cache)


@torch.no_grad()
def test_a_merged_cache_is_refused_where_it_cannot_be_gone_on_from(llava: Case) -> None:
    ids = llava.inputs["input_ids"][:, -3:]
    with sttm_cli.merging(llava.model, budget=0.3):
        cache = llava.model(**llava.inputs, use_cache=True).past_key_values
        with pytest.raises(UsageError, match="holds a video already"):
            llava.model(**llava.inputs, past_key_values=cache)
        short = torch.ones(1, 4)
        with pytest.raises(UsageError, match=f"of {llava.length + 3} columns"):
            llava.model(input_ids=ids, attention_mask=short, past_key_values=cache)
        with pytest.raises(UsageError, match="reach into its merged video"):
            cache.crop(-60)
    kept = copy.deepcopy(cache)
    with pytest.raises(UsageError, match=r"use it inside of sttm_cli\.merging"):
        llava.model(input_ids=ids, past_key_values=cache)
    with (
        sttm_cli.merging(llava.model, merge_layer=3),
        pytest.raises(UsageError, match="merged before layer 2, not 3"),
    ):
        llava.model(input_ids=ids, past_key_values=kept)
    kept.reset()
    plain = llava.model(input_ids=ids, past_key_values=kept).logits
    assert torch.equal(plain, llava.model(input_ids=ids).logits)


@torch.no_grad()
def test_rows_of_a_merged_cache_can_be_chosen_and_repeated(llava: Case) -> None:
    other = llava.asking(QUESTION, llava.frames[::-1].copy())
    batch = {name: torch.cat([llava.inputs[name], other[name]]) for name in other}
    new = llava.inputs["input_ids"][:, -3:]
    with sttm_cli.merging(llava.model, spatial_threshold=0.9, temporal_threshold=0.7) as stats:
        alone = llava.model(**other, use_cache=True).past_key_values
        kept = stats.video_kept
        cache = llava.model(**batch, use_cache=True).past_key_values
        assert stats.video_kept not in (None, 2 * kept)
        wanted = llava.model(input_ids=new, past_key_values=alone).logits
        cache.reorder_cache(torch.tensor([1, 0]))
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([1]))
        found = llava.model(input_ids=new, past_key_values=cache).logits
    assert torch.allclose(found, wanted, atol=1e-5)


def test_a_cropped_cache_goes_on_from_where_it_was(llava: Case) -> None:
    ids = llava.inputs["input_ids"]
    with sttm_cli.merging(llava.model, budget=0.3), torch.no_grad():
        cache = llava.model(**llava.inputs, use_cache=True).past_key_values
        wanted = llava.model(**llava.inputs).logits[0, -4:]
        cache.crop(-4)
        found = llava.model(input_ids=ids[:, -4:], past_key_values=cache).logits[0]
    assert torch.allclose(found, wanted, atol=1e-5)


def test_training_and_gradients_are_refused(block: Case) -> None:
    with pytest.raises(NotImplementedError, match="no gradient"):
        block.model(**block.inputs).logits[0, -1].sum().backward()
    block.model.zero_grad()
    block.model.train()
    try:
        with pytest.raises(UsageError, match="training mode"):
            block.model(**block.inputs)
    finally:
        block.model.eval()


def test_inputs_that_hide_the_video_are_refused(block: Case) -> None:
    inputs = dict(block.inputs)
    ids = inputs.pop("input_ids")
    embeds = block.model.get_input_embeddings()(ids)
    with pytest.raises(UsageError, match="give input_ids"):
        block.model(**inputs, inputs_embeds=embeds)
    with pytest.raises(UsageError, match="one video"):
        block.model.generate(**block.inputs, **GREEDY, prefill_chunk_size=40)
    mask = torch.ones(1, 1, block.length, block.length).tril().bool()
    with pytest.raises(UsageError, match="has 4 dimensions"):
        block.model(**{**block.inputs, "attention_mask": mask})


def test_an_attention_kernel_that_is_not_known_is_refused(
    block: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    AttentionInterface.register("mine", lambda *args, **kwargs: None)
    config = block.model.get_decoder().config
    monkeypatch.setattr(config, "_attn_implementation_internal", "mine")
    with pytest.raises(UsageError, match="does not know the attention 'mine'"):
        block.model(**block.inputs)


def test_deepstack_features_of_images_need_a_later_merge_layer(
    cases: Callable[[str], Case],
) -> None:
    case = cases("qwen3_vl")
    content = [{"type": "image"}, {"type": "video"}, {"type": "text", "text": QUESTION}]
    start, pad, end = "<|vision_start|>", "<|image_pad|>", "<|vision_end|>"
    text = case.processor.apply_chat_template(
        [{"role": "user", "content": content[1:]}], add_generation_prompt=True
    ).replace("user\n", f"user\n{start}{pad}{end}", 1)
    seen = VideoMetadata(total_num_frames=8, fps=1.0, duration=8.0, frames_indices=list(range(8)))
    inputs = case.processor(
        text=text, images=[case.frames[0]], videos=[case.frames], return_tensors="pt",
        videos_kwargs={"do_sample_frames": False, "video_metadata": [seen]},
    )  # fmt: skip
    with sttm_cli.merging(case.model, budget=0.3) as stats:
        case.model.generate(**inputs, **GREEDY)
    assert stats.video_full == 100
    with (
        sttm_cli.merging(case.model, budget=0.3, merge_layer=1),
        pytest.raises(UsageError, match="images beside a video"),
    ):
        case.model(**inputs)


def test_the_name_is_there_without_torch() -> None:
    from tests.test_startup import HEAVY, modules_after

    assert not modules_after("import sttm_cli; assert 'merging' in dir(sttm_cli)") & HEAVY
