"""`merging` where a prompt holds more than a video and a question, in each family: images beside
it, text around it, turns before it; and what VideoLLaMA 3 and Molmo 2 need of their inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, DynamicCache
from transformers.video_utils import VideoMetadata

import sttm_cli
from sttm_cli.base.errors import UsageError
from sttm_cli.merge.quadtree.merging import merge_tokens
from sttm_cli.models.registry import family_of_loaded
from tests.checkpoints_molmo import molmo2
from tests.merged import FAMILIES, QUESTION, Case, case_of, inputs_of, state_of, video_qa
from tests.models.reference import _layer

pytestmark = pytest.mark.long

GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": -1}
KEPT = {"return_dict_in_generate": True, "output_logits": True}
VISION = "<|vision_start|>{}<|vision_end|>"
IMAGES = {
    "llava_onevision": "<image>\n",
    "qwen2_vl": VISION.format("<|image_pad|>"),
    "qwen2_5_vl": VISION.format("<|image_pad|>"),
    "qwen3_vl": VISION.format("<|image_pad|>"),
    "qwen3_vl_moe": VISION.format("<|image_pad|>"),
    "qwen3_5": VISION.format("<|image_pad|>"),
    "qwen3_5_moe": VISION.format("<|image_pad|>"),
    "glm4v": "<|begin_of_image|><|image|><|end_of_image|>",
    "glm4v_moe": "<|begin_of_image|><|image|><|end_of_image|>",
    "glm46v": "<|begin_of_image|><|image|><|end_of_image|>",
    "video_llama_3": "<|image_pad|>\n",
    "perception_lm": "<|image|>",
}
"""How an image is written in the prompts of families that tell it from a video's frames."""
TOGETHER = ("internvl", "smolvlm")
"""Families in which images and frames are the same pictures."""


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case_of(request.param, tmp_path_factory.mktemp("beside") / request.param)


def written(case: Case, text: str, videos: list[Any], images: list[Any] | None = None) -> Any:
    """What the family's processor makes of a prompt that is written out."""
    seen = [
        VideoMetadata(
            total_num_frames=len(video), fps=1.0, duration=8.0,
            frames_indices=list(range(len(video))),
        )
        for video in videos
    ]  # fmt: skip
    whole = {"use_token_compression": False} if case.family == "video_llama_3" else {}
    kwargs = {"do_sample_frames": False, "video_metadata": seen, **whole}
    given = {"images": images} if images else {}
    return case.processor(
        text=text, videos=videos, return_tensors="pt", add_special_tokens=False,
        videos_kwargs=kwargs, **given,
    )  # fmt: skip


