"""`VideoQA` as Python users see it: its signature, a loaded model, and what its seconds mean."""

from __future__ import annotations

import inspect
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sttm_cli import VideoQA
from sttm_cli.base.errors import UsageError
from sttm_cli.base.results import Clock
from sttm_cli.runtime.prepared import seconds_to_prefix
from sttm_cli.settings.settings import SETTINGS, Settings
from tests.cli.process import sttm_here
from tests.cli.test_ask import QUESTION, SAMPLE

STAGES = ("decode", "encode", "merge", "prefill")


def test_the_signature_names_every_setting_with_its_default() -> None:
    shown = inspect.signature(VideoQA).parameters
    assert [name for name in shown if name in SETTINGS] == [f.name for f in fields(Settings)]
    assert not [p for p in shown.values() if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    for field in fields(Settings):
        assert shown[field.name].default == field.default, field.name


def loaded(folder: Path, **how: Any) -> tuple[Any, Any]:
    from transformers import AutoProcessor, LlavaOnevisionForConditionalGeneration

    model = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, **how)
    return model.eval(), AutoProcessor.from_pretrained(folder)


def hooks(model: Any) -> list[Any]:
    """Those of this package: transformers attaches some of its own."""
    found = [
        h
        for m in model.modules()
        for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())
    ]
    return [hook for hook in found if "sttm" in str(getattr(hook, "__module__", ""))]


def test_a_loaded_model_answers_as_its_folder_does_and_stays_as_it_was(random_model: Path) -> None:
    model, processor = loaded(random_model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with VideoQA(model=str(random_model), max_new_tokens=8) as qa:
        wanted = qa.ask(SAMPLE, QUESTION)
    with VideoQA(model=model, processor=processor, max_new_tokens=8) as qa:
        found = qa.ask(SAMPLE, QUESTION)
    assert (found.text, found.tokens) == (wanted.text, wanted.tokens)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert hooks(model) == []


def test_its_kv_is_found_again_for_the_same_weights_only(random_model: Path) -> None:
    model, processor = loaded(random_model)
    with VideoQA(model=model, processor=processor) as qa:
        first = qa.ask(SAMPLE, QUESTION)
    again, other = loaded(random_model)[0], loaded(random_model)[0]
    with VideoQA(model=again, processor=processor) as qa:
        hit = qa.ask(SAMPLE, QUESTION)
    assert (hit.cache_hit, hit.text) == (True, first.text)
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-3
    with VideoQA(model=other, processor=processor) as qa:
        assert not qa.ask(SAMPLE, QUESTION).cache_hit


def test_a_loaded_model_in_other_numbers_runs_in_them(random_model: Path) -> None:
    model, processor = loaded(random_model, dtype=torch.bfloat16)
    with VideoQA(model=model, processor=processor, max_new_tokens=4) as qa:
        assert qa.model_plan.dtype == "bfloat16"
        assert qa.prepare(SAMPLE).kv.keys[0].dtype == torch.bfloat16


def test_what_cannot_be_a_loaded_model_is_refused(random_model: Path) -> None:
    model, processor = loaded(random_model)
    for given, words in (
        ({"model": model}, "processor of the model is missing"),
        ({"model": object(), "processor": processor}, "the model is a object"),
        ({"model": model.model, "processor": processor}, "ForConditionalGeneration"),
        ({"processor": processor}, "cannot be combined"),
        ({"model": model, "processor": processor, "dtype": "float16"}, "has its own"),
    ):
        with pytest.raises(UsageError, match=words):
            VideoQA(**given)
    with pytest.raises(UsageError, match="training mode"):
        VideoQA(model=model.train(), processor=processor)


# ---- seconds


def test_cold_seconds_are_the_stages_of_the_run_that_computed() -> None:
    with VideoQA() as qa:
        first = qa.prepare(SAMPLE)
        spent = first.clock.seconds()
    with VideoQA() as qa:
        again = qa.prepare(SAMPLE)
    assert again.cache.hit
    assert again.cold_seconds == pytest.approx(sum(spent[name] or 0.0 for name in STAGES))
    assert again.cold_seconds < first.seconds


def test_the_wait_for_another_process_is_said_apart_and_no_work_of_the_video(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = (
        "import sys, time; from sttm_cli.runtime.compute import Compute\n"
        "prefill = Compute.prefill\n"
        "def late(self, *given, **more):\n"
        "    print('computing', flush=True); time.sleep(3)\n"
        "    return prefill(self, *given, **more)\n"
        "Compute.prefill = late\n"
        "from sttm_cli.cli import main\n"
        f"sys.argv = ['sttm', 'ask', {str(SAMPLE)!r}, {QUESTION!r}]; main()"
    )
    with subprocess.Popen([sys.executable, "-c", slow], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "computing\n"
        second = sttm_here("ask", SAMPLE, QUESTION, "--json")
    report = second.json
    assert report["cache"]["hit"]
    assert report["seconds"]["wait"] > 1
    assert report["cache"]["cold_seconds"] < report["seconds"]["wait"]
    assert "of waiting for another process" in second.err
    (entry,) = sttm_here("cache", "ls", "--json").json["entries"]
    # Whoever waited for it gained nothing.
    assert entry["saved_seconds"] < 0


def test_a_record_of_an_earlier_version_counts_its_stages_alone() -> None:
    with VideoQA() as qa:
        kv = qa.prepare(SAMPLE).kv
    kv.facts["waited_s"] = 1000.0
    assert seconds_to_prefix(kv) < 100
    assert Clock().seconds() == dict.fromkeys(("load_model", *STAGES, "restore"))


def test_a_session_with_a_loaded_model_takes_every_setting_and_so_does_the_next(
    random_model: Path,
) -> None:
    model, processor = loaded(random_model)
    with VideoQA(model=model, processor=processor, attention_sizes="on", no_cache=True) as qa:
        assert qa.model_plan.attention_sizes
        other = replace(qa.settings, merge_layer=0, method="tome", attention_sizes="off")
        with qa.with_settings(other) as next_one:
            plan = next_one.model_plan
            assert (plan.merge_layer, plan.method.name, plan.attention_sizes) == (0, "tome", False)
            assert next_one.ask(SAMPLE, QUESTION).tokens.video_kept
    model.set_attn_implementation("eager")
    with pytest.raises(UsageError, match="attention 'eager'"):
        VideoQA(model=model, processor=processor, attention_sizes="on", no_cache=True)
    # Where nobody asked, a kernel that cannot count sizes leaves them out.
    with VideoQA(model=model, processor=processor, method="anchors", no_cache=True) as qa:
        assert not qa.model_plan.attention_sizes


def test_sizes_count_in_attention_as_the_method_needs_it_unless_said() -> None:
    wanted = {"anchors": True, "sttm": False}
    for method, counted in wanted.items():
        for said, sized in (("auto", counted), ("on", True), ("off", False)):
            with VideoQA(method=method, attention_sizes=said, no_cache=True) as qa:
                assert qa.model_plan.attention_sizes is sized
