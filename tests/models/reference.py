"""What a family is held to: transformers' own generation, and the decoder in one plain pass,
written out: no cache, no hooks, one mask a layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sttm_cli.answer import generate
from sttm_cli.base.types import Prompt, VisualTokens
from sttm_cli.prefill import KVContinuation, MergeConfig, prefill
from tests.fakes import keep_all, pair_up

QUESTION = "what colour is the circle?"


def prefilled(
    model: Any, tokens: VisualTokens, merging: MergeConfig
) -> tuple[KVContinuation, Prompt]:
    """The prefix of a video's visual tokens, and its prompt."""
    prompt = model.prompt(tokens)
    embeds, extras = model.embed_prompt(prompt, tokens), model.extras(prompt.ids)
    kv = prefill(model.decoder, prompt, embeds, merging, extras=extras)
    return KVContinuation(model, kv), prompt


def assert_equals_transformers(
    model: Any, tokens: VisualTokens, theirs: Any, processor: Any, inputs: Any
) -> None:
    """Token ids, the first token's logits and the greedy answer are those of `generate`."""
    prefix, prompt = prefilled(model, tokens, MergeConfig(1, keep_all, "reassigned"))
    question = model.question(QUESTION)
    assert [*prompt.ids.tolist(), *question.tolist()] == inputs["input_ids"][0].tolist()
    with torch.inference_mode():
        wanted = theirs(**inputs).logits[0, -1]
        out = theirs.generate(**inputs, do_sample=False, max_new_tokens=12)
    logits = prefix.extend(question)
    prefix.rewind()
    assert torch.allclose(logits, wanted, atol=1e-4)
    assert wanted.std() > 0.1
    text = processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert generate(prefix, question, model, max_new_tokens=12).text == text.strip()


def assert_equals_one_pass(
    model: Any, tokens: VisualTokens, layer: int, *, sizes: bool = False
) -> None:
    """A question behind a prefix that was merged before `layer` gives the logits of one pass.

    In one thread: several sum in orders that depend on the shapes, which differ here.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _equals_one_pass(model, tokens, layer, sizes=sizes)
    finally:
        torch.set_num_threads(threads)


def _equals_one_pass(model: Any, tokens: VisualTokens, layer: int, *, sizes: bool) -> None:
    prefix, prompt = prefilled(model, tokens, MergeConfig(layer, pair_up, "reassigned", sizes))
    question = model.question(QUESTION)
    flat = len(prompt.positions) == 1
    wanted = one_pass(
        model,
        prompt,
        tokens,
        question=question,
        layer=layer,
        merge=pair_up,
        reassigned=flat,
        sizes=sizes,
    )
    assert torch.allclose(prefix.extend(question), wanted, atol=1e-5)


@torch.inference_mode()
def one_pass(
    model: Any,
    prompt: Prompt,
    tokens: VisualTokens,
    *,
    question: torch.Tensor,
    layer: int,
    merge: Callable[[torch.Tensor], Any],
    reassigned: bool,
    sizes: bool = False,
) -> torch.Tensor:
    """Prompt and question together, merged before `layer`: the logits [V] of the last token.

    `sizes`: from `layer` on, log(cells behind a token) is added to the logits of its key.
    """
    embeds = torch.cat([model.embed_prompt(prompt, tokens), model.embed(question)])
    after = prompt.next_position + torch.arange(len(question))
    positions = torch.cat([prompt.positions, after.expand(len(prompt.positions), -1)], dim=1)
    bias = torch.zeros(())
    blocks = torch.full((len(embeds),), -1)
    if prompt.blocks is not None:
        blocks[: len(prompt.ids)] = prompt.blocks
    hidden, places, deep = embeds, prompt.video, [d.flatten(0, 2) for d in tokens.deep]
    own = own_inputs(model, torch.cat([prompt.ids, question]), embeds)
    shared: dict[str, Any] = {}
    for index, block in enumerate(model.decoder.layers):
        if index == layer:
            merged = merge(hidden[places].unflatten(0, prompt.grid))
            roots = places[merged.roots]
            keep = sorted({*range(len(hidden))} - {*places.tolist()} | {*roots.tolist()})
            hidden[roots] = merged.features
            if own is not None:
                own[roots] = merged.sources(own[places].unflatten(0, prompt.grid).flatten(3)).view(
                    -1, *own.shape[1:]
                )
                own = own[keep]
            hidden, positions, blocks = hidden[keep], positions[:, keep], blocks[keep]
            places = torch.tensor([keep.index(root) for root in roots.tolist()])
            deep = [merged.sources(d.unflatten(0, prompt.grid)) for d in deep]
            if sizes:
                bias = torch.zeros(len(keep))
                bias[places] = merged.patch_counts.float().log()
            if reassigned:
                positions = torch.arange(len(keep))[None]
        more: dict[str, Any] = {} if own is None else {"per_layer_input": own[None, :, index]}
        if hasattr(block, "layer_scalar"):  # Gemma 4
            more["shared_kv_states"] = shared
        hidden = _layer(model.decoder, block, hidden, positions, blocks, bias, more)
        if index < len(deep):
            hidden[places] += deep[index]
    return model.logits(model.decoder.norm(hidden)[-1])


def own_inputs(model: Any, ids: torch.Tensor, embeds: torch.Tensor) -> torch.Tensor | None:
    """What Gemma 4's small models add in each layer [L, layers, C], None for others."""
    if not getattr(model.decoder, "hidden_size_per_layer_input", 0):
        return None
    config = model.decoder.config
    ids = torch.where(ids == model.video_id, config.pad_token_id, ids)
    rows = model.decoder.embed_tokens_per_layer(ids[None]).unflatten(
        -1, (len(model.decoder.layers), -1)
    )
    return model.decoder.project_per_layer_inputs(embeds[None], rows)[0]


def _layer(
    decoder: Any,
    block: Any,
    hidden: torch.Tensor,
    positions: torch.Tensor,
    blocks: torch.Tensor,
    bias: torch.Tensor,
    more: dict[str, Any],
):
    index = list(decoder.layers).index(block)
    embedding, named = decoder.rotary_emb, ()
    if index not in getattr(decoder.config, "rope_scaling_layers", [index]):
        embedding = decoder.rotary_emb_unscaled
    later = torch.ones(len(hidden), len(hidden), dtype=torch.bool).triu(1)
    hides = later & ~((blocks[:, None] == blocks) & (blocks >= 0))
    if hasattr(block, "layer_scalar"):
        kind = decoder.config.layer_types[index]
        named = (kind,)
        far = positions[0, :, None] - positions[0] >= decoder.config.sliding_window
        if decoder.config.model_type == "gemma4_text":
            hides = (hides | far) if kind == "sliding_attention" else later
        elif kind == "sliding_attention":  # tokens of a picture see each other however far
            hides = (later | far) & ~((blocks[:, None] == blocks) & (blocks >= 0))
    rotary = embedding(
        hidden[None], positions if len(positions) == 1 else positions[:, None], *named
    )
    mask = torch.zeros(len(hidden), len(hidden)).masked_fill(hides, float("-inf"))
    mask = (mask + bias)[None, None]
    if getattr(block, "block_type", "") == "linear_attention":
        mask = None
    more = {**more, "attention_mask": mask, "position_embeddings": rotary, "position_ids": None}
    out = block(hidden[None], **more)
    return (out[0] if isinstance(out, tuple) else out)[0].clone()
