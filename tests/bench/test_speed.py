"""`sttm bench speed`: what it measures, what it refuses, and its floors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from sttm_cli.base.errors import OutOfMemoryError, UsageError
from sttm_cli.base.types import PrefixKV, TokenCounts
from sttm_cli.bench import speed as measuring
from sttm_cli.bench.floor import prefill_flops
from sttm_cli.bench.geometry import GEOMETRIES, Geometry
from sttm_cli.cli import app

SAMPLE = str(Path(__file__).parents[2] / "docs" / "sample.mp4")
STAGES = {"decode", "encode", "merge", "prefill", "restore", "question"}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sttm_cli.bench.floor.MOVED", 2**20)
    monkeypatch.setenv("STTM_CACHE_DIR", str(tmp_path / "cache"))


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["bench", "speed", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_every_stage_of_a_model_is_measured_and_nothing_stays_in_the_cache(tmp_path: Path) -> None:
    report = json.loads(
        run(SAMPLE, "--frames", "2,4", "--budgets", "0.5", "--repeat", "1", "--json", "-q")
    )
    assert [part["frames"] for part in report["frames"]] == [2, 4]
    for part in report["frames"]:
        full, half = part["rows"]
        assert (full["budget"], half["budget"]) == (1.0, 0.5)
        assert half["video_kept"] <= 0.5 * full["video_kept"] == 0.5 * half["video_full"]
        assert half["kv_bytes"] < full["kv_bytes"]
        assert set(half["seconds"]) == STAGES
        assert all(value > 0 for value in half["seconds"].values())
        assert half["to_first_token"]["cached"] < half["to_first_token"]["cold"]
        assert set(half["floor_share"]) == {"encode", "merge", "prefill", "restore", "token"}
        assert part["transformers"]["generate"] > 0
        assert part["transformers"]["prompt_cache"] > 0
    assert {path.name for path in (tmp_path / "cache").iterdir()} <= {"CACHEDIR.TAG", "index"}


@pytest.mark.parametrize(
    ("name", "scale"),
    [("llava-video-7b", 4), ("llava-onevision-0.5b", 2), ("qwen2-vl-2b", 2), ("qwen3-vl-8b", 4)],
)
def test_a_geometry_is_measured_with_random_weights_and_says_that_it_was_shrunk(
    name: str, scale: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    geometry = GEOMETRIES[name]
    text = {**geometry.config["text_config"], "vocab_size": 1000}
    small = replace(geometry, config={**geometry.config, "text_config": text})
    monkeypatch.setitem(GEOMETRIES, name, small)
    plot = tmp_path / "plot.png"
    said = run(
        *(SAMPLE, "--geometry", name, "--layers", "5", "--scale", str(scale), "--frames", "2"),
        *("--budgets", "0.3", "--repeat", "1", "--no-peers", "--plot", str(plot)),
    )
    assert (
        f"{name}, random weights, 5 layers, widths / {scale}; merged by sttm before layer" in said
    )
    assert "TFLOP/s" in said
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_geometry_that_cannot_fit_is_refused_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sttm_cli.bench.random_model.free_bytes", lambda device: 2**30)
    with pytest.raises(OutOfMemoryError, match=r"llava-video-7b takes 2[0-9]\.\d GiB"):
        run("--geometry", "llava-video-7b", "--dtype", "float32")


def test_frames_whose_kv_cannot_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "free_bytes", lambda device: 2**20)
    with pytest.raises(OutOfMemoryError, match="2 frames are 98 tokens"):
        run(SAMPLE, "--frames", "2")


def test_flags_that_cannot_hold_together_are_named() -> None:
    with pytest.raises(UsageError, match="--layers and --scale"):
        run(SAMPLE, "--layers", "4")
    with pytest.raises(UsageError, match="--geometry and --model"):
        run(SAMPLE, "--geometry", "qwen2-vl-7b", "--model", "qwen2-vl-7b")
    with pytest.raises(UsageError, match="gives 8 frames, not --frames 64"):
        run(SAMPLE, "--frames", "64")


def test_geometries_have_the_released_sizes() -> None:
    keys = "hidden_size", "intermediate_size", "num_hidden_layers", "num_key_value_heads"

    def sizes(geometry: Geometry) -> list[int]:
        return [geometry.config["text_config"][key] for key in keys]

    assert sizes(GEOMETRIES["llava-video-7b"]) == [3584, 18944, 28, 4]
    assert sizes(GEOMETRIES["llava-video-7b"].shrunk(4, 4)) == [896, 4736, 4, 1]
    tower = GEOMETRIES["qwen3-vl-8b"].shrunk(10, 2).config["vision_config"]
    assert (tower["depth"], tower["deepstack_visual_indexes"]) == (10, [8])
    with pytest.raises(UsageError, match="does not divide"):
        GEOMETRIES["llava-onevision-0.5b"].shrunk(None, 4)


def test_the_floor_of_a_prefill_counts_every_product_once() -> None:
    def layer() -> torch.nn.Module:
        block = torch.nn.Module()
        block.self_attn = torch.nn.Module()
        for name, out in (("q_proj", 4), ("k_proj", 2), ("v_proj", 2)):
            block.self_attn.add_module(name, torch.nn.Linear(4, out, bias=False))
        return block

    buffers = [torch.zeros(9, 1, 2)] * 2
    counts = TokenCounts(3, 3, 3)
    kv = PrefixKV(buffers, buffers, (5, 3), 1, (3, 3), counts, (1, 1, 3))
    first = 2 * 5 * (16 + 8 + 8) + 2 * 2 * 2 * 5**2  # weights, then two heads of two
    assert prefill_flops(SimpleNamespace(layers=[layer(), layer()]), kv) == first + 2 * 3 * 16
