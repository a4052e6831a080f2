"""The identity of a KV: everything that shapes the KV changes the key, and no field is left out."""

from __future__ import annotations

from dataclasses import fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from sttm_cli.base.types import FramePlan, Json
from sttm_cli.merge.method import find_method
from sttm_cli.models.checkpoint import Checkpoint
from sttm_cli.models.registry import find_family
from sttm_cli.runtime import request
from sttm_cli.runtime.model_plan import ModelPlan
from sttm_cli.runtime.request import identity_of
from sttm_cli.settings.settings import Settings
from sttm_cli.store import key_of

VIDEO: Json = {"digest": "d" * 64, "duration_s": 8.0}
PLAN = FramePlan(
    times_s=(0.0, 1.0),
    start_s=0.0,
    end_s=2.0,
    reader="av",
    reader_version="av 1 pixels-1",
    size=(64, 48),
)
FAMILY = find_family("llava_qwen")
assert FAMILY is not None
MODEL = ModelPlan(
    checkpoint=Checkpoint("m", Path("m"), None, "files:1", {"model_type": "llava_qwen"}),
    family=FAMILY,
    device="cpu",
    dtype="float32",
    method=find_method("sttm"),
    merge_layer=2,
    positions="reassigned",
)
SETTINGS = Settings()

VIDEOS: dict[str, Json] = {
    "digest": {**VIDEO, "digest": "e" * 64},
    "duration": {**VIDEO, "duration_s": 9.0},
}
PLANS: dict[str, Any] = {
    "times_s": (0.0, 1.5),
    "reader": "decord",
    "reader_version": "av 2 pixels-1",
    "size": (32, 24),
    "transfer": "hlg",
    "origin_s": 0.5,
    "image_fps": 2.0,
}
MODELS: dict[str, Any] = {
    "checkpoint": replace(MODEL.checkpoint, fingerprint="files:2"),
    "family": replace(FAMILY, name="another"),
    "device": "cuda",
    "dtype": "bfloat16",
    "method": replace(MODEL.method, version=99),
    "merge_layer": 3,
    "positions": "survivors",
    "attention": "eager",
    "attention_sizes": True,
    "options": ("newlines",),
    "system": "answer in one word",
}
CHOSEN: dict[str, Any] = {"budget": 0.3, "kv_dtype": "int8"}

READS_THE_SAME = {"start_s", "end_s", "fallback"}
"""Of a plan: the range is in the times; frames of the fallback are not stored."""
COMPUTES_THE_SAME = {"spread"}
"""Of a model: over how many devices of a kind its layers are laid out."""
RESOLVED = {
    *(
        "model",
        "revision",
        "method",
        "merge_layer",
        "positions",
        "attention_sizes",
        "options",
        "device",
        "dtype",
    ),
    "system",
    *("fps", "frames", "start", "end", "decoder"),
}
"""Settings that the plans of frames and model contain, resolved."""
SHAPES_NO_KV = {
    *("cache_dir", "cache_tier", "no_cache", "refresh", "max_bytes", "max_download"),
    *("max_new_tokens", "temperature", "seed", "top_p"),
}


def key(
    video: Json = VIDEO,
    plan: FramePlan = PLAN,
    model: ModelPlan = MODEL,
    settings: Settings = SETTINGS,
) -> str:
    return key_of(identity_of(video, plan, model, settings))


@pytest.fixture(autouse=True)
def no_flash_attention_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request, "version", lambda name: "1")
    request._libraries.cache_clear()
    yield
    request._libraries.cache_clear()


@pytest.mark.parametrize("name", VIDEOS)
def test_another_video_is_another_entry(name: str) -> None:
    assert key(video=VIDEOS[name]) != key()


@pytest.mark.parametrize("name", PLANS)
def test_other_frames_are_another_entry(name: str) -> None:
    assert key(plan=replace(PLAN, **{name: PLANS[name]})) != key()


@pytest.mark.parametrize("name", MODELS)
def test_another_model_or_merging_is_another_entry(name: str) -> None:
    assert key(model=replace(MODEL, **{name: MODELS[name]})) != key()


@pytest.mark.parametrize("change", [{"name": "tome"}, {"version": 7}])
def test_another_method_or_version_of_it_is_another_entry(change: dict[str, Any]) -> None:
    assert key(model=replace(MODEL, method=replace(MODEL.method, **change))) != key()


@pytest.mark.parametrize("name", CHOSEN)
def test_another_choice_is_another_entry(name: str) -> None:
    assert key(settings=Settings(**{name: CHOSEN[name]})) != key()


def test_another_prompt_before_the_question_is_another_entry() -> None:
    other = replace(MODEL, family=replace(FAMILY, template=FAMILY.template + 1))
    assert key(model=other) != key()


def test_another_layout_of_the_file_is_another_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key()
    monkeypatch.setattr(request, "FORMAT", request.FORMAT + 1)
    assert key() != before


@pytest.mark.parametrize("name", ["tokenizers", "torch", "torchvision", "transformers"])
def test_another_version_of_a_library_is_another_entry(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = key()
    assert metadata.version(name)
    monkeypatch.setattr(request, "version", lambda asked: "2" if asked == name else "1")
    request._libraries.cache_clear()
    assert key() != before


def _found(asked: str, name: str, version: str | None) -> str:
    if asked == name and version is None:
        raise metadata.PackageNotFoundError(name)
    return version if asked == name and version else "1"


def test_another_version_of_a_library_that_the_family_computes_with_is_another_entry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    family = find_family("perception_lm")
    assert family is not None
    model, keys = replace(MODEL, family=family), set()
    # The last one is missing: to plan is possible without it, as is to list what is stored.
    for found in ("1", "2", None):
        monkeypatch.setattr(
            request, "version", lambda name, found=found: _found(name, "timm", found)
        )
        request._libraries.cache_clear()
        keys.add(key(model=model))
    assert len(keys) == 3
    assert "timm" not in identity_of(VIDEO, PLAN, MODEL, SETTINGS)["libraries"]


def test_every_field_is_in_the_identity_or_said_to_shape_no_kv() -> None:
    def names(kind: type) -> set[str]:
        return {field.name for field in fields(kind)}

    assert names(FramePlan) == PLANS.keys() | READS_THE_SAME
    assert names(ModelPlan) == MODELS.keys() | COMPUTES_THE_SAME
    assert names(Settings) == CHOSEN.keys() | RESOLVED | SHAPES_NO_KV


def test_what_shapes_no_kv_changes_no_key() -> None:
    assert key(plan=replace(PLAN, end_s=7.0, fallback="decord")) == key()
    assert key(model=replace(MODEL, spread=True, device="cpu:0")) == key()
    assert key(settings=Settings(max_new_tokens=3, temperature=0.5, seed=1)) == key()
