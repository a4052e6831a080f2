"""The hooks of `sttm_cli.merging`: what each forward pass of the model is, and what it gets."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.utils.weak import WeakIdKeyDictionary
from transformers.utils.generic import is_flash_attention_requested

from sttm_cli.base.errors import ModelError, UsageError
from sttm_cli.base.results import Clock
from sttm_cli.base.types import Prompt
from sttm_cli.models.family import Family
from sttm_cli.prefill import (
    Continuing,
    Counted,
    MergeConfig,
    MergeState,
    MergingPass,
    Pass,
    check_cache,
    count_in,
    counted_kernel,
    expect_tokens,
    held_by,
    hooked_layers,
    plain_kernel,
)


@dataclass
class MergingStats:
    """Statistics of the last prompt with a video; None before the first.

    `video_full` and `video_kept`: video tokens before and after, of all videos in a batch; the
    thresholds are those actually used, None if nothing was compared or a batch has several;
    `seconds`: of the merging alone.
    """

    video_full: int | None = None
    video_kept: int | None = None
    spatial_threshold: float | None = None
    temporal_threshold: float | None = None
    seconds: float | None = None


class _Inputs(NamedTuple):
    """What the model was called with, by name, and the videos whose features it got, None for
    pictures of which it is not known how many videos they are."""

    given: Mapping[str, Any]
    videos: int | None


class _Local(threading.local):
    """Of the forward pass that runs in this thread."""

    inputs: _Inputs | None = None
    current: Pass | None = None
    clock: Clock


class MergingBlock:
    """A model's hooks while it merges. Each thread has its own pass; `stats` are of the last."""

    def __init__(
        self, model: Any, decoder: Any, family: Family, how: MergeConfig, stats: MergingStats
    ) -> None:
        if family.find is None:
            raise ModelError(
                f"merging inside of transformers is not supported for {family.name}",
                "ask with sttm_cli.VideoQA",
            )
        self._model, self._decoder, self._find, self._how = model, decoder, family.find, how
        self._family, self._axes = family, family.rotary_axes
        self._stats, self._outer = stats, model.base_model
        self._signature = inspect.signature(type(self._outer).forward)
        self._local = _Local()
        self._encoded: Any = WeakIdKeyDictionary()
        self._deltas: torch.Tensor | None = None

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Merge within the context."""
        outer, decoder = self._outer, self._decoder
        before = getattr(outer, "rope_deltas", None)
        with ExitStack() as stack:
            handles = [
                outer.register_forward_pre_hook(self._see, with_kwargs=True),
                decoder.register_forward_pre_hook(self._begin, with_kwargs=True),
                decoder.register_forward_hook(self._end),
            ]
            for index, layer in enumerate(decoder.layers):
                handles.append(layer.register_forward_hook(partial(self._after, index)))
            if self._family.given:
                tower = outer.vision_model
                handles.append(tower.register_forward_hook(self._encode, with_kwargs=True))
            for handle in handles:
                stack.callback(handle.remove)
            stack.enter_context(hooked_layers(decoder, self._how.layer, self._layer))
            if self._how.sizes:
                stack.callback(count_in, None)
                stack.enter_context(counted_kernel(decoder))
            try:
                yield
            finally:
                # Only a merged prompt's deltas are dropped: nothing continues from it outside of
                # this block.
                if self._deltas is not None and outer.rope_deltas is self._deltas:
                    outer.rope_deltas = before

    # ---- the hooks

    def _see(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = self._signature.bind_partial(module, *args, **kwargs).arguments
        encoded = given.get("mm_encoder_outputs") or {}
        image = given.get("pixel_values") is not None or "image" in encoded
        videos = _videos(self._signature, given)
        if image and videos and not self._family.images_beside:
            raise UsageError(
                f"transformers takes no images beside a video of {self._family.name}",
                "give the video alone",
            )
        self._local.inputs = _Inputs(given, videos)

    def _encode(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        self._encoded[output.last_hidden_state] = kwargs

    def _begin(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inputs, self._local.inputs, self._local.current = self._local.inputs, None, None
        counted = None
        if self._how.sizes:
            counted = Counted(plain_kernel(self._decoder), self._how.layer)
            count_in(counted)
        embeds, cache = kwargs.get("inputs_embeds"), kwargs.get("past_key_values")
        held = held_by(cache, self._how.layer)
        video = inputs if inputs is not None and inputs.videos != 0 else None
        if embeds is None or (held is None and video is None):
            return None
        if video is not None:
            self._deltas = getattr(self._outer, "rope_deltas", None)
        if held is not None and video is not None:
            raise UsageError(
                "this cache holds a video already, and another one was given",
                "make a new cache, or give the new tokens alone",
            )
        if held is not None and held.logs is not None and counted is None:
            raise UsageError(
                "in this cache a merged token counts in attention as often as its cells",
                'give attention_sizes="on", or make a new cache',
            )
        self._check(cache)
        expect_tokens(cache)
        call = _call(kwargs, self._axes, inputs.given if inputs is not None else kwargs)
        if video is not None:
            kwargs = self._merge(call, video, kwargs, counted)
        elif held is not None:
            kwargs = self._continue(call, held, kwargs, counted)
        return args, kwargs

    def _layer(
        self, index: int, hidden: torch.Tensor, kwargs: dict[str, Any]
    ) -> tuple[torch.Tensor, dict[str, Any]] | None:
        current = self._local.current
        return None if current is None else current.inputs(index, hidden, kwargs)

    def _after(self, index: int, module: Any, args: Any, output: Any) -> Any:
        current = self._local.current
        return None if current is None else current.after(index, output)

    def _end(self, module: Any, args: Any, output: Any) -> Any:
        current, self._local.current = self._local.current, None
        if current is None:
            return None
        if isinstance(current, MergingPass):
            self._count(current.merges)
            if not current.merged:
                self._deltas = None
        if isinstance(output, tuple):
            return current.leave(output[0]), *output[1:]
        output.last_hidden_state = current.leave(output.last_hidden_state)
        return output

    # ---- the passes

    def _check(self, cache: Any) -> None:
        if self._model.training:
            raise UsageError("the model is in training mode", "call model.eval() to merge")
        if torch.compiler.is_compiling():
            raise UsageError("compiled code cannot merge", "call the model without torch.compile")
        kernel = plain_kernel(self._decoder)
        flash = kernel.startswith("flash_attention_") or (
            "|" not in kernel and is_flash_attention_requested(self._decoder.config)
        )
        if kernel not in ("sdpa", "eager") and not flash:
            raise UsageError(
                f"merging does not know the attention {kernel!r}",
                'call model.set_attn_implementation("sdpa"), or "eager", or flash attention',
            )
        if flash and self._family.two_way:
            raise UsageError(
                f"{self._family.name} sees its frames in both directions, which {kernel!r} cannot",
                'call model.set_attn_implementation("sdpa")',
            )
        check_cache(cache)

    def _continue(
        self, call: _Call, held: Any, kwargs: dict[str, Any], counted: Counted | None
    ) -> dict[str, Any]:
        new = None if call.mask is None else call.mask[:, -call.embeds.shape[1] :]
        if new is not None and self._family.recurrent is not None and not bool(new.all()):
            raise UsageError(
                "padding behind a merged video cannot be combined with recurrent layers, which "
                "would take it for tokens",
                "give prompts of the same length, or one after the other",
            )
        if held.deltas is not None:
            # The model itself only remembers those of the last prompt.
            call = call.following(held.deltas)
            kwargs = {**kwargs, "position_ids": call.positions}
        self._local.current = Continuing(
            self._decoder, self._how.layer, call.positions, call.mask, counted, held=held
        )
        return kwargs

    def _merge(
        self, call: _Call, inputs: _Inputs, kwargs: dict[str, Any], counted: Counted | None
    ) -> dict[str, Any]:
        prompts = self._prompts(call, inputs)
        levels = self._levels(kwargs, call, prompts)
        if levels:
            kwargs = {**kwargs, "deepstack_visual_embeds": None, "visual_pos_masks": None}
        self._local.clock = clock = Clock()
        stage = partial(clock.stage, "merge")
        self._local.current = MergingPass(
            self._decoder,
            self._how.layer,
            call.positions,
            call.mask,
            counted,
            merges=[MergeState(prompt, self._how, stage) for prompt in prompts],
            past=call.past,
            levels=levels,
            deltas=call.deltas() if self._axes > 1 else None,
            blocks=self._blocks(call, inputs) if self._family.two_way else None,
        )
        return kwargs

    def _blocks(self, call: _Call, inputs: _Inputs) -> torch.Tensor | None:
        """As in `Prompt`, of all tokens so far [B, past + L]: visual ones are one block."""
        kinds = inputs.given.get("mm_token_type_ids")
        if kinds is None:
            return None
        count = call.past + call.embeds.shape[1]
        if kinds.shape[-1] != count:
            raise UsageError(
                f"mm_token_type_ids are of {kinds.shape[-1]} tokens, and with those in the cache "
                f"there are {count}",
                "give them for all of these",
            )
        return torch.where(kinds.to(call.embeds.device) == 1, 0, -1)

    def _prompts(self, call: _Call, inputs: _Inputs) -> list[Prompt]:
        """The prompt of each row of the batch, or one where all rows are the same."""
        ids, rows = inputs.given.get("input_ids"), len(call.embeds)
        if ids is None:
            raise UsageError("inputs_embeds do not show where a video is", "give input_ids")
        if inputs.videos not in (None, rows):
            raise UsageError(
                f"{inputs.videos} videos were given for {rows} prompts", "give one video for each"
            )
        prompts = []
        for row in range(1 if call.alike() else rows):
            positions = call.positions[:, row]
            places, grid = self._find(
                config=self._model.config, ids=ids[row], positions=positions,
                **self._of_video(inputs, row),
            )  # fmt: skip
            prompts.append(Prompt(ids[row], places, grid, positions, 0))
        grids = sorted({prompt.grid for prompt in prompts})
        if len(grids) > 1:
            raise UsageError(
                "the videos of a batch have different sizes: grids of "
                + " and ".join(" x ".join(map(str, grid)) for grid in grids),
                "give them one after the other",
            )
        return prompts

    def _of_video(self, inputs: _Inputs, row: int) -> dict[str, Any]:
        """The arguments that `find` needs of a row's video."""
        given, names = dict(inputs.given), self._family.given
        encoded = (given.get("mm_encoder_outputs") or {}).get("video")
        states = getattr(encoded, "last_hidden_state", None)
        if names and states is not None:
            # `generate` has encoded the video beforehand and does not pass on what it was.
            known = self._encoded.get(states, {})
            given |= {name: known[theirs] for name, theirs in names.items() if theirs in known}
        for name in names:
            if given.get(name) is None:
                raise UsageError(
                    f"the model was called without {name}",
                    "give it all that its own processor makes",
                )
        # Beams are of one video.
        return {name: given[name][min(row, len(given[name]) - 1)] for name in names}

    def _levels(
        self, kwargs: dict[str, Any], call: _Call, prompts: Sequence[Prompt]
    ) -> list[torch.Tensor]:
        """Deepstack features [rows, T, H, W, C] where merging comes before the last of them."""
        levels = kwargs.get("deepstack_visual_embeds") or []
        if self._how.layer >= len(levels):
            return []
        rows, grid = len(call.embeds), prompts[0].grid
        if len(levels[0]) != rows * prompts[0].video.numel():
            raise UsageError(
                f"images beside a video cannot be combined with merge_layer {self._how.layer}",
                f"leave the images out, or give merge_layer={len(levels)}",
            )
        return [level.view(rows, *grid, -1)[: len(prompts)] for level in levels]

    def _count(self, merges: Sequence[MergeState]) -> None:
        counts, stats = [merge.counts() for merge in merges], self._stats
        stats.video_full = sum(count.video_full for count in counts)
        stats.video_kept = sum(count.video_kept for count in counts)
        pairs = {(count.spatial_threshold, count.temporal_threshold) for count in counts}
        pair = pairs.pop() if len(pairs) == 1 else (None, None)
        stats.spatial_threshold, stats.temporal_threshold = pair
        stats.seconds = self._local.clock.spent("merge")