def prompt_of(case: Case, *turns: tuple[str, str]) -> str:
    """Turns of text before the one that asks about the video, with text before it too."""
    messages: list[dict[str, Any]] = []
    for question, answer in turns:
        messages.append({"role": "user", "content": [{"type": "text", "text": question}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    content = [
        {"type": "text", "text": "look at this: "}, {"type": "video"},
        {"type": "text", "text": f" and say, {QUESTION}"},
    ]  # fmt: skip
    messages.append({"role": "user", "content": content})
    text: str = case.processor.apply_chat_template(messages, add_generation_prompt=True)
    return text


@torch.no_grad()
def by_hand(case: Case, inputs: Any, spatial: float, temporal: float) -> tuple[torch.Tensor, int]:
    """The last logits of one merged pass written out over the layers, and the tokens kept.

    What the decoder gets, and where the video is, are taken from a plain call of the model.
    """
    got: dict[str, Any] = {}
    decoder, family = case.model.get_decoder(), family_of_loaded(case.model)

    def see(module: Any, args: Any, kwargs: Any) -> None:
        got.update(kwargs)

    handle = decoder.register_forward_pre_hook(see, with_kwargs=True)
    case.model(**inputs)
    handle.remove()
    hidden = got["inputs_embeds"][0].clone()
    ids, axes = got.get("position_ids"), family.rotary_axes
    if ids is None:
        ids = torch.arange(len(hidden))[None]
    positions = ids[-axes:, 0] if ids.dim() == 3 else ids
    tokens, (time, height, width) = video_places(case, inputs), video_grid(case)
    deep = got.get("deepstack_visual_embeds") or []
    visual = got["visual_pos_masks"][0].nonzero()[:, 0] if deep else None
    blocks = torch.full((len(hidden),), -1)
    if family.two_way:
        blocks = torch.where(inputs["mm_token_type_ids"][0] == 1, 0, -1)
    layer = family.merge_layer
    assert len(deep) <= layer
    for index, block in enumerate(decoder.layers):
        if index == layer:
            merged = merge_tokens(
                hidden[tokens].unflatten(0, (time, height, width)), spatial, temporal
            )
            roots = tokens[merged.roots]
            keep = torch.ones(len(hidden), dtype=torch.bool)
            keep[tokens] = False
            keep[roots] = True
            hidden[roots] = merged.features
            hidden, positions, blocks = hidden[keep], positions[:, keep], blocks[keep]
            if family.positions == "reassigned":
                positions = torch.arange(len(hidden))[None]
        none = torch.zeros(())
        hidden = _layer(decoder, block, hidden, positions, blocks, none, {})
        if index < len(deep):
            hidden[visual] += deep[index]
    return case.model.lm_head(decoder.norm(hidden))[-1], len(roots)


def video_places(case: Case, inputs: Any) -> torch.Tensor:
    """Where the video is: the same tokens as in the prompt with it alone, at their new places."""
    ids, config = inputs["input_ids"][0], case.model.config
    if case.family.startswith("glm"):
        start, end = (
            int((ids == token).nonzero()[0])
            for token in (config.video_start_token_id, config.video_end_token_id)
        )
        token = config.image_token_id
        found = (ids == token).nonzero()[:, 0]
        return found[(found > start) & (found < end)]
    token = getattr(config, "video_token_id", None)
    if case.family in TOGETHER:
        token = config.image_token_id
    if case.family == "molmo2":
        token = config.image_patch_id
    places = (ids == token).nonzero()[:, 0]
    return places[:-1] if case.family == "llava_onevision" else places


def video_grid(case: Case) -> tuple[int, int, int]:
    """The grid that `VideoQA` finds for the same frames."""
    with video_qa(case, budget=1.0) as (_, prepared, _question):
        return prepared.kv.grid


def same(case: Case, inputs: Any) -> None:
    """Merged logits are those of the pass by hand, a budget of 1 leaves every bit, answers go on
    from a cache as without one."""
    how = {"spatial_threshold": 0.8, "temporal_threshold": 0.7}
    wanted, kept = by_hand(case, inputs, 0.8, 0.7)
    assert wanted.std() > 0.1
    plain = case.model(**inputs).logits
    with sttm_cli.merging(case.model, **how) as stats, torch.no_grad():
        found = case.model(**inputs).logits
        made = case.model.generate(**inputs, **GREEDY, **KEPT)
        whole = case.model.generate(**inputs, **GREEDY, use_cache=False)
    assert torch.allclose(found[0, -1], wanted, atol=1e-4)
    assert torch.allclose(made.logits[0][0], wanted, atol=1e-4)
    assert torch.equal(whole, made.sequences)
    assert stats.video_kept == kept < stats.video_full
    assert not torch.allclose(found[0, -1], plain[0, -1], atol=1e-2)
    with sttm_cli.merging(case.model, budget=1.0):
        assert torch.equal(case.model(**inputs).logits, plain)


def test_text_before_the_video_and_earlier_turns_are_left_as_they_are(case: Case) -> None:
    turns = (("who is there?", "nobody"), ("hello, say a number", "seven"))
    same(case, written(case, prompt_of(case, *turns), [case.frames]))


@pytest.mark.parametrize("before", [True, False])
def test_an_image_beside_the_video_is_left_as_it_is_or_refused(case: Case, before: bool) -> None:
    image = np.ascontiguousarray(case.frames[3][:, ::-1])
    text = prompt_of(case)
    if case.family in TOGETHER:
        mark = {"internvl": "<IMG_CONTEXT>", "smolvlm": "<image>"}[case.family]
    else:
        mark = {**IMAGES, "molmo2": "<|image|>"}[case.family]
    if case.family == "llava_onevision":
        one_size_of_images(case)
    place = "look at this: " if before else " and say"
    text = text.replace(place, f"{place}{mark}", 1)
    inputs = written(case, text, [case.frames], [image])
    alone = case.family == "molmo2" or case.family.startswith("glm")
    if case.family not in TOGETHER and not alone:
        return same(case, inputs)
    # Where images are taken for frames, SmolVLM2's own check of their number may come first.
    message = "takes no images beside a video" if alone else "one video|do not match"
    for call in (case.model, case.model.generate):
        with (
            sttm_cli.merging(case.model, budget=0.3),
            pytest.raises(ValueError, match=message),
        ):
            call(**inputs)
    return None


def one_size_of_images(case: Case) -> None:
    """The size that the checkpoint's tower takes."""
    side = case.model.config.vision_config.image_size
    pins = [[side, side], [2 * side, side]]
    case.model.config.image_grid_pinpoints = case.processor.image_processor.image_grid_pinpoints = (
        pins
    )


def test_images_alone_are_not_merged(case: Case) -> None:
    if case.family not in IMAGES:
        pytest.skip("its images are taken for frames")
    if case.family == "llava_onevision":
        one_size_of_images(case)
    image = case.frames[3]
    inputs = case.processor(
        text=f"{IMAGES[case.family]}{QUESTION}", images=[image], return_tensors="pt"
    )
    wanted = case.model(**inputs).logits
    with sttm_cli.merging(case.model, budget=0.3) as stats:
        assert torch.equal(case.model(**inputs).logits, wanted)
    assert stats.video_full is None


# ---- VideoLLaMA 3


def test_a_video_whose_patches_were_dropped_is_refused(cases: Callable[[str], Case]) -> None:
    case = cases("video_llama_3")
    still = np.repeat(case.frames[:1], 8, axis=0)
    text = case.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": QUESTION}]}],
        add_generation_prompt=True,
    )
    before = state_of(case.model)
    for frames, dropped in ((still, True), (case.frames, False)):
        seen = VideoMetadata(
            total_num_frames=8, fps=1.0, duration=8.0, frames_indices=list(range(8))
        )
        inputs = case.processor(
            text=text, videos=[frames], return_tensors="pt",
            do_sample_frames=False, video_metadata=[seen], use_token_compression=dropped,
        )  # fmt: skip
        for call in (case.model, case.model.generate):
            with sttm_cli.merging(case.model, budget=0.3) as stats:
                if dropped:
                    with pytest.raises(UsageError, match="use_token_compression=False"):
                        call(**inputs)
                else:
                    call(**inputs)
                    count = (inputs["input_ids"] == case.model.config.video_token_id).sum()
                    assert stats.video_full == count
    assert state_of(case.model) == before


def test_features_of_which_the_size_is_not_known_are_refused(
    cases: Callable[[str], Case],
) -> None:
    case = cases("video_llama_3")
    inputs = dict(case.inputs)
    names = ("pixel_values_videos", "video_grid_thw", "video_merge_sizes")
    video = case.model.model.get_video_features(*(inputs.pop(name) for name in names))
    given = {**inputs, "mm_encoder_outputs": {"video": video}}
    with (
        sttm_cli.merging(case.model, budget=0.3),
        pytest.raises(UsageError, match="without video_grid_thw"),
    ):
        case.model(**given)
    with sttm_cli.merging(case.model, budget=0.3):
        wanted = case.model(**case.inputs).logits[0, -1]
        found = case.model(**given, **{n: case.inputs[n] for n in names[1:]}).logits[0, -1]
    assert torch.equal(found, wanted)


# ---- Molmo 2


@pytest.mark.parametrize("columns", [True, False])
def test_frames_with_and_without_row_ends_are_found(columns: bool, tmp_path: Path) -> None:
    folder = molmo2(tmp_path / "molmo2", image=96, columns=columns)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    case = Case("molmo2", folder, model, processor, np.zeros(0), None)
    with video_qa(case, budget=0.3) as (qa, prepared, question):
        wanted = prepared.prefix.extend(question)
        plan = qa.request(Path("docs/sample.mp4")).plan
        assert prepared.kv.grid == (len(plan.times_s), 4, 4)
    frames = case_of_frames(folder)
    with sttm_cli.merging(model, budget=0.3):
        found = model(**inputs_of(processor, frames, QUESTION)).logits[0, -1]
    assert torch.allclose(found, wanted, atol=1e-4)


def case_of_frames(folder: Path) -> np.ndarray:
    from sttm_cli.base.types import DecodeReport
    from sttm_cli.decode import read_frames
    from tests.merged import SAMPLE, asking

    with asking(folder) as qa:
        plan = qa.request(SAMPLE).plan
        return np.concatenate([c.frames for c in read_frames(SAMPLE, plan, report=DecodeReport())])


def test_flash_attention_cannot_see_frames_in_both_directions(
    cases: Callable[[str], Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = cases("molmo2")
    config = case.model.get_decoder().config
    with sttm_cli.merging(case.model, budget=0.3):
        monkeypatch.setattr(config, "_attn_implementation_internal", "flash_attention_2")
        with pytest.raises(UsageError, match="molmo2 sees its frames in both directions"):
            case.model(**case.inputs)


def test_a_video_of_molmo_after_text_in_the_cache_needs_all_token_types(
    cases: Callable[[str], Case],
) -> None:
    case = cases("molmo2")
    inputs = dict(case.inputs)
    ids, kinds = inputs["input_ids"], inputs.pop("mm_token_type_ids")
    start = int(kinds[0].nonzero()[0]) - 1
    rest = {name: inputs[name] for name in inputs if name not in ("input_ids", "attention_mask")}
    with sttm_cli.merging(case.model, budget=0.3), torch.no_grad():
        wanted = case.model(**case.inputs).logits[0, -1]
        cache = DynamicCache()
        case.model(input_ids=ids[:, :start], past_key_values=cache, use_cache=True)
        kept = copy.deepcopy(cache)
        given = {"input_ids": ids[:, start:], "use_cache": True, **rest}
        with pytest.raises(UsageError, match="give them for all of these"):
            case.model(**given, mm_token_type_ids=kinds[:, start:], past_key_values=cache)
        found = case.model(**given, mm_token_type_ids=kinds, past_key_values=kept).logits[0, -1]
    assert torch.allclose(found, wanted, atol=1e-5)
