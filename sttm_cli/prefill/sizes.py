"""Attention in which a merged token counts as often as the cells behind it.

log(size) is added to the attention logits of each key, from the merge layer on, in prefill and in
every question: softmax then weighs a token as if its cells stood there one by one. Source: Bolya et
al., "Token Merging: Your ViT But Faster", ICLR 2023, section 3 (proportional attention).

In prefill the logarithm is a channel more of the keys against a constant one of the queries, so
that every kernel can be used and causality costs nothing. Behind a prefix, where a channel more
would mean copying the whole cache for each token, it is an additive mask of one row per query.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import pad
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sttm_cli.base.device import KERNELS
from sttm_cli.base.errors import UsageError

CHANNELS = 8
"""Channels that are added: kernels take head sizes in steps of 8. Two of them are used."""
Attended = tuple[torch.Tensor, Any]
_PREFIX = "sttm_sized_"


@dataclass
class Counted:
    """One run of a decoder: `logs` [P] float32, or [B, P] in a batch, are the logarithms of the
    sizes of the first P keys from layer `merge_layer` on, None as long as nothing is merged; the
    `behind` keys that follow have size 1, all that there are where it is None. A layer may hold
    the last of the P only."""

    kernel: str
    merge_layer: int
    logs: torch.Tensor | None = None
    behind: int | None = None
    masks: dict[tuple[Any, ...], torch.Tensor] = field(default_factory=dict)


_run: ContextVar[Counted | None] = ContextVar("_run", default=None)


@contextmanager
def counting(decoder: Any, merge_layer: int) -> Iterator[Counted]:
    """Have the decoder's layers from `merge_layer` on add `Counted.logs` to their logits.

    Raises UsageError for an attention kernel that cannot.
    """
    with counted_kernel(decoder) as kernel:
        counted = Counted(kernel, merge_layer)
        token = _run.set(counted)
        try:
            yield counted
        finally:
            _run.reset(token)


@contextmanager
def counted_kernel(decoder: Any) -> Iterator[str]:
    """Have the decoder's attention look at `count_in` for the sizes; gives the kernel's own name.

    Raises as `counting`.
    """
    kernel = str(decoder.config._attn_implementation)
    if kernel not in KERNELS:
        raise UsageError(
            f"attention sizes cannot be combined with the attention {kernel!r}",
            f"load the model with one of {', '.join(KERNELS)}",
        )
    decoder.config._attn_implementation = _PREFIX + kernel
    try:
        yield kernel
    finally:
        decoder.config._attn_implementation = kernel


def count_in(run: Counted | None) -> None:
    """From now on this thread's attention is a part of `run`."""
    _run.set(run)


def plain_kernel(decoder: Any) -> str:
    """The name of the decoder's attention, also while sizes count."""
    return str(decoder.config._attn_implementation).removeprefix(_PREFIX)


def logs_of(sizes: torch.Tensor) -> torch.Tensor:
    """Sizes [P], whole numbers from 1 on -> their logarithms [P] float32."""
    return sizes.float().log()


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> Attended:
    """An attention function of transformers: states [B, heads, n, dim] -> [B, n, heads, dim]."""
    run = _run.get()
    if run is None:
        raise RuntimeError("attention with sizes outside of its run")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    attend = ALL_ATTENTION_FUNCTIONS[run.kernel]
    if run.logs is None or module.layer_idx < run.merge_layer:
        plain: Attended = attend(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return plain
    if query.shape[2] != key.shape[2]:
        mask = _biased(run, query, key.shape[2], attention_mask)
        behind: Attended = sdpa_attention_forward(
            module, query, key, value, mask, scaling=scaling, **kwargs
        )
        return behind
    wide = _widened(query, key, value, run.logs.to(query.device) / scaling)
    out, weights = attend(module, *wide, attention_mask, scaling=scaling, **kwargs)
    return out[..., : value.shape[-1]], weights


def _widened(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """States whose products are those of `query` and `key` plus `bias` [n] or [B, n]."""
    dim = key.shape[-1]
    query, key, value = (pad(states, (0, CHANNELS)) for states in (query, key, value))
    query[..., dim : dim + 2] = 1
    # In half precision the rounding error of the first channel goes into the second.
    bias = bias[..., None, :]
    key[..., dim] = bias.to(key.dtype)
    key[..., dim + 1] = (bias - bias.to(key.dtype).float()).to(key.dtype)
    return query, key, value


def _biased(
    run: Counted, query: torch.Tensor, keys: int, mask: torch.Tensor | None
) -> torch.Tensor:
    """The additive mask [B, 1, n, keys] of queries at the end of the keys; one for all layers."""
    place = (query.device, query.dtype, query.shape[2], keys, id(mask))
    if place not in run.masks:
        run.masks[place] = _mask(run, query, keys, mask)
    return run.masks[place]


def _mask(run: Counted, query: torch.Tensor, keys: int, mask: torch.Tensor | None) -> torch.Tensor:
    assert run.logs is not None
    logs = run.logs.to(query.device, query.dtype)
    known = logs.shape[-1]
    behind = keys - known if run.behind is None else run.behind
    bias = pad(logs[..., known + behind - keys :], (0, behind)).reshape(-1, 1, 1, keys)
    count = query.shape[2]
    if mask is None and count == 1:
        return bias
    if mask is None or mask.dim() == 2:
        # Flash attention gets the padding alone.
        causal = torch.ones(count, keys, dtype=torch.bool, device=query.device).tril(keys - count)
        mask = causal if mask is None else causal & mask[:, None, None, -keys:].bool()
    if mask.dtype is torch.bool:
        return torch.where(mask, bias, torch.finfo(query.dtype).min)
    return mask.to(query.dtype) + bias


for _kernel in KERNELS:
    ALL_ATTENTION_FUNCTIONS.register(_PREFIX + _kernel, _attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(_PREFIX + _kernel, ALL_MASK_ATTENTION_FUNCTIONS[_kernel])
