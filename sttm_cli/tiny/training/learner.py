"""The model in training: its losses on packed questions and dense targets, and its accuracy."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from sttm_cli.tiny.questions import KINDS
from sttm_cli.tiny.scenes import COLOURS, SHAPES
from sttm_cli.tiny.training.batches import (
    COVERED,
    DENSE,
    IGNORE,
    MOVES,
    NAMED,
    Batch,
    Packer,
    collate,
    make_clip,
)
from sttm_cli.tiny.training.write_checkpoint import GRID, WIDTH, make_model

# The decoder layers whose outputs are trained on the motion of a cell's thing, and on the facts
# about a named thing; the layers after them only answer.
_MOVE_LAYER, _NAME_LAYER = 1, 2
# The slices of shapes, colours and digits in a cell's shares.
_BORDERS = (0, len(SHAPES), len(SHAPES) + len(COLOURS), DENSE)
GROUPS = tuple(slice(a, b) for a, b in pairwise(_BORDERS))
_SHARPNESS = 10.0  # scale of the cosines between cells and words
_NOTHING_WEIGHT = 0.1  # weight of empty cells, which are the majority


class Learner(nn.Module):
    """The model with linear heads that exist only during training."""

    def __init__(self) -> None:
        super().__init__()
        self.model = make_model()
        self.cells = nn.Linear(WIDTH, DENSE + 2)
        # The places of a cell and of its thing's centre in the picture.
        self.places = nn.Linear(WIDTH, 4)
        # On the tower's patches, before projector and pooling; also the coverage of a patch's four
        # quarters.
        self.patches = nn.Linear(self.model.config.vision_config.hidden_size, DENSE + 2 + 4)
        # In the decoder, on the words of a question: the facts about the thing that a word names.
        self.things = nn.Linear(WIDTH, sum(NAMED))
        self._seen = torch.empty(0)
        self.model.model.multi_modal_projector.register_forward_pre_hook(self._keep_seen)
        self.moves = nn.Linear(WIDTH, len(MOVES))
        _place_patches(self.model.model.vision_tower)
        words = [*SHAPES, *COLOURS, *map(str, range(10))]
        self.names = torch.tensor([Packer().encode(word)[0] for word in words])
        self._head = torch.tensor(Packer().head)
        self._kept: dict[int, torch.Tensor] = {}
        for index in (_MOVE_LAYER, _NAME_LAYER):
            layer = self.model.model.language_model.layers[index]
            layer.register_forward_hook(partial(self._keep, index))

    def _keep(self, index: int, module: nn.Module, args: Any, output: Any) -> None:
        self._kept[index] = output[0] if isinstance(output, tuple) else output

    def _keep_seen(self, module: nn.Module, args: Any) -> None:
        self._seen = args[0]

    def see(self, batch: Batch) -> torch.Tensor:
        """Encode a batch to visual tokens and the newline [B, F * G * G + 1, WIDTH]."""
        pixels = batch["frames"].float() / 127.5 - 1
        output = self.model.model.get_video_features(pixels, return_dict=True)
        tokens: torch.Tensor = output.pooler_output
        return tokens

    def named(self, batch: Batch) -> torch.Tensor:
        """Return the logits of `things` [B, L, sum(NAMED)]; `answer` must have run on the batch."""
        facts: torch.Tensor = self.things(self._kept[_NAME_LAYER][:, -batch["ids"].shape[1] :])
        return facts

    def answer(self, batch: Batch, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits [B, L, V] of the packed tokens and [B, F * G * G, MOVES] of the cells."""
        clips, video = tokens.shape[:2]
        head = self._head.expand(clips, -1)
        prefix = head.shape[1] + video
        embed = self.model.get_input_embeddings()
        first = torch.arange(prefix).expand(clips, -1)
        hidden = self.model.model.language_model(
            inputs_embeds=torch.cat([embed(head), tokens, embed(batch["ids"])], 1),
            attention_mask=_mask(batch["segments"], prefix),
            position_ids=torch.cat([first, prefix + batch["positions"]], 1),
            use_cache=False,
        ).last_hidden_state
        moves = self.moves(self._kept[_MOVE_LAYER][:, head.shape[1] : prefix - 1])
        return self.model.lm_head(hidden[:, prefix:]), moves


