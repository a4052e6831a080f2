"""Prefix then question equals one pass over the whole, ragged or not."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch

from sttm_cli.base.results import CacheUse
from sttm_cli.base.types import VisualTokens
from sttm_cli.models.checkpoint import find_checkpoint
from sttm_cli.models.loading import Placement
from sttm_cli.models.registry import load
from sttm_cli.prefill import KVContinuation, MergeConfig, prefill
from sttm_cli.runtime.resources import DEVICE, Held, KVMemory
from tests.fakes import DictMemo, keep_all, pair_up
from tests.models.reference import one_pass

GRID = (5, 4, 4)
QUESTION = "how many shapes are there?"


@pytest.fixture(scope="module")
def model(random_model: Path):
    source = find_checkpoint("m", str(random_model), revision=None, memo=DictMemo())
    return load(source, Placement("cpu", "float32"))


@pytest.fixture(scope="module")
def prefix(model):
    torch.manual_seed(3)
    channels = model.decoder.config.hidden_size
    tokens = VisualTokens(torch.randn(*GRID, channels))
    prompt = model.prompt(tokens)
    return prompt, model.embed_prompt(prompt, tokens), tokens


@pytest.mark.parametrize("layer", [0, 1, 2, 3])
@pytest.mark.parametrize("positions", ["reassigned", "survivors"])
@pytest.mark.parametrize("merge", [keep_all, pair_up])
@torch.inference_mode()
def test_prefix_then_question_equals_one_pass(model, prefix, layer, positions, merge) -> None:
    prompt, embeds, tokens = prefix
    merging = MergeConfig(layer, merge, positions)
    kv = prefill(model.decoder, prompt, embeds, merging)
    logits = KVContinuation(model, kv).extend(model.question(QUESTION))
    whole = one_pass(
        model,
        prompt,
        tokens,
        question=model.question(QUESTION),
        layer=layer,
        merge=merge,
        reassigned=positions == "reassigned",
    )
    assert torch.allclose(logits, whole, atol=1e-5)


def test_layers_hold_all_tokens_below_the_merge_layer_and_the_merged_from_it_on(
    model, prefix
) -> None:
    prompt, embeds, _ = prefix
    kv = prefill(model.decoder, prompt, embeds, MergeConfig(2, pair_up, "reassigned"))
    full, merged = len(prompt.ids), len(prompt.ids) - 40
    assert kv.lengths == (full, full, merged, merged)
    assert kv.next_positions == (full, merged)
    assert (kv.tokens.video_full, kv.tokens.video_kept, kv.tokens.prefix) == (80, 40, merged)


def test_survivors_keep_their_positions(model, prefix) -> None:
    prompt, embeds, _ = prefix
    kv = prefill(model.decoder, prompt, embeds, MergeConfig(2, pair_up, "survivors"))
    assert kv.next_positions == (len(prompt.ids), len(prompt.ids))


def test_merging_changes_the_answer_of_a_random_model(model, prefix) -> None:
    prompt, embeds, _ = prefix
    logits = [
        KVContinuation(
            model, prefill(model.decoder, prompt, embeds, MergeConfig(1, m, "reassigned"))
        ).extend(model.question(QUESTION))
        for m in (keep_all, pair_up)
    ]
    assert not torch.allclose(*logits, atol=1e-2)


def test_rewinding_gives_the_same_logits_again_and_leaves_the_prefix_as_it_was(
    model, prefix
) -> None:
    prompt, embeds, _ = prefix
    kv = prefill(model.decoder, prompt, embeds, MergeConfig(1, pair_up, "reassigned"))
    before = [k[:n].clone() for k, n in zip(kv.keys, kv.lengths, strict=True)]
    going = KVContinuation(model, kv)
    first = going.extend(model.question(QUESTION))
    going.extend(torch.tensor([7]))
    going.rewind()
    assert torch.equal(going.extend(model.question(QUESTION)), first)
    after = [k[:n] for k, n in zip(kv.keys, kv.lengths, strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_an_answer_longer_than_the_room_behind_the_prefix_still_fits(model, prefix) -> None:
    prompt, embeds, _ = prefix
    kv = prefill(model.decoder, prompt, embeds, MergeConfig(1, pair_up, "reassigned"))
    tokens = torch.arange(700) % 60 + 6
    # Buffers of its own, none of which has to grow.
    roomy = deepcopy(kv)
    roomy.keys, roomy.values = (
        [torch.cat([t, torch.zeros(700, *t.shape[1:])]) for t in side]
        for side in (kv.keys, kv.values)
    )
    never_grown = KVContinuation(model, roomy).extend(tokens)
    going = KVContinuation(model, kv)
    going.extend(tokens[:400])
    assert torch.allclose(going.extend(tokens[400:]), never_grown, atol=1e-4)
    assert torch.allclose(KVContinuation(model, kv).extend(tokens), never_grown, atol=1e-4)


def test_the_room_is_what_the_layers_with_every_token_leave(model, prefix) -> None:
    prompt, embeds, _ = prefix
    kv = prefill(model.decoder, prompt, embeds, MergeConfig(1, pair_up, "reassigned"))
    limit = model.decoder.config.max_position_embeddings
    assert kv.next_positions[1] < kv.next_positions[0] == len(prompt.ids)
    assert KVContinuation(model, kv).room == limit - len(prompt.ids)


def test_buffers_that_grew_count_in_the_memory_that_kvs_may_take(model, prefix) -> None:
    prompt, embeds, _ = prefix
    kv = prefill(model.decoder, prompt, embeds, MergeConfig(1, pair_up, "reassigned"))
    size = sum(t.nbytes for t in kv.keys + kv.values)
    memory, going = KVMemory(device_bytes=size), KVContinuation(model, kv)
    held = memory.add("kv", Held(kv, going, CacheUse(False, "", 0, 0, 0, "new")))
    going.extend(torch.arange(700) % 60 + 6)
    going.rewind()
    assert memory.bytes()[DEVICE] > size
    memory.release(held)
    assert memory.bytes()[DEVICE] == 0


def test_hooks_are_gone_after_a_run_that_failed(model, prefix) -> None:
    prompt, embeds, _ = prefix

    def broken(grid: torch.Tensor):
        raise ValueError("no merge today")

    with pytest.raises(ValueError, match="no merge today"):
        prefill(model.decoder, prompt, embeds, MergeConfig(1, broken, "reassigned"))
    assert all(not layer._forward_pre_hooks for layer in model.decoder.layers)
