"""Gemma 4's windows, shared keys and values, and layers of unequal shapes, from prefill to disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, Gemma4TextConfig

import sttm_cli
from sttm_cli import VideoQA
from sttm_cli.base.errors import ModelError, UsageError
from sttm_cli.models.families.gemma4 import deepest, shapes
from sttm_cli.models.loading import Placement
from sttm_cli.models.registry import load
from sttm_cli.prefill import KVContinuation, MergeConfig, kv_shapes, layout_of
from sttm_cli.runtime.request import kv_bytes
from sttm_cli.runtime.resources import Resources
from sttm_cli.store import LocalStore, NoStore
from sttm_cli.store.artifact import seal_of
from tests.checkpoints_gemma import KINDS, gemma4
from tests.cli.process import sttm, sttm_here
from tests.fakes import keep_all
from tests.models.reference import QUESTION as PROMPTED
from tests.models.reference import prefilled
from tests.models.test_newer_families import Case, Loaded, reference, source
from tests.serve.running import serving

SAMPLE = Path(__file__).parents[2] / "docs" / "sample.mp4"
QUESTION = "what colour is the circle?"
LONG = " and ".join(["how many shapes are there, which of them moves to the left?"] * 3)
WINDOW = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def get(size: str) -> Path:
        if size not in made:
            made[size] = gemma4(tmp_path_factory.mktemp("gemma") / size, size, window=WINDOW)
        return made[size]

    return get


def asking(model: Path, **fields: Any) -> VideoQA:
    return VideoQA(model=str(model), frames=4, budget=0.4, dtype="float32", **fields)


@pytest.mark.parametrize("size", KINDS)
@torch.inference_mode()
def test_answers_longer_than_the_window_equal_transformers(
    folder: Callable[[str], Path], size: str
) -> None:
    shape = (4, 64, 96)
    frames = np.random.default_rng(5).integers(0, 255, (*shape, 3)).astype(np.uint8)
    ours = load(source(folder(size)), Placement("cpu", "float32"))
    loaded = Loaded(Case(gemma4, shape), folder(size), ours, frames)
    theirs, _, inputs = reference(loaded)
    endless: dict[str, Any] = {"max_new_tokens": 3 * WINDOW, "eos_token_id": -1}
    out = theirs.generate(**inputs, do_sample=False, **endless)
    wanted = out[0, inputs["input_ids"].shape[1] :].tolist()
    prefix, _ = prefilled(ours, loaded.tokens, MergeConfig(1, keep_all, "reassigned"))
    ids, made = ours.question(PROMPTED), list[int]()
    for _ in wanted:
        made.append(int(prefix.extend(ids).argmax()))
        ids = torch.tensor(made[-1:])
    assert made == wanted
    assert len(made) == 3 * WINDOW


def test_window_layers_keep_what_can_still_be_seen_and_others_reuse(
    folder: Callable[[str], Path],
) -> None:
    with asking(folder("small"), no_cache=True) as qa:
        kv = qa.prepare(SAMPLE).kv
        full = kv.tokens.prefix - kv.tokens.video_kept + kv.tokens.video_full
        near = WINDOW - 1
        assert kv.lengths == (near, near, near, kv.tokens.prefix, near)
        assert kv.next_positions == (full, kv.tokens.prefix)
        assert [tuple(k.shape[1:]) for k in kv.keys] == [(2, 16)] * 3 + [(2, 32), (2, 16)]
        assert len(qa.model().layer_devices) == 5 < len(qa.model().decoder.layers)
    with asking(folder("large"), no_cache=True) as qa:
        kv = qa.prepare(SAMPLE).kv
        assert [tuple(k.shape[1:]) for k in kv.keys][2:5] == [(2, 16), (1, 32), (2, 16)]


def test_what_is_known_from_the_config_alone_is_what_loading_gives(
    folder: Callable[[str], Path],
) -> None:
    for size in ("small", "large", "experts"):
        text = json.loads((folder(size) / "config.json").read_text())["text_config"]
        assert_described(text)
    # As the hub's files have it: no layer has a config of its own.
    hub = {"num_hidden_layers": 7, "num_key_value_heads": 4, "head_dim": 64, "sliding_window": 512}
    for more in (
        {},
        {"global_head_dim": 128, "num_kv_shared_layers": 0},
        {"num_global_key_value_heads": 2, "attention_k_eq_v": True},
        {"num_global_key_value_heads": 2, "attention_k_eq_v": False},
        {"layer_types": KINDS["small"], "num_kv_shared_layers": 3},
    ):
        assert_described({**hub, **more})


def assert_described(text: dict[str, Any]) -> None:
    config = Gemma4TextConfig(**text)
    layout = layout_of(config)
    assert [(s.heads, s.dim) for s in shapes(text)] == kv_shapes(config)
    windows = [text["sliding_window"] * (k == "sliding_attention") for k in layout.kinds]
    assert [s.window for s in shapes(text)] == windows[: layout.holding]
    assert deepest(text) == layout.deepest


@pytest.mark.parametrize("size", ["small", "large"])
def test_the_kv_is_estimated_from_the_config(folder: Callable[[str], Path], size: str) -> None:
    with asking(folder(size), no_cache=True) as qa:
        ready = qa.prepare(SAMPLE)
        about = kv_bytes(ready.request.plan, qa.model_plan, 0.4, dtype="float32")
    assert about is not None
    assert about == pytest.approx(ready.kv.nbytes, rel=0.15)


@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
@pytest.mark.parametrize("size", ["small", "large", "unified"])
def test_commands_answer_the_same_cold_and_from_the_disk(
    folder: Callable[[str], Path], tmp_path: Path, size: str, kv_dtype: str
) -> None:
    flags = ("--model", folder(size), "--frames", 4, "--max-new-tokens", 30, "--no-server")
    flags += ("--cache-dir", tmp_path, "--kv-dtype", kv_dtype, "--json")
    cold = sttm_here("ask", SAMPLE, QUESTION, LONG, *flags)
    fresh = sttm("ask", SAMPLE, QUESTION, LONG, *flags)
    assert (cold.code, fresh.code) == (0, 0), fresh.err
    assert not cold.json["cache"]["hit"]
    assert fresh.json["cache"]["tier"] == "disk"
    assert fresh.json["answers"] == cold.json["answers"]
    assert sttm_here("cache", "verify", "--cache-dir", tmp_path).code == 0


def test_chat_goes_on_as_asking_with_the_turns_before_does(folder: Callable[[str], Path]) -> None:
    model, lines = folder("small"), [QUESTION, LONG, QUESTION]
    flags = ("--model", model, "--frames", 4, "--budget", 0.4, "--max-new-tokens", 6)
    ended = sttm_here("chat", SAMPLE, *flags, "--no-server", "--json", stdin="\n".join(lines))
    assert ended.code == 0, ended.err
    turns, history = json.loads(ended.out)["turns"], list[tuple[str, str]]()
    with asking(model, max_new_tokens=6, no_cache=True) as qa:
        for question in lines:
            history.append((question, qa.ask(SAMPLE, question, history=history).text))
    assert [(t["question"], t["answer"]) for t in turns] == history


def test_a_rewound_prefix_continues_bit_by_bit_as_before(folder: Callable[[str], Path]) -> None:
    with asking(folder("small"), no_cache=True) as qa:
        prefix = qa.prepare(SAMPLE).prefix
        assert isinstance(prefix, KVContinuation)
        first, second = (qa.model().question(text) for text in (QUESTION, LONG))
        once = prefix.extend(first)
        prefix.extend(second)
        prefix.rewind()
        assert torch.equal(prefix.extend(first), once)
        # What a rewind removed comes back as it was.
        whole = torch.cat([first, second])
        prefix.rewind()
        straight = prefix.extend_each(whole)[-1]
        prefix.rewind(len(first))
        assert prefix.resume(whole) == len(whole) - 1
        assert torch.allclose(prefix.extend(whole[-1:]), straight, atol=1e-5)


def test_kvs_come_back_from_host_memory_as_they_were(folder: Callable[[str], Path]) -> None:
    resources = Resources(NoStore(), device_bytes=0, host_bytes=1 << 30)
    with asking(folder("small"), resources=resources, max_new_tokens=20) as qa:
        first = qa.ask(SAMPLE, LONG)
    with asking(folder("small"), resources=resources, max_new_tokens=20) as qa:
        ready = qa.prepare(SAMPLE)
        assert (ready.cache.tier, qa.answer(ready, LONG).text) == ("host", first.text)


def test_a_server_answers_as_a_session_does(folder: Callable[[str], Path], tmp_path: Path) -> None:
    model = folder("small")
    with asking(model, no_cache=True, max_new_tokens=6) as qa:
        wanted = [qa.ask(SAMPLE, question).text for question in (QUESTION, LONG)]
    flags = ("--model", model, "--frames", 4, "--budget", 0.4, "--dtype", "float32")
    with serving(tmp_path, *flags) as running:
        asked = ("ask", SAMPLE, QUESTION, LONG, *flags, "--max-new-tokens", 6, "--json")
        ended = sttm(*asked, **running.env)
        again = sttm(*asked, **running.env)
    assert ended.code == 0, ended.err
    assert [a["answer"] for a in ended.json["answers"]] == wanted
    assert again.json["answers"] == ended.json["answers"]
    assert again.json["cache"]["tier"] == "device"


def test_inspect_counts_what_each_budget_stores(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    flags = ("--model", folder("unified"), "--frames", 4, "--cache-dir", tmp_path, "--json")
    ended = sttm_here("inspect", SAMPLE, *flags, "--budgets", "1,0.3", "--repeat", 1)
    assert ended.code == 0, ended.err
    one, other = ended.json["budgets"]
    assert one["kv_bytes"] > other["kv_bytes"]


# ---- what is stored by others, and what cannot be


def resealed(artifact: Path, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> None:
    """Rewrite an artifact's header and record, sealed as its writer would."""
    data = artifact.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    record = json.loads(header["__metadata__"]["sttm"])
    change(header, record)
    text = json.dumps(record, separators=(",", ":"))
    header["__metadata__"] |= {"sttm": text, "seal": seal_of(text.encode())}
    made = json.dumps(header, separators=(",", ":")).encode()
    artifact.write_bytes(len(made).to_bytes(8, "little") + made + data[start:])