def _thing_loss(predicted: torch.Tensor, names: torch.Tensor) -> torch.Tensor:
    """Loss of the facts about named things; names [B, L, len(NAMED)]."""
    loss = predicted.new_zeros(())
    for logits, target in zip(predicted.split(NAMED, -1), names.unbind(-1), strict=True):
        if (target != IGNORE).any():
            loss = loss + F.cross_entropy(logits[target != IGNORE], target[target != IGNORE])
    return loss


def _place_patches(tower: nn.Module) -> None:
    """Initialise the position embedding with waves along x and y, so that near patches are similar;
    training from random numbers takes far longer."""
    weight = next(p for name, p in tower.named_parameters() if "position_embedding" in name)
    count, width = weight.shape
    side = round(count**0.5)
    place = torch.arange(side).float()
    waves = place[:, None] * torch.logspace(0.3, -1.3, width // 4)
    line = torch.cat([waves.sin(), waves.cos()], -1)
    grid = torch.cat([line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)], -1)
    with torch.no_grad():
        weight.copy_(grid.reshape(count, width))


def losses(learner: Learner, batch: Batch, *, answers: bool) -> dict[str, torch.Tensor]:
    """Compute the losses by name; those of the decoder only if `answers`."""
    with torch.autocast("cpu", torch.bfloat16):
        tokens = learner.see(batch)
        by_name = {
            "cells": _cell_loss(learner, tokens, batch),
            "places": _place_loss(learner.places(tokens[:, :-1]).float(), batch),
        }
        if answers:
            logits, moves = learner.answer(batch, tokens)
            known = batch["labels"] != IGNORE
            by_name["answer"] = F.cross_entropy(logits[known].float(), batch["labels"][known])
            by_name["moves"] = _move_loss(moves.float(), batch["moves"])
            by_name["things"] = _thing_loss(learner.named(batch).float(), batch["names"])
            by_name["words"] = _word_loss(learner, tokens, batch)
    return by_name


def _cell_loss(learner: Learner, tokens: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Loss of the dense targets on the cells' tokens and on the tower's patches."""
    shares, offsets = batch["shares"], batch["offsets"]
    clips, frames = shares.shape[:2]
    predicted = learner.cells(tokens[:, :-1]).float().reshape(clips, frames, GRID, GRID, -1)
    loss = _names_loss(predicted, _pool(shares, GRID), _pool(offsets, GRID))
    side = 2 * GRID
    fine = learner.patches(learner._seen).float().reshape(clips, frames, side, side, -1)
    loss = loss + _names_loss(fine, _pool(shares, side), _pool(offsets, side))
    covered = shares[..., : GROUPS[0].stop].amax(-1) + shares[..., GROUPS[2]].amax(-1)
    quarters = covered.reshape(clips, frames, side, 2, side, 2).transpose(3, 4).flatten(4)
    return loss + 4 * F.binary_cross_entropy_with_logits(fine[..., -4:], quarters.clamp(0, 1))


def _place_loss(predicted: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Loss of the places of each cell and of its thing's centre, in half widths of the picture from
    its middle."""
    offsets = _pool(batch["offsets"], GRID)
    line = torch.arange(GRID) - (GRID - 1) / 2
    own = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).expand_as(offsets)
    predicted = predicted.reshape(*offsets.shape[:-1], 4) * (GRID / 2)
    there = ~offsets[..., 0].isnan()
    loss = F.smooth_l1_loss(predicted[..., :2], own)
    return loss + F.smooth_l1_loss(predicted[..., 2:][there], (own + offsets)[there])