@dataclass(frozen=True)
class _Call:
    """The arguments of a decoder call: `embeds` [B, L, C], `positions` [A, B, L], the padding
    `mask` [B, past + L], and the number of tokens before these in the cache."""

    embeds: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor | None
    past: int

    def alike(self) -> bool:
        """Return whether all rows are equal, as with beams or several return sequences."""
        given = [self.embeds, self.positions.movedim(1, 0)]
        given += [] if self.mask is None else [self.mask]
        return all(torch.equal(each, each[:1].expand_as(each)) for each in given)

    def deltas(self) -> torch.Tensor:
        """Return the offset of M-RoPE's ids for the following text from a count of tokens, [B, 1].

        transformers' own `rope_deltas` leave a gap after videos whose time has large ids.
        """
        return self.positions[0, :, -1:] - self._counted()[:, -1:]

    def following(self, deltas: torch.Tensor) -> _Call:
        """Replace M-RoPE's ids for text after another prompt by those for a prompt with these
        `deltas` [B, 1]; keeps ids that the caller chose."""
        text, count = self._counted(), self.embeds.shape[1]
        apart = self.positions - text
        shifted = apart == apart[:1, :, -1:]
        if self.mask is not None:
            shifted = shifted | ~self.mask[:, -count:].bool()
        wanted = (text + deltas.to(text.device)).expand_as(self.positions)
        return replace(self, positions=torch.where(shifted.all(), wanted, self.positions))

    def _counted(self) -> torch.Tensor:
        """Return the indices [B, L] of these tokens, not counting padding."""
        rows, count = self.embeds.shape[:2]
        if self.mask is None:
            return (self.past + torch.arange(count, device=self.embeds.device)).expand(rows, -1)
        there = self.mask.long()
        return ((there.cumsum(-1) - 1) * there)[:, -count:]


