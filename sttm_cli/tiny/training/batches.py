"""Training batches: drawn clips, dense targets for every cell, and packed questions."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch.utils.data import IterableDataset

from sttm_cli.tiny.drawing import coverage, draw
from sttm_cli.tiny.questions import CORNERS, Question, ask_about, look
from sttm_cli.tiny.scenes import COLOURS, DIRECTIONS, SHAPES, SIDE, Scene, make_scene
from sttm_cli.tiny.textures import textured
from sttm_cli.tiny.training.write_checkpoint import GRID, make_tokenizer, vocabulary

# Smaller seeds are held out for measurements.
FIRST_TRAINING_SEED = 1_000_000_000
DENSE = len(SHAPES) + len(COLOURS) + 10
# The decoder's dense targets: the states of a cell of a frame.
MOVES = ("nothing", "new", "none", *DIRECTIONS)
IGNORE = -100
_FIRST_FRAMES = 10
# The number of values of each fact about a named thing, including one for a missing thing.
NAMED = tuple(n + 1 for n in (len(SHAPES), len(COLOURS), len(MOVES), len(CORNERS), _FIRST_FRAMES))
FINE = 4 * GRID  # cells along a side of the finest dense targets
COVERED = 0.3  # minimum covered share of a cell that shows a thing
_MOST_QUESTIONS = 12
_FILLERS = frozenset("the is does do you there of in a an can on to have me what which".split())
Batch = dict[str, torch.Tensor]


@cache
def word_ids() -> dict[str, int]:
    return {word: index for index, word in enumerate(vocabulary())}


@dataclass(frozen=True)
class Clip:
    """Sampled frames [F, side, side, 3] uint8 at `times`, and the questions about them."""

    frames: np.ndarray
    scene: Scene
    times: tuple[float, ...]
    questions: list[Question]


def make_clip(seed: int, frames: int, *, crowded: bool = False) -> Clip:
    """Draw `frames` frames, one per second, from a random start, with degradations of cameras and
    codecs."""
    rng = np.random.default_rng((seed, 7))
    extra = int(rng.integers(1, 3)) if rng.random() < 0.4 else 0
    scene = make_scene(seed, seconds=frames + extra, crowded=crowded)
    start = float(rng.uniform(0, extra)) if rng.random() < 0.5 else float(rng.integers(extra + 1))
    times = tuple(start + i for i in range(frames))
    backdrop = textured(rng)
    drawn = np.stack([draw(scene, t, backdrop(t)) for t in times])
    if rng.random() < 0.85:
        drawn = _degrade(drawn, rng)
    return Clip(
        frames=drawn,
        scene=scene,
        times=times,
        questions=ask_about(scene, times, rng)[:_MOST_QUESTIONS],
    )


def _degrade(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change brightness and tint; add noise, and the artefacts of JPEG in place of video codecs."""
    pixels = frames.astype(np.float32)
    tint = rng.normal(1, 0.04, 3) * rng.uniform(0.85, 1.12)
    pixels = pixels * tint.astype(np.float32) + np.float32(rng.normal(0, 7))
    if rng.random() < 0.4:
        noise = rng.standard_normal(pixels.shape[1:], np.float32)
        pixels += noise * np.float32(rng.uniform(1, 8))
    result = np.clip(pixels, 0, 255).astype(np.uint8)
    if rng.random() < 0.6:
        quality = int(rng.integers(35, 95))
        result = np.stack([_jpeg(frame, quality) for frame in result])
    return result


