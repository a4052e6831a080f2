"""Sizes in attention: one pass with the same bias, whatever way the tokens took."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import sttm_cli.prefill.sizes as sizing
from sttm_cli.base.names import METHODS
from sttm_cli.base.types import VisualTokens
from sttm_cli.merge.method import find_method
from sttm_cli.models.checkpoint import find_checkpoint
from sttm_cli.models.loading import Placement
from sttm_cli.models.registry import load
from sttm_cli.prefill import KVContinuation, MergeConfig, prefill
from sttm_cli.prefill.sizes import counting
from sttm_cli.prefill.together import Together
from tests.fakes import DictMemo, keep_all, pair_up
from tests.models.reference import one_pass

GRID = (4, 6, 6)
QUESTION = "how many shapes are there?"


@pytest.fixture(scope="module")
def model(random_model):
    source = find_checkpoint("m", str(random_model), revision=None, memo=DictMemo())
    return load(source, Placement("cpu", "float32"))


@pytest.fixture(scope="module")
def prefix(model):
    torch.manual_seed(5)
    tokens = VisualTokens(torch.randn(*GRID, model.decoder.config.hidden_size))
    prompt = model.prompt(tokens)
    return prompt, model.embed_prompt(prompt, tokens), tokens


def merged_by(name: str, share: float = 0.3):
    return lambda features: find_method(name).merge(features, share)


def prefilled(model, prefix, merge, *, layer: int = 1, sizes: bool = True):
    prompt, embeds, _ = prefix
    return prefill(model.decoder, prompt, embeds, MergeConfig(layer, merge, "reassigned", sizes))


@pytest.mark.parametrize("layer", [0, 1, 3])
@pytest.mark.parametrize("method", ["pair", "sttm", "tome", "pooling", "evs"])
@torch.inference_mode()
def test_prefix_then_question_equals_one_pass_with_the_same_bias(
    model, prefix, layer: int, method: str
) -> None:
    prompt, _, tokens = prefix
    merge = pair_up if method == "pair" else merged_by(method)
    going = KVContinuation(model, prefilled(model, prefix, merge, layer=layer))
    question = model.question(QUESTION)
    parts = [going.extend(part) for part in (question[:1], question[1:4], question[4:])]
    wanted, without = (
        one_pass(
            model,
            prompt,
            tokens,
            question=question,
            layer=layer,
            merge=merge,
            reassigned=True,
            sizes=sizes,
        )
        for sizes in (True, False)
    )
    assert torch.allclose(parts[-1], wanted, atol=1e-5)
    if method != "evs":
        assert not torch.allclose(wanted, without, atol=1e-3)


@pytest.mark.parametrize("method", METHODS.names())
def test_where_nothing_is_merged_nothing_changes(model, prefix, method: str) -> None:
    on, off = (
        prefilled(model, prefix, merged_by(method, 1.0), sizes=sizes) for sizes in (True, False)
    )
    assert on.sizes is None
    for ours, theirs, length in zip(on.keys, off.keys, on.lengths, strict=True):
        assert torch.equal(ours[:length], theirs[:length])
    question = model.question(QUESTION)
    logits = [KVContinuation(model, kv).extend(question) for kv in (on, off)]
    assert torch.equal(*logits)


def test_sizes_are_the_cells_behind_each_token_and_text_counts_once(model, prefix) -> None:
    kv = prefilled(model, prefix, pair_up)
    assert kv.sizes is not None
    assert len(kv.sizes) == kv.lengths[-1] == kv.tokens.prefix
    full = kv.tokens.prefix - kv.tokens.video_kept + kv.tokens.video_full
    assert int(kv.sizes.sum()) == full
    assert sorted(set(kv.sizes.tolist())) == [1, 2]


def test_a_token_of_size_n_weighs_as_n_equal_ones() -> None:
    """The definition, on attention itself: in one layer without positions."""
    torch.manual_seed(1)
    query, key, value = (torch.randn(1, 2, 5, 16) for _ in range(3))
    sizes = torch.tensor([1, 3, 1, 7, 2])
    many_k, many_v = (t.repeat_interleave(sizes, 2) for t in (key, value))
    module = torch.nn.Module()
    module.layer_idx, module.num_key_value_groups, module.is_causal = 0, 1, False
    run = sizing.Counted("sdpa", 0, sizing.logs_of(sizes))
    token = sizing._run.set(run)
    try:
        found, _ = sizing._attend(module, query, key, value, None)
        behind, _ = sizing._attend(module, query[:, :, -1:], key, value, None)
    finally:
        sizing._run.reset(token)
    wanted, _ = sdpa_attention_forward(module, query, many_k, many_v, None)
    assert torch.allclose(found, wanted, atol=1e-6)
    assert torch.allclose(behind, wanted[:, -1:], atol=1e-6)


@torch.inference_mode()
def test_questions_decoded_together_count_sizes_as_each_alone(model, prefix) -> None:
    kv = prefilled(model, prefix, pair_up)
    first, second = model.question(QUESTION), model.question("is there a circle?")
    alone = [KVContinuation(model, deepcopy(kv)).extend(q) for q in (first, second)]
    base = KVContinuation(model, kv)
    rows = base_rows(base, [first, second])
    for row, wanted in zip(rows, alone, strict=True):
        assert torch.allclose(row, wanted, atol=1e-5)


def base_rows(base: KVContinuation, questions: list[torch.Tensor]) -> list[torch.Tensor]:
    """The logits after each question, all in one run."""
    together = Together(base, len(questions))
    together._run(dict(enumerate(questions)))
    return [together._logits[i][-1] for i in range(len(questions))]


def test_the_model_is_as_before_also_after_an_error(model, prefix) -> None:
    before = model.decoder.config._attn_implementation

    def broken(grid: torch.Tensor):
        raise ValueError("no merge today")

    with pytest.raises(ValueError, match="no merge today"):
        prefilled(model, prefix, broken)
    assert model.decoder.config._attn_implementation == before
    prefilled(model, prefix, keep_all)
    assert model.decoder.config._attn_implementation == before


def test_a_kernel_that_cannot_count_is_refused_by_name(model) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.decoder.config, "_attn_implementation", "flex_attention")
        with pytest.raises(ValueError, match="'flex_attention'"), counting(model.decoder, 0):
            pass


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loses_no_more_than_its_own_rounding(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    query, key, value = (torch.randn(1, 4, 64, 32) for _ in range(3))
    run = sizing.Counted("sdpa", 0, sizing.logs_of(torch.randint(1, 200, (64,))))
    module = torch.nn.Module()
    module.layer_idx, module.num_key_value_groups, module.is_causal = 0, 1, True
    token = sizing._run.set(run)
    try:
        exact, _ = sizing._attend(module, query, key, value, None)
        half, _ = sizing._attend(module, *(t.to(dtype) for t in (query, key, value)), None)
    finally:
        sizing._run.reset(token)
    assert (half.float() - exact).abs().max() < 8 * torch.finfo(dtype).eps