def _pool(cells: torch.Tensor, side: int) -> torch.Tensor:
    """Average squares of fine cells: [B, F, FINE, FINE, C] -> [B, F, side, side, C]."""
    clips, frames, fine, _, channels = cells.shape
    split = cells.reshape(clips, frames, side, fine // side, side, fine // side, channels)
    return split.nanmean((3, 5))


def _names_loss(
    predicted: torch.Tensor, shares: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    loss = F.binary_cross_entropy_with_logits(predicted[..., :DENSE], shares) * DENSE
    for part in GROUPS:
        # Classification of covered cells; the shares alone are learnt slowly.
        covered = shares[..., part].amax(-1) > COVERED
        if covered.any():
            names = shares[..., part][covered].argmax(-1)
            loss = loss + F.cross_entropy(predicted[..., :DENSE][..., part][covered], names)
    there = ~offsets[..., 0].isnan()
    return loss + F.smooth_l1_loss(predicted[..., DENSE : DENSE + 2][there], offsets[there])


@torch.no_grad()
def cell_accuracy(learner: Learner, *, clips: int = 48) -> dict[str, float]:
    """Measure the share of held-out covered cells whose shape, colour and digit are recognised."""
    packer = Packer()
    drawn = [make_clip(70_000 + i, 2, crowded=True) for i in range(clips)]
    batch = collate(drawn, [packer.pack(c.questions[:1], together=False, rng=None) for c in drawn])
    with torch.autocast("cpu", torch.bfloat16):
        predicted = learner.cells(learner.see(batch)[:, :-1]).float()
    shares = _pool(batch["shares"], GRID)
    predicted = predicted.reshape(*shares.shape[:4], -1)[..., :DENSE]
    result = {}
    for name, part in zip(("shape", "colour", "digit"), GROUPS, strict=True):
        covered = shares[..., part].amax(-1) > COVERED
        right = predicted[..., part][covered].argmax(-1) == shares[..., part][covered].argmax(-1)
        result[name] = right.float().mean().item()
    return result


def _word_loss(learner: Learner, tokens: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Contrastive loss between each cell's token and the input and output embeddings of the words
    for its content.

    Words of questions can then be matched with cells, and cells with answers, by similarity
    instead of a separate rule per word.
    """
    shares = _pool(batch["shares"], GRID)
    cells = F.normalize(tokens[:, :-1].float(), dim=-1).reshape(*shares.shape[:4], -1)
    loss = tokens.new_zeros(())
    for table in (learner.model.get_input_embeddings().weight, learner.model.lm_head.weight):
        near = _SHARPNESS * cells @ F.normalize(table[learner.names].float(), dim=-1).T
        for part in GROUPS:
            covered = shares[..., part].amax(-1) > COVERED
            if covered.any():
                names = shares[..., part][covered].argmax(-1)
                loss = loss + F.cross_entropy(near[..., part][covered], names)
    return loss


def _move_loss(predicted: torch.Tensor, moves: torch.Tensor) -> torch.Tensor:
    """Loss of the motion of each cell's thing since its first frame."""
    weight = torch.ones(len(MOVES))
    weight[MOVES.index("nothing")] = _NOTHING_WEIGHT
    return F.cross_entropy(predicted.flatten(0, 1), moves.flatten(), weight, ignore_index=IGNORE)


def _mask(segments: torch.Tensor, prefix: int) -> torch.Tensor:
    """Build the attention mask [B, 1, P + L, P + L] bool: causal, text within its segment only."""
    clips, length = segments.shape
    mask = torch.ones(prefix + length, prefix + length, dtype=torch.bool).tril()
    mask = mask.repeat(clips, 1, 1)
    mask[:, prefix:, prefix:] &= segments[:, :, None] == segments[:, None, :]
    return mask[:, None]


@torch.no_grad()
def accuracy(learner: Learner, frames: int, *, clips: int = 48) -> dict[str, tuple[float, int]]:
    """Measure, by kind, the share of fully right held-out answers and the number of questions."""
    learner.eval()
    packer = Packer()
    tally = {kind: [0, 0] for kind in KINDS}
    for start in range(0, clips, 16):
        drawn = [make_clip(frames * 10_000 + start + i, frames) for i in range(16)]
        packs = [packer.pack(c.questions, together=False, rng=None) for c in drawn]
        batch = collate(drawn, packs)
        with torch.autocast("cpu", torch.bfloat16):
            logits, _ = learner.answer(batch, learner.see(batch))
        right = (logits.argmax(-1) == batch["labels"]) | (batch["labels"] == IGNORE)
        for row, clip in enumerate(drawn):
            for number, question in enumerate(clip.questions):
                tally[question.kind][0] += bool(right[row][batch["index"][row] == number].all())
                tally[question.kind][1] += 1
    learner.train()
    return {kind: (good / max(1, asked), asked) for kind, (good, asked) in tally.items()}