def _call(kwargs: dict[str, Any], axes: int, given: Mapping[str, Any]) -> _Call:
    """`kwargs` are the decoder's; `given` has the mask that the caller gave."""
    embeds, cache = kwargs["inputs_embeds"], kwargs.get("past_key_values")
    past = int(cache.get_seq_length()) if cache is not None else 0
    rows, count = embeds.shape[:2]
    mask, ids = given.get("attention_mask"), kwargs.get("position_ids")
    if mask is not None and (not isinstance(mask, torch.Tensor) or mask.shape[-1] != past + count):
        raise UsageError(
            "the attention mask does not have a column for each token so far",
            f"give a 2-D one of {past + count} columns, or none",
        )
    if mask is not None and mask.dim() != 2:
        raise UsageError(f"the attention mask has {mask.dim()} dimensions", "give a 2-D one")
    if ids is None:
        ids = past + torch.arange(count, device=embeds.device)[None]
    ids = ids[..., -count:].to(embeds.device)
    # The first of four axes counts tokens, for masks.
    ids = ids[-axes:] if ids.dim() == 3 else ids[None].expand(axes, -1, -1)
    return _Call(embeds, ids.expand(-1, rows, -1), mask, past)


def _videos(signature: inspect.Signature, given: dict[str, Any]) -> int | None:
    """Return the number of videos in a call of the model; see `_Inputs`."""
    kind = "video" if "pixel_values_videos" in signature.parameters else "image"
    encoded: Any = given.get("mm_encoder_outputs")
    if isinstance(encoded, dict):
        encoded = encoded.get(kind)
    pixels = given.get("pixel_values_videos" if kind == "video" else "pixel_values")
    if pixels is None and encoded is None:
        return 0
    if kind == "image":
        return None
    if pixels is None:
        return len(encoded.pooler_output)
    grids = given.get("video_grid_thw")
    grids = given.get("video_grids") if grids is None else grids
    return len(pixels if grids is None else grids)
