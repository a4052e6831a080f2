"""Where a model's weights go: one device, several, or not at all where they are not needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sttm_cli.base.errors import OutOfMemoryError
from sttm_cli.base.types import FrameChunk, VisualTokens
from sttm_cli.merge import merge_tokens
from sttm_cli.models.checkpoint import find_checkpoint
from sttm_cli.models.loading import Placement, place, weight_bytes
from sttm_cli.models.registry import load
from sttm_cli.prefill import KVContinuation, MergeConfig, prefill
from sttm_cli.runtime.session import VideoQA
from tests.decode.made import Make
from tests.fakes import DictMemo


def loaded(folder: Path, **options: Any) -> Any:
    source = find_checkpoint("m", str(folder), revision=None, memo=DictMemo())
    return load(source, Placement("cpu", "float32", **options))


def numbers(model: Any) -> int:
    return sum(p.numel() for p in model._model.parameters())


def noise(seed: int = 0) -> FrameChunk:
    frames = torch.randint(0, 255, (4, 96, 128, 3), generator=torch.manual_seed(seed))
    return FrameChunk(frames.to(torch.uint8).numpy(), (0.0, 1.0, 2.0, 3.0))


@torch.inference_mode()
def first_logits(model: Any, tokens: VisualTokens) -> torch.Tensor:
    prompt = model.prompt(tokens)
    merging = MergeConfig(1, lambda grid: merge_tokens(grid, budget=0.5), "reassigned")
    embeds = model.embed_prompt(prompt, tokens)
    extras = model.extras(prompt.ids)
    kv = prefill(model.decoder, prompt, embeds, merging, deep=tokens.deep, extras=extras)
    return KVContinuation(model, kv).extend(model.question("what colour is the circle?"))


def test_without_vision_the_decoder_is_the_same_and_the_tower_is_not_there(folder: Path) -> None:
    whole, blind = loaded(folder), loaded(folder, vision=False)
    assert numbers(blind) < numbers(whole)
    with pytest.raises(RuntimeError, match="without its vision tower"):
        blind.encode(noise(), 4)
    tokens = whole.encode(noise(), 4)
    tokens = VisualTokens(tokens.features, tokens.deep, (0.0, 1.0, 2.0, 3.0), 4.0)
    assert torch.equal(first_logits(whole, tokens), first_logits(blind, tokens))


def test_layers_that_accelerate_moves_give_the_same_answer(folder: Path, tmp_path: Path) -> None:
    from accelerate import dispatch_model

    model = loaded(folder)
    tokens = model.encode(noise(), 4)
    tokens = VisualTokens(tokens.features, tokens.deep, (0.0, 1.0, 2.0, 3.0), 4.0)
    wanted = first_logits(model, tokens)
    inner = model._model
    name = next(n for n, m in inner.named_modules() if m is model.decoder)
    parts = {n: "cpu" for n, m in inner.named_modules() if n and not any(m.children())}
    parts = {n: d for n, d in parts.items() if not n.startswith(f"{name}.layers.1.")}
    there = [f"{part}." for part in parts] + [f"{name}.layers.1."]
    rest = {n: "cpu" for n in inner.state_dict() if not covered(n, there)}
    where = {**parts, **rest, f"{name}.layers.1": "disk"}
    dispatch_model(inner, where, main_device="cpu", offload_dir=str(tmp_path), force_hooks=True)
    assert next(model.decoder.layers[1].parameters()).device.type == "meta"
    assert torch.equal(first_logits(model, tokens), wanted)


def covered(name: str, parts: list[str]) -> bool:
    return any(name.startswith(part) for part in parts)


def test_a_model_goes_to_several_accelerators_only_where_one_does_not_hold_it(
    random_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = find_checkpoint("m", str(random_model), revision=None, memo=DictMemo())
    needed = weight_bytes(source, "float32")

    def asked(free: list[int], *, spread: bool = True) -> Any:
        monkeypatch.setattr("sttm_cli.models.loading.free_bytes", lambda device: free[0])
        monkeypatch.setattr("sttm_cli.models.loading.accelerators", lambda: free)
        return place(source, Placement("cuda", "float32", spread=spread))

    assert asked([2 * needed] * 2) == {"device_map": {"": "cuda"}}
    assert asked([needed] * 2, spread=False) == {"device_map": {"": "cuda"}}
    over = asked([needed] * 2)
    assert over["device_map"] == "balanced"
    assert needed <= sum(over["max_memory"].values()) < 2 * needed
    with pytest.raises(OutOfMemoryError, match="2 accelerators"):
        asked([needed // 2] * 2)


def test_a_hit_goes_on_to_another_video_that_must_be_encoded(
    random_model: Path, tmp_path: Path
) -> None:
    moving = Make(pts=range(20)).write(tmp_path / "moving.mp4")
    still = Make(pts=range(10), size=(96, 96)).write(tmp_path / "still.mp4")

    def asking() -> VideoQA:
        return VideoQA(model=str(random_model), cache_dir=tmp_path / "cache", max_new_tokens=4)

    with asking() as qa:
        first = qa.ask(moving, "what colour is the circle?")
    with VideoQA(model=str(random_model), no_cache=True, max_new_tokens=4) as qa:
        wanted = qa.ask(still, "what colour is the circle?")
    with asking() as qa:
        again = qa.ask(moving, "what colour is the circle?")
        assert again.cache_hit
        with pytest.raises(RuntimeError, match="vision tower"):
            qa.model(vision=False).encode(noise(), 4)
        other = qa.ask(still, "what colour is the circle?")
    assert (again.text, other.text) == (first.text, wanted.text)
