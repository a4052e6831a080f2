"""The ragged KV is right where attention makes its own causal mask, as flash attention does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.integrations import flash_attention

from sttm_cli.base.device import resolve_attention
from sttm_cli.base.types import FrameChunk
from sttm_cli.models.checkpoint import find_checkpoint
from sttm_cli.models.loading import Placement
from sttm_cli.models.registry import load
from sttm_cli.prefill import KVContinuation, MergeConfig, prefill
from tests.checkpoints import llava_onevision
from tests.checkpoints_qwen import qwen_vl
from tests.fakes import DictMemo, pair_up

BUILDERS = {
    "llava_onevision": lambda folder: llava_onevision(folder),
    "qwen2_5_vl": lambda folder: qwen_vl(folder, "qwen2_5_vl"),
    "qwen3_vl": lambda folder: qwen_vl(folder, "qwen3_vl"),
}


def as_flash_attention_computes(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    position_ids: torch.Tensor | None = None,
    is_causal: bool,
    softmax_scale: float,
    **kwargs: Any,
) -> torch.Tensor:
    """[1, n, heads, dim] attending to [1, m, kv heads, dim], the last query to the last key."""
    assert mask is None
    # Gaps in the ids would make transformers cut the sequence into packed pieces.
    assert position_ids is None or (position_ids.diff() == 1).all()
    query, key, value = (t[0].transpose(0, 1) for t in (query, key, value))
    repeat = len(query) // len(key)
    key, value = key.repeat_interleave(repeat, 0), value.repeat_interleave(repeat, 0)
    scores = query @ key.transpose(1, 2) * softmax_scale
    n, m = scores.shape[1:]
    unseen = torch.ones(n, m, dtype=torch.bool).triu(m - n + 1)
    weights = scores.masked_fill(unseen & is_causal, float("-inf")).softmax(-1)
    return (weights @ value).transpose(0, 1)[None]


def answered(folder: Path, positions: str, attention: str) -> torch.Tensor:
    source = find_checkpoint(str(folder), str(folder), revision=None, memo=DictMemo())
    model = load(source, Placement("cpu", "float32"))
    model.decoder.config._attn_implementation = attention
    frames = np.random.default_rng(0).integers(0, 255, (6, 56, 40, 3)).astype(np.uint8)
    tokens = model.encode(FrameChunk(frames, ()), 6)
    prompt = model.prompt(type(tokens)(tokens.features, tokens.deep, (0, 1, 2, 3, 4, 5)))
    embeds = model.embed_prompt(prompt, tokens)
    merging = MergeConfig(2, pair_up, positions)
    kv = prefill(model.decoder, prompt, embeds, merging, deep=tokens.deep)
    going = KVContinuation(model, kv)
    going.extend(model.question("what colour is the circle?"))
    return going.extend(torch.tensor([7]))


@pytest.mark.parametrize("positions", ["reassigned", "survivors"])
@pytest.mark.parametrize("family", BUILDERS)
@torch.inference_mode()
def test_masks_that_attention_makes_itself_give_the_same_answer(
    family: str, positions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = BUILDERS[family](tmp_path / "model")
    wanted = answered(folder, positions, "sdpa")
    calls: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(1)
        return as_flash_attention_computes(*args, **kwargs)

    monkeypatch.setattr(flash_attention, "_flash_attention_forward", counted)
    assert torch.allclose(answered(folder, positions, "flash_attention_2"), wanted, atol=1e-4)
    assert calls


def test_flash_attention_is_chosen_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers.utils as hf

    of_device = {"cuda": (9, 0), "cuda:1": (8, 0), "cuda:2": (7, 5)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: of_device[device])
    monkeypatch.setattr(hf, "is_flash_attn_2_available", lambda: True)
    assert resolve_attention("cuda:1", "bfloat16") == "flash_attention_2"
    assert resolve_attention("cuda:2", "float16") == "sdpa"
    assert resolve_attention("cuda", "float32") == "sdpa"
    assert resolve_attention("cpu", "bfloat16") == "sdpa"
    monkeypatch.setattr(hf, "is_flash_attn_2_available", lambda: False)
    assert resolve_attention("cuda", "bfloat16") == "sdpa"
