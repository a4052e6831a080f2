"""Training: packed questions are what they would be alone, and a run goes on where it stopped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sttm_cli.bench.exam import FIRST_SEED
from sttm_cli.tiny.questions import Question
from sttm_cli.tiny.scenes import COLOURS, SHAPES, Scene, Thing
from sttm_cli.tiny.training.batches import (
    FIRST_TRAINING_SEED,
    IGNORE,
    MOVES,
    NAMED,
    Clip,
    Packer,
    collate,
    dense_targets,
    make_clip,
    name_targets,
)
from sttm_cli.tiny.training.learner import Learner, losses
from sttm_cli.tiny.training.train import Run, Stage

QUESTIONS = [
    Question("count", "how many shapes are there?", "two"),
    Question("position", "where is the red circle?", "top left"),
]


def packed(*questions: Question, together: bool = False) -> dict[str, list[int]]:
    return Packer().pack(questions, together=together, rng=None)


def test_labels_are_the_answers_and_their_end_and_nothing_else() -> None:
    pack, packer = packed(*QUESTIONS), Packer()
    report = [label for label in pack["labels"] if label != IGNORE]
    assert report == [*packer.encode("two<|im_end|>"), *packer.encode("top left<|im_end|>")]
    for here, label in enumerate(pack["labels"]):
        assert label in (IGNORE, *pack["ids"][here + 1 : here + 2])


@torch.no_grad()
def test_a_question_packed_with_others_is_answered_as_if_asked_alone() -> None:
    torch.manual_seed(0)
    learner = Learner().eval()
    clip = make_clip(5, 2)
    both = collate([clip], [packed(*QUESTIONS)])
    alone = collate([clip], [packed(QUESTIONS[1])])
    tokens = learner.see(both)
    count = len(packed(QUESTIONS[1])["ids"])
    start = len(packed(QUESTIONS[0])["ids"])
    expected = learner.answer(alone, tokens)[0][:, :count]
    found = learner.answer(both, tokens)[0][:, start : start + count]
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(found, learner.answer(both, tokens)[0][:, :count], atol=1e-2)


def test_turns_of_one_conversation_follow_each_other() -> None:
    together = packed(*QUESTIONS, together=True)
    assert together["positions"] == list(range(len(together["ids"])))
    assert set(together["segments"]) == {0}


def test_dense_targets_say_what_each_cell_shows_and_how_it_moves() -> None:
    star = Thing("star", "blue", 16.0, 0.0, (24.0, 24.0), (10.0, 0.0), 0.0, 4.0)
    scene = Scene(0, 4, (star,), None)
    clip = Clip(np.zeros((4, 112, 112, 3), np.uint8), scene, (0.0, 1.0, 2.0, 3.0), [])
    moves = dense_targets(clip)["moves"]
    assert moves[0, 1, 1] == MOVES.index("new")
    assert moves[3, 1, 3] == MOVES.index("right")
    assert moves[3, 6, 6] == MOVES.index("nothing")


def test_every_name_in_a_question_is_told_what_it_names() -> None:
    star = Thing("star", "blue", 16.0, 0.0, (24.0, 24.0), (10.0, 0.0), 0.5, 4.0)
    scene = Scene(0, 4, (star,), None)
    clip = Clip(np.zeros((4, 112, 112, 3), np.uint8), scene, (0.0, 1.0, 2.0, 3.0), [])
    ids = Packer().encode("is the star blue or red?")
    _, _, star_facts, blue_facts, _, red_facts = name_targets(clip, ids)
    assert star_facts == blue_facts
    assert star_facts[:3] == (
        SHAPES.index("star"), list(COLOURS).index("blue"), MOVES.index("right")
    )  # fmt: skip
    assert star_facts[3:] == (IGNORE, 1)
    assert red_facts == tuple(count - 1 for count in NAMED)


def test_measured_seeds_are_never_trained_on() -> None:
    assert max(FIRST_SEED.values()) + 1_000_000 < FIRST_TRAINING_SEED


def test_a_run_learns_stops_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sttm_cli.tiny.training.train._report", lambda *args, **kwargs: None)
    stages = (
        Stage("tower", 0.05, 1e-3, {1: 1.0}, 2, answers=False),
        Stage("words", 0.05, 1e-3, {2: 1.0}, 2),
    )
    first = Run(tmp_path)
    before = first.learner.cells.weight.clone()
    first.train(stages[:1])
    assert not torch.equal(first.learner.cells.weight, before)
    second = Run(tmp_path)
    assert second.stage == 1
    assert torch.equal(second.learner.cells.weight, first.learner.cells.weight)
    second.train(stages)
    assert second.stage == 2
    assert second.batches > first.batches
    second.export(tmp_path / "checkpoint")
    assert (tmp_path / "checkpoint" / "model.safetensors").stat().st_size < 16 * 2**20


def test_losses_reach_every_part_of_the_model() -> None:
    torch.manual_seed(0)
    learner = Learner()
    clip = make_clip(FIRST_TRAINING_SEED, 2, crowded=True)
    batch = collate([clip], [packed(*QUESTIONS)])
    torch.autograd.backward(sum(losses(learner, batch, answers=True).values(), torch.zeros(())))
    without = {name for name, p in learner.named_parameters() if p.grad is None}
    # The features are taken before the tower's last norm, as in the llava-hf checkpoints.
    assert all("post_layernorm" in name for name in without)
