"""States of recurrent layers: what such a layer keeps of all tokens before, in place of a KV.

A state cannot be cropped: going back takes one that was kept. Updates replace a state and never
write into it, so keeping one costs a reference, and the prefix's own is safe from whatever
follows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers.cache_utils import LinearAttentionLayer

from sttm_cli.base.types import LayerState

States = Mapping[int, LayerState]
"""States by layer, with a row for each sequence: `conv` [B, C, K], `recurrent` [B, H, D, E]."""
MOST = 2
"""States that a continuation keeps beside the prefix's own: tens of megabytes each in a 9B."""


class StateLayer(LinearAttentionLayer):  # type: ignore[misc]
    """The states of one layer, `state` once it has any.

    transformers' own layer writes into its tensors, in place for single tokens; where the past is
    recorded, it asks for every update instead.
    """

    def __init__(self, state: LayerState | None = None) -> None:
        super().__init__()
        self.record_past = True
        if state is not None:
            self.state = state

    @property
    def state(self) -> LayerState | None:
        """The layer's states now; None before its first tokens."""
        conv, recurrent = self.conv_states[0], self.recurrent_states[0]
        return None if conv is None or recurrent is None else LayerState(conv, recurrent)

    @state.setter
    def state(self, state: LayerState) -> None:
        self.conv_states[0], self.recurrent_states[0] = state
        self.is_conv_states_initialized[0] = self.is_recurrent_states_initialized[0] = True
        self.has_previous_state[0] = True

    def update_conv_state(
        self,
        conv_states: torch.Tensor,
        state_idx: int = 0,
        conv_kernel_size: int | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Append inputs [B, C, n] of a convolution of `conv_kernel_size`; return them with those
        before."""
        if conv_kernel_size is None:
            raise RuntimeError("a convolution without its size")
        before = self.conv_states[0]
        if before is None:
            before = conv_states.new_zeros((*conv_states.shape[:-1], conv_kernel_size))
        whole = torch.cat([before, conv_states], dim=-1)
        self.conv_states[0] = whole[..., -conv_kernel_size:].clone()
        self.has_previous_state[0] = self.is_conv_states_initialized[0] = True
        return whole

    def update_recurrent_state(
        self, recurrent_states: torch.Tensor, state_idx: int = 0, **kwargs: Any
    ) -> torch.Tensor:
        """Replace the recurrent state [B, H, D, E]."""
        self.recurrent_states[0] = recurrent_states
        self.is_recurrent_states_initialized[0] = True
        return recurrent_states


def recurrent_layers(decoder: Any) -> set[int]:
    """The indices of a decoder's layers that keep states in place of keys and values."""
    kinds = getattr(decoder.config, "layer_types", None) or []
    return {index for index, kind in enumerate(kinds) if kind == "linear_attention"}


def in_rows(states: States, rows: int = 1) -> States:
    """A prefix's states, as `PrefixKV` has them, for `rows` sequences that continue it."""
    return {
        index: LayerState(*(t[None].expand(rows, *t.shape) for t in state))
        for index, state in states.items()
    }


def of_prefix(layers: Sequence[Any]) -> dict[int, LayerState]:
    """The states that one sequence has left in `layers`, as `PrefixKV` has them."""
    return {
        index: LayerState(state.conv[0].contiguous(), state.recurrent[0].float().contiguous())
        for index, state in _taken(layers).items()
    }


def _taken(layers: Sequence[Any]) -> States:
    return {
        index: layer.state
        for index, layer in enumerate(layers)
        if isinstance(layer, StateLayer) and layer.state is not None
    }


def _put(layers: Sequence[Any], states: States) -> None:
    for index, state in states.items():
        layers[index].state = state


class Kept:
    """The states of a continuation at a few of its lengths; at 0 they are the prefix's `own`.

    Without recurrent layers every length can be gone back to, and nothing is kept.
    """

    def __init__(self, layers: Sequence[Any], own: States) -> None:
        self._layers, self._own = layers, in_rows(own)
        self._at: dict[int, States] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept beside the prefix's own, and of the states in use."""
        tensors = [t for states in (*self._at.values(), _taken(self._layers))
                   for state in states.values() for t in state]  # fmt: skip
        return sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values())

    def keep(self, length: int) -> None:
        """Keep the present states as those after `length` tokens; of earlier ones the last few."""
        if not self._own or length == 0:
            return
        self._at.pop(length, None)
        self._at[length] = _taken(self._layers)
        for old in list(self._at)[:-MOST]:
            del self._at[old]

    def drop(self, length: int) -> None:
        """Forget the states behind more than `length` tokens."""
        self._at = {at: states for at, states in self._at.items() if at <= length}

    def go_back(self, length: int) -> int:
        """Put the states behind the most tokens up to `length` in place; return how many these
        are."""
        if not self._own:
            return length
        nearest = max((at for at in self._at if at <= length), default=0)
        _put(self._layers, self._at.get(nearest, self._own))
        return nearest

    @contextmanager
    def unless_it_fails(self) -> Iterator[None]:
        """Put the states of before in place again if what runs inside raises: some layers may have
        taken tokens, others not."""
        before = _taken(self._layers)
        try:
            yield
        except BaseException:
            _put(self._layers, before)
            raise


class Apart:
    """The states of several questions behind one prefix; none sees another's.

    Those that run together have a row each.
    """

    def __init__(self, layers: Sequence[Any], own: States) -> None:
        self._layers, self._own = layers, in_rows(own)
        self._each: dict[int, States] = {}
        self._rows: tuple[int, ...] = ()

    def together(self, parts: Sequence[int]) -> None:
        """Put the states of `parts` in place, a row each in this order."""
        if not self._own or tuple(parts) == self._rows:
            return
        # Most steps run the same questions as the step before: only others cost a copy.
        for row, part in enumerate(self._rows):
            self._each[part] = {
                index: LayerState(*(t[row : row + 1] for t in state))
                for index, state in _taken(self._layers).items()
            }
        each = [self._each.get(part, self._own) for part in parts]
        stacked = {
            index: LayerState(*map(torch.cat, zip(*(one[index] for one in each), strict=True)))
            for index in self._own
        }
        _put(self._layers, stacked)
        self._rows = tuple(parts)


@contextmanager
def rows_apart(decoder: Any, rows: int) -> Iterator[None]:
    """While this lasts, recurrent layers take the tokens [1, rows * n, C] of several sequences as
    [rows, n, C], so that none goes into the state of another."""

    def split(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        hidden = kwargs["hidden_states"]
        return args, {**kwargs, "hidden_states": hidden.view(rows, -1, hidden.shape[-1])}

    def join(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output.reshape(1, -1, output.shape[-1])

    handles: list[Any] = []
    try:
        for index in recurrent_layers(decoder) if rows > 1 else ():
            module = decoder.layers[index].linear_attn
            handles.append(module.register_forward_pre_hook(split, with_kwargs=True))
            handles.append(module.register_forward_hook(join))
        yield
    finally:
        for handle in handles:
            handle.remove()
