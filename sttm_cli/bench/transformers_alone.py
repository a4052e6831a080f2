"""Timing of transformers alone: `generate` on all tokens, and on a copied prompt cache.

The prompt cache follows transformers' documentation, "Re-use cache to continue generation": the
prompt is prefilled into a cache once, and the cache is copied for every question.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from sttm_cli.base.device import wait_for
from sttm_cli.base.errors import UsageError
from sttm_cli.base.types import Json, VisualTokens
from sttm_cli.inspect.timing import QUESTION

if TYPE_CHECKING:
    from sttm_cli.models.family import VideoLLM


@dataclass(frozen=True)
class Alone:
    """Seconds from the visual tokens to the first token: by `generate`, and from a prefilled
    prompt cache in the same process (transformers stores none on disk)."""

    generate: float
    prompt_cache: float

    def to_json(self) -> Json:
        return {"generate": self.generate, "prompt_cache": self.prompt_cache}


def check_peers(model: VideoLLM) -> None:
    """Raise UsageError for a model that transformers cannot run from embeddings."""
    inner: Any = model._model  # type: ignore[attr-defined]
    if "inputs_embeds" not in signature(inner.prepare_inputs_for_generation).parameters:
        raise UsageError(
            f"--peers cannot be combined with a {type(inner).__name__}: transformers does not "
            "generate from its embeddings",
            "give --no-peers",
        )


@torch.inference_mode()
def transformers_alone(model: VideoLLM, tokens: VisualTokens, *, repeat: int) -> Alone:
    """Time both ways on all of a video's visual tokens; medians after a warm-up run.

    Both start from the same embeddings, so decoding and encoding are not included.
    """
    from transformers import DynamicCache

    inner: Any = model._model  # type: ignore[attr-defined]
    prompt = model.prompt(tokens)
    embeds = model.embed_prompt(prompt, tokens)
    question = model.question(QUESTION)
    whole = torch.cat([embeds, model.embed(question)])[None]
    device = str(embeds.device)
    ids = torch.cat([prompt.ids, question])[None].to(device)
    once = {"max_new_tokens": 1, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    ends = {"pad_token_id": min(model.end_ids)}
    cache = DynamicCache(config=inner.config.get_text_config())
    model.decoder(inputs_embeds=embeds[None], past_key_values=cache, use_cache=True)

    def generate() -> None:
        inner.generate(inputs_embeds=whole, **once, **ends)

    def ask_again() -> None:
        inner.generate(ids, past_key_values=copy.deepcopy(cache), **once, **ends)

    return Alone(_median(generate, device, repeat), _median(ask_again, device, repeat))


def _median(run: Callable[[], None], device: str, repeat: int) -> float:
    seconds = []
    for _ in range(repeat + 1):
        wait_for(device)
        started = time.perf_counter()
        run()
        wait_for(device)
        seconds.append(time.perf_counter() - started)
    return median(seconds[1:])