def shaped_otherwise(header: dict[str, Any], record: dict[str, Any]) -> None:
    """The same bytes with twice the heads of half the size."""
    for name in ("layers.3.key", "layers.3.value"):
        length, heads, dim = header[name]["shape"]
        header[name]["shape"] = [length, 2 * heads, dim // 2]


def value_of_another_shape(header: dict[str, Any], record: dict[str, Any]) -> None:
    length, heads, dim = header["layers.3.value"]["shape"]
    header["layers.3.value"]["shape"] = [length, 2 * heads, dim // 2]


def longer_window(header: dict[str, Any], record: dict[str, Any]) -> None:
    """Rows of half the size, twice as many."""
    for name in ("layers.0.key", "layers.0.value"):
        length, heads, dim = header[name]["shape"]
        header[name]["shape"] = [2 * length, heads, dim // 2]
    record["lengths"][0] *= 2


def a_layer_less(header: dict[str, Any], record: dict[str, Any]) -> None:
    record["lengths"].pop()


def no_heads(header: dict[str, Any], record: dict[str, Any]) -> None:
    header["layers.3.key"]["shape"][1] = 0


def shapeless(header: dict[str, Any], record: dict[str, Any]) -> None:
    header["layers.4.key"]["shape"] = [23]


@pytest.mark.parametrize(
    "change",
    [
        shaped_otherwise,
        value_of_another_shape,
        longer_window,
        a_layer_less,
        no_heads,
        shapeless,
    ],
)
def test_wrong_shapes_of_single_layers_are_a_miss(
    folder: Callable[[str], Path], tmp_path: Path, change: Callable[..., None]
) -> None:
    said: list[str] = []
    with asking(folder("small"), cache_dir=str(tmp_path), max_new_tokens=6) as qa:
        wanted = qa.ask(SAMPLE, QUESTION).text
    (artifact,) = tmp_path.glob("kv/*/*.safetensors")
    resealed(artifact, change)
    with LocalStore(tmp_path, warn=said.append) as store:
        store.entries(), store.verify()
    with asking(folder("small"), cache_dir=str(tmp_path), max_new_tokens=6) as qa:
        answer = qa.ask(SAMPLE, QUESTION)
    assert (answer.cache_hit, answer.text) == (False, wanted)


def test_settings_that_the_layers_do_not_allow_are_refused(folder: Callable[[str], Path]) -> None:
    small = folder("small")
    for fields, words in (
        ({"merge_layer": 4}, "reuse the keys and values of layer 3"),
        ({"merge_layer": 7}, "has 7 layers"),
        ({"positions": "survivors"}, "see a window"),
    ):
        with asking(small, no_cache=True, **fields) as qa, pytest.raises(UsageError, match=words):
            qa.ask(SAMPLE, QUESTION)


def test_defaults_of_a_checkpoint_that_its_layers_do_not_allow_are_refused(tmp_path: Path) -> None:
    small = gemma4(tmp_path / "m", "small")
    stated = json.loads((small / "config.json").read_text())
    for own, words in (
        ({"merge_layer": 5}, "reuse the keys and values of layer 3"),
        ({"positions": "survivors"}, "layers that see a window"),
    ):
        (small / "config.json").write_text(json.dumps({**stated, "sttm": own}))
        with asking(small, no_cache=True) as qa, pytest.raises(UsageError, match=words):
            qa.ask(SAMPLE, QUESTION)


def test_a_model_that_looks_ahead_is_refused(tmp_path: Path) -> None:
    large = gemma4(tmp_path / "m", "large", use_bidirectional_attention="all")
    with pytest.raises(ModelError, match="of the type 'bidirectional'"):
        load(source(large), Placement("cpu", "float32"))


def test_merging_inside_of_transformers_is_refused(folder: Callable[[str], Path]) -> None:
    model = AutoModelForImageTextToText.from_pretrained(folder("large")).eval()
    refused = pytest.raises(ModelError, match="cache of these drops tokens")
    with refused, sttm_cli.merging(model, budget=0.3):
        raise AssertionError("not refused")


def test_a_loaded_model_answers_as_its_folder_does(folder: Callable[[str], Path]) -> None:
    with asking(folder("small"), no_cache=True, max_new_tokens=8) as qa:
        wanted = qa.ask(SAMPLE, QUESTION).text
    model = AutoModelForImageTextToText.from_pretrained(folder("small"), dtype=torch.float32)
    given = {"model": model.eval(), "processor": AutoProcessor.from_pretrained(folder("small"))}
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        with VideoQA(**given, frames=4, budget=0.4, max_new_tokens=8, no_cache=True) as qa:
            assert qa.ask(SAMPLE, QUESTION).text == wanted


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sliding_window", 0),
        ("num_kv_shared_layers", -1),
        ("num_kv_shared_layers", 7),
        ("layer_types", ["sliding_attention", "chunked_attention"]),
        ("layer_types", "sliding_attention"),
        ("per_layer_config", {"1": {"head_dim": 1 << 40}}),
        ("per_layer_config", {"3": {"head_dim": 1 << 20, "num_key_value_heads": 1 << 20}}),
        ("vocab_size_per_layer_input", 1 << 23),
        ("hidden_size_per_layer_input", 1 << 20),
        ("pad_token_id", 1 << 50),
    ],
)
def test_a_damaged_config_is_an_error_of_the_model(
    folder: Callable[[str], Path], tmp_path: Path, field: str, value: object
) -> None:
    for path in folder("small").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    stated = json.loads((tmp_path / "config.json").read_text())
    stated["text_config"][field] = value
    (tmp_path / "config.json").write_text(json.dumps(stated))
    ended = sttm_here("ask", SAMPLE, QUESTION, "--model", tmp_path, "--no-server", "--no-cache")
    # Heads without number are a KV that no memory takes.
    assert ended.code == (5 if "num_key_value_heads" in str(value) else 4), ended.err
    assert "Traceback" not in ended.err
