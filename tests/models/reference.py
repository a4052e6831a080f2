"""The decoder in one plain pass, written out: no cache, no hooks, one mask a layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sttm_cli.types import Prompt, VisualTokens


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
) -> torch.Tensor:
    """Prompt and question together, merged before `layer`: the logits [V] of the last token."""
    embeds = torch.cat([model.embed_prompt(prompt, tokens), model.embed(question)])
    after = prompt.next_position + torch.arange(len(question))
    positions = torch.cat([prompt.positions, after.expand(len(prompt.positions), -1)], dim=1)
    hidden, places, deep = embeds, prompt.video, [d.flatten(0, 2) for d in tokens.deep]
    for index, block in enumerate(model.decoder.layers):
        if index == layer:
            merged = merge(hidden[places].unflatten(0, prompt.grid))
            roots = places[merged.roots]
            keep = sorted({*range(len(hidden))} - {*places.tolist()} | {*roots.tolist()})
            hidden[roots] = merged.features
            hidden, positions = hidden[keep], positions[:, keep]
            places = torch.tensor([keep.index(root) for root in roots.tolist()])
            deep = [merged.sources(d.unflatten(0, prompt.grid)) for d in deep]
            if reassigned:
                positions = torch.arange(len(keep))[None]
        hidden = _layer(model.decoder, block, hidden, positions)
        if index < len(deep):
            hidden[places] += deep[index]
    return model.logits(model.decoder.norm(hidden)[-1])


def _layer(decoder: Any, block: Any, hidden: torch.Tensor, positions: torch.Tensor):
    rotary = decoder.rotary_emb(
        hidden[None], positions if len(positions) == 1 else positions[:, None]
    )
    mask = torch.full((len(hidden), len(hidden)), float("-inf")).triu(1)[None, None]
    out = block(hidden[None], attention_mask=mask, position_embeddings=rotary, position_ids=None)
    return (out[0] if isinstance(out, tuple) else out)[0].clone()