def _jpeg(frame: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def dense_targets(clip: Clip) -> dict[str, np.ndarray]:
    """Compute the dense targets of a clip.

    `shares` [F, FINE, FINE, DENSE]: share of each shape, colour and digit in a cell of the fine
    grid; `offsets` [F, FINE, FINE, 2]: from the cell to the thing's centre, in cells of the token
    grid (nan: no thing); `moves` [F, GRID, GRID]: indices of MOVES.
    """
    count = len(clip.times)
    shares = np.zeros((count, FINE, FINE, DENSE), np.float32)
    offsets = np.full((count, FINE, FINE, 2), np.nan, np.float32)
    moves = np.zeros((count, GRID, GRID), np.int64)
    for f, t in enumerate(clip.times):
        for seen in look(clip.scene, clip.times):
            thing = seen.thing
            if not thing.visible(t):
                continue
            share = coverage(thing, t, FINE)
            shares[f, ..., SHAPES.index(thing.shape)] = share
            shares[f, ..., len(SHAPES) + list(COLOURS).index(thing.colour)] = share
            offsets[f][share > COVERED] = _offsets(thing.at(t))[share > COVERED]
            coarse = share.reshape(GRID, FINE // GRID, GRID, FINE // GRID).mean((1, 3))
            moves[f][coarse > 0.02] = IGNORE
            moves[f][coarse > COVERED] = _move(seen.places, f - seen.first)
        card = clip.scene.card
        if card is not None and card.visible(t):
            shares[f, ..., len(SHAPES) + len(COLOURS) + card.digit] = coverage(card, t, FINE)
    return {"shares": shares, "offsets": offsets, "moves": moves}


def _offsets(centre: tuple[float, float]) -> np.ndarray:
    row, column = (np.mgrid[0:FINE, 0:FINE].astype(np.float32) + 0.5) * (GRID / FINE)
    x, y = (v * GRID / SIDE for v in centre)
    return np.stack((x - column, y - row), -1)


def _move(places: np.ndarray, age: int) -> int:
    """Return a thing's motion up to this frame, as an index of MOVES."""
    if age == 0:
        return MOVES.index("new")
    dx, dy = places[age] - places[0]
    if max(abs(dx), abs(dy)) < 1:
        return MOVES.index("none")
    if max(abs(dx), abs(dy)) < 5:
        return IGNORE
    across = ("right" if dx > 0 else "left") if abs(dx) > abs(dy) else ("down" if dy > 0 else "up")
    return MOVES.index(across)


class Packer:
    """Turns questions into tokens after one video.

    Alone: every question attends to the video and itself only, at the positions right after the
    video. Together: the questions are consecutive turns of one conversation.
    """

    def __init__(self) -> None:
        self._tokenizer = make_tokenizer()
        self._ids: dict[str, list[int]] = {}
        self.head = self._tokenizer("<|im_start|>user ").input_ids
        self._unknown = self._tokenizer.unk_token_id
        self._fillers = {self._tokenizer.convert_tokens_to_ids(w) for w in _FILLERS}

    def encode(self, text: str) -> list[int]:
        if text not in self._ids:
            self._ids[text] = list(self._tokenizer(text, add_special_tokens=False).input_ids)
        return self._ids[text]

    def pack(
        self, questions: Sequence[Question], *, together: bool, rng: np.random.Generator | None
    ) -> dict[str, list[int]]:
        """Pack questions with their answers into lists with one entry per token.

        `ids`, `positions` (from the end of the video), `segments`, `labels` (the next token if it
        belongs to an answer, else IGNORE), `index` of the question.
        """
        out: dict[str, list[int]] = {
            k: [] for k in ("ids", "positions", "segments", "labels", "index")
        }
        for number, question in enumerate(questions):
            opening = "<|im_start|>user " if together and number else ""
            asked = self._blur(self.encode(question.text), rng)
            before = [
                *self.encode(opening),
                *asked,
                *self.encode("<|im_end|><|im_start|>assistant"),
            ]
            answer = self.encode(question.answer + "<|im_end|>")
            ids = before + answer
            start = len(out["ids"]) if together else 0
            out["ids"] += ids
            out["positions"] += range(start, start + len(ids))
            out["segments"] += [0 if together else number] * len(ids)
            out["labels"] += [IGNORE] * (len(before) - 1) + answer + [IGNORE]
            out["index"] += [number] * len(ids)
        return out

    def _blur(self, ids: list[int], rng: np.random.Generator | None) -> list[int]:
        """Occasionally put in an unknown word, so that the model tolerates other wording."""
        if rng is None or rng.random() > 0.12:
            return ids
        places = [i for i, token in enumerate(ids) if token in self._fillers]
        if not places:
            return [self._unknown, *ids]
        chosen = places[rng.integers(len(places))]
        return [self._unknown if i == chosen else token for i, token in enumerate(ids)]


def name_targets(clip: Clip, ids: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the facts about the thing that each token names: shape, colour, motion, corner, first
    frame; for a missing thing the last value of each, for other tokens IGNORE."""
    missing = tuple(count - 1 for count in NAMED)
    words = word_ids()
    targets = {words[name]: missing for name in (*SHAPES, *COLOURS)}
    for seen in look(clip.scene, clip.times):
        shape, colour = seen.thing.shape, seen.thing.colour
        targets[words[shape]] = targets[words[colour]] = (
            SHAPES.index(shape),
            list(COLOURS).index(colour),
            IGNORE if seen.motion is None else MOVES.index(seen.motion),
            IGNORE if seen.corner is None else CORNERS.index(seen.corner),
            min(seen.first, _FIRST_FRAMES - 1),
        )
    return [targets.get(token, (IGNORE,) * len(NAMED)) for token in ids]


def collate(clips: Sequence[Clip], packs: Sequence[dict[str, list[int]]]) -> Batch:
    """Build a batch: `frames` [B, F, 3, S, S] uint8, the packed tokens [B, L], dense targets."""
    longest = max(len(p["ids"]) for p in packs)
    longest = -(-longest // 16) * 16
    fill = {"ids": 0, "positions": 0, "segments": -1, "labels": IGNORE, "index": -1}
    batch = {
        key: torch.tensor([p[key] + [value] * (longest - len(p[key])) for p in packs])
        for key, value in fill.items()
    }
    names = torch.full((len(clips), longest, len(NAMED)), IGNORE)
    for row, (clip, pack) in enumerate(zip(clips, packs, strict=True)):
        names[row, : len(pack["ids"])] = torch.tensor(name_targets(clip, pack["ids"]))
    batch["names"] = names
    frames = np.stack([clip.frames for clip in clips])
    batch["frames"] = torch.from_numpy(frames).permute(0, 1, 4, 2, 3).contiguous()
    targets = [dense_targets(clip) for clip in clips]
    for key in targets[0]:
        batch[key] = torch.from_numpy(np.stack([target[key] for target in targets]))
    return batch


class Clips(IterableDataset[Batch]):
    """Endless batches of `frames_per_batch` frames; all clips of a batch have the same length."""

    def __init__(
        self,
        lengths: dict[int, float],
        *,
        frames_per_batch: int,
        seed: int,
        together: float,
        crowded: float = 0.0,
    ) -> None:
        self._lengths = lengths
        self._frames = frames_per_batch
        self._seed = seed
        self._together = together
        self._crowded = crowded

    def __iter__(self) -> Iterator[Batch]:
        torch.set_num_threads(1)
        packer = Packer()
        worker = torch.utils.data.get_worker_info()
        shift = 0 if worker is None else worker.id
        rng = np.random.default_rng((self._seed, shift))
        lengths, shares = list(self._lengths), list(self._lengths.values())
        while True:
            length = int(rng.choice(lengths, p=shares))
            seeds = rng.integers(FIRST_TRAINING_SEED, 2**62, max(1, self._frames // length))
            full = rng.random(len(seeds)) < self._crowded
            clips = [
                make_clip(int(seed), length, crowded=bool(crowd))
                for seed, crowd in zip(seeds, full, strict=True)
            ]
            together = bool(rng.random() < self._together)
            packs = [packer.pack(clip.questions, together=together, rng=rng) for clip in clips]
            yield collate(clips, packs)
